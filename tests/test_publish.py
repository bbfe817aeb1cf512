"""A published folder has a card without a blank, tells of nobody, and goes to no Hub unless asked, then privately."""

import platform
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import yaml

from data.calibration import fit_calibration
from data.errors import InputError
from data.manifest import read_manifest
from data.thresholds import fit_thresholds
from fusion.evaluate.report import evaluate
from fusion.evaluate.source import find_source
from fusion.fitted import save_fitted
from fusion.model_card import may_be_shared, model_card, read_facts, start_of
from fusion.model_parts import read_result
from fusion.predict import load_model
from fusion.publish import publish
from fusion.saved import read_saved
from fusion.training_data import DATA_SETS, data_sets_of
from tests.faults.crashes import Recorder
from tests.make_trained import make_trained

REPLICATES = 20
BLANK = re.compile(r"\|\s*\||None|\bnan\b|[:(] *$|\(\)|\[\]|- $")
LEADS_ON = ("Images by class:", "Per class, studies:", "share of positives):", "method that it follows:")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run after both stages, calibrated; not to be changed."""
    run_dir = tmp_path_factory.mktemp("publish") / "secret_name"
    make_trained(run_dir)
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 3)) < 0.4).astype(np.float32)
    logits = (rng.normal(size=(40, 3)) + labels).astype(np.float32)
    manifest = read_manifest(run_dir / "manifest.csv")
    fitted = fit_calibration(logits, labels, manifest.classes, "temperature", min_positives=1)
    chosen = fit_thresholds(fitted(logits), labels, manifest.classes, min_positives=1)
    save_fitted(
        run_dir / "fusion", fitted, chosen, read_saved(run_dir / "fusion/logits_val.csv", manifest, ("val",), "study")
    )
    return run_dir


@pytest.fixture(scope="module")
def facts(run_dir):
    return read_facts(run_dir / "fusion", read_result(run_dir / "fusion"), replicates=REPLICATES)


def blanks(card: str) -> list[str]:
    """Lines of a card's text in which something is missing."""
    body = card.split("---\n", 2)[2].split("```bibtex")[0].replace("views=[None", "").replace("table()", "")
    return [line for line in body.splitlines() if BLANK.search(line) and not line.endswith(LEADS_ON)]


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n", 2)[1])


def test_the_card_has_no_blank_and_its_front_matter_has_the_hubs_fields(run_dir, facts):
    card = model_card(facts, "apache-2.0")
    assert blanks(card) == []
    head = front_matter(card)
    assert head["license"] == "apache-2.0"
    assert head["pipeline_tag"] == "image-classification"
    assert {"library_name", "tags", "metrics", "model-index"} <= set(head)
    source = find_source(run_dir / "fusion", "test", None, None, None)
    report = evaluate(source, read_manifest(run_dir / "manifest.csv"), None, None, 0.9, REPLICATES)
    (index,) = head["model-index"]
    found = {one["type"]: one["value"] for one in index["results"][0]["metrics"]}
    assert found["mAP"] == pytest.approx(report["groups"]["mAP"], abs=1e-4)
    assert found["roc_auc"] == pytest.approx(report["groups"]["mAUROC"], abs=1e-4)


def test_the_card_tells_what_the_runs_files_tell(run_dir, facts):
    card, splits = model_card(facts), facts.manifest["splits"]
    rows = {line.split(" | ")[0].strip("| "): line for line in card.splitlines() if line.startswith("| ")}
    assert facts.manifest["digest"] in card
    for split in ("train", "val", "test"):
        counts = [splits[split][key] for key in ("images", "studies", "patients")]
        assert rows[split] == f"| {split} | {' | '.join(map(str, [*counts, *splits[split]['views'].values()]))} |"
    positives = [splits[split]["positives"]["Nodule"] for split in ("train", "val", "test")]
    unknown = splits["train"]["unknown"]["Nodule"]
    assert f"| Nodule | {positives[0]} | {unknown} | {positives[1]} | {positives[2]} |" in card
    for name, value in zip(facts.parts.classes, facts.parts.fitted[1].values, strict=True):
        assert f"| {name} | {value:.3f} | for this class |" in card
    assert "fitted on 40" not in card, "what it was fitted on comes from calibration.json"
    assert f"temperature, fitted on {facts.fitted_on['rows']} studies of logits_val.csv" in card
    assert "- backbone: 1 epochs" in card
    assert "| views in the group | studies |" in card
    for number, part in facts.evaluation["groups"]["parts"]["views in the group"].items():
        assert f"| {number} | {part['rows']} | {part['patients']} |" in card
    assert facts.environment["packages"]["torch"] in card
    assert "By sex and age: not recorded." in card


def test_the_card_tells_of_no_path_person_host_or_text_of_the_users_table(run_dir, facts):
    card, manifest = model_card(facts), read_manifest(run_dir / "manifest.csv")
    ids = {text for name in ("image_id", "study_id", "patient_id", "path") for text in manifest.images[name]}
    words = set(re.findall(r"[\w./-]+", card))
    assert not ids & words
    assert platform.node() not in words
    for secret in ("secret_name", str(run_dir.parent), "made up"):
        assert secret not in card
    assert "a data set that this software has no account of" in card


def test_what_no_file_tells_is_said_to_be_not_recorded(run_dir, tmp_path):
    bare = tmp_path / "run"
    shutil.copytree(run_dir, bare, ignore=shutil.ignore_patterns("images", "last", "previous"))
    for name in ("manifest.csv", "manifest.json", "environment.json", "stage_one/metrics.jsonl", "fusion/metrics.jsonl",
                 "fusion/predictions_test.csv", "fusion/best/calibration.json"):  # fmt: skip
        (bare / name).unlink()
    card = model_card(read_facts(bare / "fusion", read_result(bare / "fusion"), replicates=REPLICATES))
    assert blanks(card) == []
    assert card.count("not recorded") >= 7
    assert "Not calibrated" in card
    assert "model-index" not in front_matter(card)
    assert front_matter(card)["license"] == "other"


def test_only_data_known_to_be_free_may_be_shared(facts):
    free = [("phantom",), ("nih_chest_xray14", "phantom"), ("nih_cxr_lt",)]
    kept = [("mimic_cxr_jpg",), ("cxr_lt_2023", "phantom"), ("cxr_lt_2026",), ("padchest_rnn",), ("chexpert_plus",),
            ("vindr",), ("brax",), ("rsna",), ("dicom",), ("my hospital",), ()]  # fmt: skip
    for sources in free + kept:
        assert may_be_shared(replace(facts, data_sets=data_sets_of(sources))) == (sources in free), sources
    assert not may_be_shared(replace(facts, data_sets=data_sets_of(("phantom",)), others=True))
    assert data_sets_of(("mimic_cxr", "cxr_lt_2024_task_1")) == [DATA_SETS["MIMIC-CXR"]]
    card = model_card(replace(facts, data_sets=[DATA_SETS["phantom"]]))
    assert "may not be shared" not in card
    assert "may not be shared" in model_card(facts)


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("backbone: {name: a, pretrained: false}", False),
        ("backbone: {name: a, pretrained: true}", False),
        ("backbone: {name: a, pretrained: /home/eva/w.safetensors}", True),
        ("backbone: {name: a}\ndistillation: {teacher: /home/eva/run}", True),
        (None, True),
    ],
)
def test_weights_that_others_made_are_told_of_without_their_path(tmp_path, text, others):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    said, found = start_of(path)
    assert found == others
    assert "eva" not in said


class FakeHub:
    """What `HfApi` is asked to do."""

    def __init__(self, private: bool) -> None:
        self.private, self.calls = private, []

    def __call__(self) -> "FakeHub":
        return self

    def create_repo(self, name, **options):
        self.calls.append(("create", name, options))

    def model_info(self, name):
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_a_folder_is_written_with_its_card_loads_strictly_and_is_pushed_only_when_allowed(
    run_dir, tmp_path, monkeypatch, capsys
):
    hub = FakeHub(private=True)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    out, options = tmp_path / "model", {"push": "eva/cxr", "replicates": REPLICATES}
    with pytest.raises(InputError, match="trained on a data set that this software has no account of, whose terms"):
        publish(run_dir / "fusion", out, **options)
    assert not out.exists()
    publish(run_dir / "fusion", out, license="mit", i_may_share_these_weights=True, **options)
    assert [call[:2] for call in hub.calls] == [("create", "eva/cxr"), ("upload", "eva/cxr")]
    assert hub.calls[0][2]["private"] is True
    assert {"README.md", "LICENSE", "model.safetensors", "example", "backbone"} <= set(hub.calls[1][2])
    assert "under mit" in (out / "LICENSE").read_text()
    assert load_model(out, "cpu").classes == ("Edema", "Nodule", "Hernia")
    said = capsys.readouterr().out
    assert "3 classes per study; images 64 px; calibrated" in said
    assert "uploaded, private: eva/cxr" in said


def test_without_push_the_hub_is_not_asked_and_no_licence_is_made_up(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("asked the Hub"))
    with Recorder(tmp_path) as recorder:
        publish(run_dir / "fusion", tmp_path / "model", replicates=REPLICATES)
    assert recorder.operations["rename"] >= 2
    assert recorder.disorder == []  # every byte is on disk before its name, every name before the next
    assert (tmp_path / "model" / "README.md").is_file()
    assert not (tmp_path / "model" / "LICENSE").exists()


def test_a_public_repository_and_bad_names_are_refused(facts, run_dir, tmp_path, monkeypatch):
    from fusion.publish import check_push, upload

    hub = FakeHub(private=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    with pytest.raises(InputError, match="there is a public repository of that name"):
        upload(tmp_path, "eva/cxr")
    assert [call[0] for call in hub.calls] == ["create"]
    with pytest.raises(InputError, match="wanted owner/name"):
        check_push("../cxr", facts, allowed=True)
    with pytest.raises(InputError, match="wanted an identifier in small letters"):
        publish(run_dir / "fusion", tmp_path / "new", license="Apache 2.0\n")

    def refuses(*_, **__):
        raise OSError("403 Forbidden\nfor eva")

    monkeypatch.setattr(hub, "create_repo", refuses)
    with pytest.raises(InputError, match="not uploaded \\(403 Forbidden for eva\\)"):
        upload(tmp_path, "eva/cxr")
