"""The switches that ablations need, and the script that runs them: each cell differs from its reference as named."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from data.cache import FeatureCache
from data.config import parse_config
from data.manifest import write_manifest
from data.predictions import write_predictions
from extract.heads import HeadConfig
from fusion.config import FusionConfig, GroupingConfig
from fusion.grouping import UNKNOWN, GroupSet, evaluation_views, make_groups, training_views
from fusion.inference import predict_groups
from fusion.model import FusionModel, ModelConfig
from fusion.train import DEMO
from tests.make_data import CLASSES, make_cache, make_manifest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
NUM_SLOTS = 7


@pytest.fixture
def groups(tmp_path) -> GroupSet:
    manifest = make_manifest(tmp_path, num_studies=23, max_views=6)
    return make_groups(manifest, make_cache(tmp_path / "cache", manifest), GroupingConfig())


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_training_draws_at_most_so_many_views_and_all_of_them_over_the_epochs(groups, limit):
    config = GroupingConfig(max_views=limit, view_dropout=0.0)
    for g in range(len(groups)):
        counts = dict.fromkeys(groups.ordinals[g].tolist(), 0)
        for epoch in range(120):
            views = training_views(groups, g, config, NUM_SLOTS, 0, epoch)
            assert len(set(views.ordinals.tolist())) == len(views.ordinals) == min(limit, len(counts))
            assert views.ordinals.tolist() == [n for n in groups.ordinals[g] if n in views.ordinals]
            for ordinal in views.ordinals.tolist():
                counts[ordinal] += 1
        expected = 120 * min(1, limit / len(counts))
        assert all(0.35 * expected < n < 1.8 * expected for n in counts.values())
        assert len(evaluation_views(groups, g, NUM_SLOTS).ordinals) == len(counts), "test takes all"


def test_a_limit_that_nobody_reaches_and_no_limit_draw_the_same(groups):
    for g in range(len(groups)):
        plain, limited = (
            training_views(groups, g, GroupingConfig(view_dropout=0.4, max_views=limit), NUM_SLOTS, 3, 2)
            for limit in (0, 99)
        )
        assert all(np.array_equal(a, b) for a, b in zip(plain, limited, strict=True))


def test_without_shuffling_training_uses_the_slots_of_test_time(groups):
    config, drawn = GroupingConfig(shuffle=False, view_dropout=0.0), 0
    for g in range(len(groups)):
        slots = training_views(groups, g, config, NUM_SLOTS, 0, 5).slots
        assert slots.tolist() == evaluation_views(groups, g, NUM_SLOTS).slots.tolist()
        drawn += training_views(groups, g, GroupingConfig(view_dropout=0.0), NUM_SLOTS, 0, 5).slots.tolist() != [*slots]
    assert drawn > len(groups) / 2


def test_hidden_types_never_reach_the_model_and_one_slot_is_no_segment_embedding(tmp_path, groups):
    config = GroupingConfig(hide_types=True)
    for g in range(len(groups)):
        assert set(training_views(groups, g, config, 1, 0, 0).view_types) == {UNKNOWN}
        assert set(training_views(groups, g, config, 1, 0, 0).slots) == {0}
        assert set(evaluation_views(groups, g, 1, draw=2).slots) == {0}
    cache = FeatureCache(tmp_path / "cache")
    settings = ModelConfig(width=24, depth=1, num_heads=3, head=HeadConfig(width=18, num_heads=2))
    model = FusionModel(settings, (3, 2, 5), len(CLASSES)).eval()
    logits = {}
    for hide in (False, True):
        told = FusionConfig(batch_size=4, model=settings, grouping=GroupingConfig(hide_types=hide))
        for types in ("own", "unknown"):
            known = [np.full_like(t, UNKNOWN) if types == "unknown" else t for t in groups.view_types]
            parts = GroupSet(**{**vars(groups), "view_types": known})
            logits[hide, types] = predict_groups(told, parts, cache, model, Accelerator(cpu=True))
    np.testing.assert_array_equal(logits[True, "own"], logits[False, "unknown"])
    assert not np.array_equal(logits[False, "own"], logits[False, "unknown"])


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match=r"grouping\.max_views must be at least 1, or 0 for all, got -1"):
        GroupingConfig(max_views=-1)


# The script


@pytest.fixture
def ablate(monkeypatch, tmp_path):
    """The script, its cells made up: a cell's predictions are the labels and noise, its commands are noted."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    module, commands = importlib.import_module("ablate"), []
    manifest = make_manifest(tmp_path / "images", num_studies=60)
    (tmp_path / "run" / "cache").mkdir(parents=True)
    (tmp_path / "run" / "cache" / "cache.json").write_text("{}")
    write_manifest(manifest, tmp_path / "run" / "manifest.csv")
    test = manifest.of_split("test")

    def command(script, *words, threads=0):
        commands.append([script, *map(str, words)])
        if script != "train_fusion.py":
            (tmp_path / "run_ablate" / "cache").mkdir(parents=True)
            return (tmp_path / "run_ablate" / "cache" / "cache.json").write_text("{}")
        options = dict(zip(commands[-1][1::2], commands[-1][2::2], strict=True))
        folder, rng = Path(options["--run_dir"]) / "fusion", np.random.default_rng(int(options["--seed"]))
        noise = 0.9 if "--grouping.hide_types" in options else 0.4
        folder.mkdir()
        values = (test.labels * (1 - noise) + noise * rng.random(test.labels.shape)).astype(np.float32)
        write_predictions(folder / "predictions_test.csv", test.images, values, test.classes)
        return (folder / "submission.zip").touch()

    monkeypatch.setattr(module, "command", command)
    monkeypatch.setattr(sys, "argv", ["ablate.py", "--run_dir", str(tmp_path / "run"), "--only"])
    module.commands, module.test = commands, test
    return module


def test_every_cell_is_a_valid_configuration_and_no_two_are_alike(ablate):
    seen = {}
    for name, words in ablate.CELLS.items():
        config, _ = parse_config(FusionConfig, DEMO, [str(word) for word in [*words, *ablate.QUICK]])
        assert repr(config) not in seen.values(), name
        seen[name] = repr(config)


def test_cells_run_once_with_their_reference_and_the_table_says_what_was_lost(ablate, tmp_path, capsys):
    sys.argv += ["no types", "patients, 2 views"]
    ablate.main()
    trained = [words for words in ablate.commands if words[0] == "train_fusion.py"]
    assert len(trained) == 4 * 3, "two cells and their references, 3 seeds"
    assert len({words[words.index("--run_dir") + 1] for words in trained}) == 12
    assert {words[words.index("--cache_dir") + 1] for words in trained} == {str(tmp_path / "run_ablate" / "cache")}
    assert (tmp_path / "run_ablate" / "ablate.png").stat().st_size > 1000
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(tuple(ablate.CELLS))]
    names = ["as it is", "no types", "patients, all views", "patients, 2 views"]
    assert len(lines) == len(names)
    assert all(line.startswith(f"{name}  ") for name, line in zip(names, lines, strict=True))
    assert float(lines[1].split("[")[0].split()[-1]) > 0
    assert lines[1].split("]")[1].split()[0].startswith("-"), "more noise, less mAP"
    ablate.main()
    assert sum(words[0] == "train_fusion.py" for words in ablate.commands) == 12, "finished cells are not run again"


def test_cells_by_patient_are_scored_with_the_patients_labels(ablate, tmp_path):
    labels = ablate.labelled_test(tmp_path / "run", ablate.BY_PATIENT).labels
    patients = ablate.test.images["patient_id"].to_numpy(dtype=str)
    assert (labels != ablate.test.labels).any()
    for n, patient in enumerate(patients):
        np.testing.assert_array_equal(labels[n], ablate.test.labels[patients == patient].max(axis=0))


def test_a_cell_that_trains_to_another_score_is_reported(ablate, tmp_path, monkeypatch, capsys):
    sys.argv[-1:] = ["--check"]
    kept = {"seeds": [0, 1, 2], "table": {"loss weighted_asl": {"mAP_by_seed": [0.5, 0.5, 0.5]}}}
    monkeypatch.setattr(importlib.import_module("_root"), "ROOT", tmp_path)
    (tmp_path / "scripts" / "results").mkdir(parents=True)
    (tmp_path / "scripts" / "results" / "ablate.json").write_text(json.dumps(kept))
    with pytest.raises(SystemExit) as leaving:
        ablate.main()
    assert leaving.value.code == 1
    assert "loss weighted_asl, seed 2" in capsys.readouterr().out
