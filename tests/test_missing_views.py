"""Taking views away, and the MLP on pooled maps: same groups and views for all methods, nothing chosen on test."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.manifest import Manifest, read_manifest, write_manifest
from data.metrics import mean_defined, per_class
from data.predictions import read_predictions
from data.runs import Log
from data.views import VIEWS
from extract.checkpoint import load_tensors
from extract.engine import sigmoid
from extract.heads import HeadConfig
from extract.losses import LossConfig
from fusion.baselines import BASELINES, VIEW_WEIGHTS
from fusion.config import FusionConfig, GroupingConfig
from fusion.grouping import GroupSet, make_groups, training_views
from fusion.missing_report import main, table_lines
from fusion.missing_views import DRAWS, compare_missing, conditions, drawn_views, load_run, reduced
from fusion.model import ModelConfig
from fusion.pooled_mlp import PooledMLP, mlp_logits, pool_variants, predict_mlp, visit
from tests.launch import run
from tests.make_data import CLASSES, make_cache, make_manifest, make_run

ROOT = Path(__file__).resolve().parents[1]
FRONTAL = {"PA", "AP"}


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path, num_studies=60, max_views=5)


@pytest.fixture
def cache(tmp_path, manifest):
    return make_cache(tmp_path / "cache", manifest, variants=("plain", "augmented_1"))


@pytest.fixture
def groups(manifest, cache) -> GroupSet:
    return make_groups(manifest, cache, GroupingConfig())


def by_name(groups):
    return {condition.name: condition for condition in conditions(groups)}


def names(groups, number):
    return [VIEWS[t] for t in groups.view_types[number]]


@pytest.mark.parametrize("kind", ["frontal", "lateral"])
def test_only_one_kind_speaks_of_the_groups_that_have_both(groups, kind):
    condition = by_name(groups)[f"{kind} only"]
    both = [g for g in range(len(groups)) if FRONTAL & set(names(groups, g)) and "LATERAL" in names(groups, g)]
    assert condition.numbers.tolist() == both
    for g in both:
        wanted = [(view in FRONTAL) if kind == "frontal" else view == "LATERAL" for view in names(groups, g)]
        assert condition.ways[0][g].tolist() == wanted


def test_drawn_views_are_fixed_nested_and_differ_between_draws(groups):
    found = by_name(groups)
    for most, name in ((1, "one at random"), (2, "2 at random"), (3, "3 at random")):
        condition = found[name]
        assert len(condition.ways) == DRAWS
        assert condition.numbers.tolist() == [g for g in range(len(groups)) if groups.num_views[g] > most]
        assert all(keep[g].sum() == most for keep in condition.ways for g in condition.numbers)
    one, two = found["one at random"].ways, found["2 at random"].ways
    assert all((two[d][g] >= one[d][g]).all() for d in range(DRAWS) for g in range(len(groups)))
    assert any(one[0][g].tolist() != one[1][g].tolist() for g in range(len(groups)))
    fewer = reduced(groups, np.array([7, 3]), [np.ones(n, dtype=bool) for n in groups.num_views])
    assert drawn_views(fewer, 0, 1, 2).tolist() == drawn_views(groups, 7, 1, 2).tolist(), "a matter of the id alone"


def test_groups_by_number_of_views_are_a_partition(groups):
    parts = [c.numbers for name, c in by_name(groups).items() if name.startswith("groups of")]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    assert by_name(groups)["groups of 4 or more"].numbers.tolist() == np.flatnonzero(groups.num_views >= 4).tolist()


def test_a_reduced_group_keeps_labels_patients_and_the_rest_of_its_views(groups):
    keep = [drawn_views(groups, g, 2, 0) for g in range(len(groups))]
    numbers = np.array([9, 2, 14])
    found = reduced(groups, numbers, keep)
    np.testing.assert_array_equal(found.labels, groups.labels[numbers])
    for place, g in enumerate(numbers):
        assert found.ids[place] == groups.ids[g]
        assert found.patient_ids[place] == groups.patient_ids[g]
        for name in ("rows", "ordinals", "view_types"):
            own, whole = getattr(found, name)[place], getattr(groups, name)[g]
            assert own.tolist() == [value for value, stays in zip(whole, keep[g], strict=True) if stays]
    with pytest.raises(AssertionError, match="a group without any view"):
        reduced(groups, numbers, [np.zeros(n, dtype=bool) for n in groups.num_views])


# The MLP on pooled maps


def mlp_config(folder, **options):
    model = ModelConfig(width=24, depth=1, num_heads=3, head=HeadConfig(width=18, num_heads=2))
    return FusionConfig(run_dir=folder, batch_size=7, epochs=3, model=model, **options)


def split_groups(manifest, cache):
    return {s: make_groups(manifest.of_split(s), cache, GroupingConfig()) for s in ("train", "val", "test")}


def test_the_mlp_sees_the_views_and_maps_that_fusion_draws(manifest, cache, groups, tmp_path):
    config = mlp_config(tmp_path, grouping=GroupingConfig(view_dropout=0.4))
    numbers, copies = [8, 3, 13], [0, 0, 1]
    found = visit(config, groups, pool_variants(cache, groups, 2), numbers, copies, 4, 2).numpy()
    for row, number, copy in zip(found, numbers, copies, strict=True):
        drawn = training_views(groups, number, config.grouping, config.model.num_slots, config.seed, 4, 2, copy)
        maps = [cache.read(np.array([n]), int(v))[0] for n, v in zip(drawn.ordinals, drawn.variants, strict=True)]
        wanted = np.mean([np.concatenate([m.mean((0, 1)), m.max((0, 1))]) for m in np.float64(maps)], axis=0)
        np.testing.assert_allclose(row, wanted, atol=1e-5)


def test_the_mlp_comes_twice_the_same_is_kept_and_learns_nothing_from_test(manifest, cache, tmp_path):
    sets, values = split_groups(manifest, cache), []
    flipped = GroupSet(**{**vars(sets["test"]), "labels": 1 - sets["test"].labels})
    for name, test in (("a", sets["test"]), ("b", sets["test"]), ("c", flipped)):
        (tmp_path / name).mkdir()
        config = mlp_config(tmp_path / name)
        values.append(mlp_logits(config, sets | {"test": test}, manifest, cache, Log(tmp_path / name, False)))
    for other in values[1:]:
        assert all(np.array_equal(values[0][split], other[split]) for split in ("val", "test"))
    digest = (tmp_path / "a" / "fusion" / "pooled_mlp" / "digests.json").stat().st_mtime_ns
    again = mlp_logits(mlp_config(tmp_path / "a"), sets, manifest, cache, Log(tmp_path / "a", False))
    assert (tmp_path / "a" / "fusion" / "pooled_mlp" / "digests.json").stat().st_mtime_ns == digest
    np.testing.assert_array_equal(again["test"], values[0]["test"])


def test_the_mlp_learns_what_pooled_maps_show_and_hears_every_view(manifest, cache, tmp_path):
    sets = split_groups(manifest, cache)
    features = {s: pool_variants(cache, g, 1) for s, g in sets.items()}
    told = {}
    for split, own in sets.items():
        means = [np.mean([features[split][n, 0] for n in o.tolist()], axis=0) for o in own.ordinals]
        labels = (np.stack(means)[:, :3] > 0).astype(np.float32)
        told[split] = GroupSet(**{**vars(own), "labels": labels})
    config = replace(
        mlp_config(tmp_path, grouping=GroupingConfig(view_dropout=0.0), loss=LossConfig(kind="bce")), epochs=60
    )
    logits = mlp_logits(config, told, manifest, cache, Log(tmp_path, False))
    assert mean_defined(per_class(logits["test"], told["test"].labels).ap) > 0.7
    folder = tmp_path / "fusion" / "pooled_mlp"
    model = PooledMLP(10, len(CLASSES)).eval()
    model.load_state_dict(load_tensors(folder / "model.safetensors"))
    keep = [drawn_views(told["test"], g, 1, 0) for g in range(len(told["test"]))]
    numbers = np.flatnonzero(told["test"].num_views > 1)
    fewer = predict_mlp(config, model, reduced(told["test"], numbers, keep), cache)
    assert (np.abs(fewer - logits["test"][numbers]).max(axis=1) > 1e-3).all()


# A finished run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run after both stages."""
    run_dir = tmp_path_factory.mktemp("missing") / "run"
    make_run(run_dir, num_studies=50)
    run("extract", run_dir)
    run("fusion", run_dir)
    return run_dir


@pytest.mark.slow
def test_with_all_views_every_method_scores_what_the_runs_own_table_says(finished):
    loaded = load_run(finished)
    found = compare_missing([loaded], replicates=5)["conditions"]
    table = json.loads((finished / "fusion" / "metrics.json").read_text())["groups"]
    assert set(found["all views"]["methods"]) == {"fusion", "mlp", *BASELINES} == set(table["methods"])
    for method, own in found["all views"]["methods"].items():
        assert own["mAP"]["estimate"] == pytest.approx(table["methods"][method]["mAP"], abs=1e-6)
        if method != "fusion":
            lead = table["differences"][f"fusion - {method}"]["estimate"]
            assert found["all views"]["fusion_minus"][method]["estimate"] == pytest.approx(lead, abs=1e-6)
    ids, values, _ = read_predictions(finished / "fusion" / "predictions_test.csv")
    row_of = {image_id: row for row, image_id in enumerate(ids["image_id"])}
    test = read_manifest(finished / "manifest.csv").of_split("test")
    rows = [row_of[test.images["image_id"].iat[rows[0]]] for rows in loaded.test.rows]
    np.testing.assert_allclose(loaded.predict(loaded.test)["fusion"], values[rows], atol=1e-6)


@pytest.mark.slow
def test_a_condition_equals_a_slow_count_on_the_views_that_are_left(finished):
    loaded = load_run(finished)
    test, report = loaded.test, compare_missing([loaded, loaded], replicates=20)
    part, condition = report["conditions"]["one at random"], by_name(test)["one at random"]
    labels, images = test.labels[condition.numbers], sigmoid(loaded.images)
    wanted = {method: [] for method in ("fusion", *BASELINES)}
    for keep in condition.ways:
        left = [(g, int(np.flatnonzero(keep[g])[0])) for g in condition.numbers]
        for method in BASELINES:  # of one view, all of them are its own prediction
            single = np.stack([images[test.rows[g][v]] for g, v in left])
            wanted[method].append(mean_defined(per_class(single, labels).ap))
        logits = []
        for g, v in left:
            maps = torch.from_numpy(loaded.cache.read(test.ordinals[g][v : v + 1])).float()[None]
            types, slots = torch.tensor([[int(test.view_types[g][v])]]), torch.tensor([[0]])
            with torch.inference_mode():
                logits.append(loaded.model(maps, types, slots)[0].numpy())
        wanted["fusion"].append(mean_defined(per_class(np.stack(logits), labels).ap))
    for method, values in wanted.items():
        own = part["methods"][method]
        assert own["mAP"]["estimate"] == pytest.approx(np.mean(values), abs=1e-6)
        whole = loaded.predict(test)[method][condition.numbers]
        lost = np.mean(values) - mean_defined(per_class(whole, labels).ap)
        assert own["minus_all_views"]["estimate"] == pytest.approx(lost, abs=1e-6)
        assert own["minus_all_views"]["low"] <= own["minus_all_views"]["high"]
        assert len(own["by_run_and_draw"]) == 2 * DRAWS
    assert VIEW_WEIGHTS["LATERAL"] != VIEW_WEIGHTS["PA"], "weights of one view cancel"
    assert table_lines(report) == table_lines(compare_missing([loaded, loaded], replicates=20))


@pytest.mark.slow
def test_the_command_writes_table_and_plot_and_names_what_does_not_fit(finished, tmp_path, capsys):
    words = ["--run_dir", str(finished), "--out", str(tmp_path), "--replicates", "10"]
    main(words)
    text = (tmp_path / "missing_views.txt").read_text()
    assert text.rstrip() in capsys.readouterr().out
    assert "one at random:" in text
    assert (tmp_path / "missing_views.png").stat().st_size > 5000
    assert json.loads((tmp_path / "missing_views.json").read_text())["runs"] == 1
    other = tmp_path / "other"
    other.mkdir()
    for part in ("stage_one", "cache", "fusion"):
        (other / part).symlink_to(finished / part)
    manifest = read_manifest(finished / "manifest.csv")
    labels, test = manifest.labels.copy(), (manifest.images["split"] == "test").to_numpy(dtype=bool)
    labels[test] = 1 - labels[test]
    write_manifest(Manifest(manifest.images, labels, manifest.classes, manifest.root), other / "manifest.csv")
    with pytest.raises(InputError, match=r"other: its test groups, labels or classes are not those of the first run"):
        compare_missing([load_run(finished), load_run(other)])


@pytest.mark.slow
def test_the_scripts_start_from_another_folder_and_name_what_is_missing(finished, tmp_path):
    shutil.copytree(finished / "fusion" / "best", tmp_path / "fusion" / "best")
    for script, missing in (
        ("compare_missing_views.py", rf"error: {tmp_path / 'fusion' / 'metrics.json'}: no finished stage two"),
        ("classify_views.py", rf"error: {tmp_path / 'cache' / 'cache.json'}: no finished"),
    ):
        words = [sys.executable, str(ROOT / "scripts" / script), "--run_dir", str(tmp_path)]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(missing)
