"""Pseudo-labels fill in what nobody knows, and touch nothing else."""

import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

import extract.pseudo_label
from data.errors import InputError
from data.files import sha256_file
from data.images import read_image
from data.labels import label_text
from data.manifest import Manifest, read_manifest, write_manifest
from data.pseudo_labels import (
    fill_unknown,
    finding_given_any,
    in_classes_of,
    join_manifests,
    label_counts,
    refuse_same_content,
)
from data.tables import read_table
from data.transforms import Preprocessing
from extract.backbone import BackboneConfig, ImageClassifier
from extract.config import LossConfig
from extract.heads import HeadConfig
from extract.losses import class_statistics, multilabel_loss
from extract.pseudo_label import main
from tests.launch import launch, run
from tests.make_data import CLASSES, make_manifest, make_run, write_images

ROOT = Path(__file__).resolve().parents[1]
NAN = float("nan")


def external_set(root: Path, num_studies: int = 25, seed: int = 1) -> Manifest:
    """Another hospital: ids with an x, Edema and Hernia annotated in part, Nodule never, and one label of its own."""
    base = make_manifest(root, num_studies, seed)
    names = {name: "x" + base.images[name] for name in ("image_id", "study_id", "patient_id")}
    images = base.images.assign(**names, source="elsewhere").astype({"source": "str"})
    labels = base.labels[:, [2, 0, 1]].copy()  # Hernia, Edema, "ILD"
    study = np.unique(images["study_id"].to_numpy(dtype=object), return_inverse=True)[1]
    labels[study % 3 == 0, 1] = np.nan
    labels[study % 7 == 1, 0] = 0.25  # a soft label that somebody gave
    return Manifest(images, labels, ("Hernia", "Edema", "ILD"), root)


def probabilities_of(manifest: Manifest, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random((len(manifest), len(manifest.classes))).astype(np.float32)
    values[0], values[1] = 1e-9, 1.0
    return values


def is_train(manifest: Manifest) -> np.ndarray:
    return (manifest.images["split"] == "train").to_numpy(dtype=bool)


def test_known_labels_keep_their_bits_and_every_unknown_training_label_equals_a_slow_loop(tmp_path):
    external = in_classes_of(external_set(tmp_path), CLASSES, drop=["ILD"])
    before, p = external.manifest, probabilities_of(external.manifest)
    p[5] = np.nan  # no prediction
    after = fill_unknown(external, p)
    known = ~np.isnan(before.labels)
    assert after.labels[known].tobytes() == before.labels[known].tobytes()
    studies = before.images["study_id"].tolist()
    for i in range(len(before)):
        for c in range(len(CLASSES)):
            if known[i, c]:
                continue
            same = [j for j in range(len(before)) if studies[j] == studies[i] and j != 5]
            mean = sum(float(p[j, c]) for j in same) / max(1, len(same))
            wanted = min(max(round(mean, 4), 0.0001), 0.9999)
            if before.images["split"][i] != "train" or i == 5:
                assert np.isnan(after.labels[i, c])
            else:
                assert after.labels[i, c] == pytest.approx(wanted, abs=1e-7)
    filled = after.labels[~known & is_train(before)[:, None]]
    assert (np.nan_to_num(filled, nan=0.5) > 0).all()
    assert (np.nan_to_num(filled, nan=0.5) < 1).all()


def test_filled_labels_have_four_digits_in_the_table(tmp_path):
    external = in_classes_of(external_set(tmp_path), CLASSES, drop=["ILD"])
    after = fill_unknown(external, probabilities_of(external.manifest))
    texts = set(label_text(after.labels).ravel().tolist()) - {"", "0", "1"}
    assert len(texts) > 15
    assert all(float(text) * 10_000 == pytest.approx(round(float(text) * 10_000), abs=1e-9) for text in texts)
    assert max(map(len, texts)) <= 6


def test_validation_and_test_labels_are_never_filled(tmp_path):
    external = in_classes_of(external_set(tmp_path), CLASSES, drop=["ILD"])
    after = fill_unknown(external, probabilities_of(external.manifest))
    held_out = ~is_train(after)
    assert np.isnan(after.labels[held_out]).any()
    assert after.labels[held_out].tobytes() == external.manifest.labels[held_out].tobytes()


def test_a_class_that_the_set_does_not_annotate_is_unknown_and_others_are_matched_by_name(tmp_path):
    given = external_set(tmp_path)
    labels = in_classes_of(given, CLASSES, rename={"ILD": "Nodule"}, drop=["Hernia"]).manifest.labels
    np.testing.assert_array_equal(
        labels, np.column_stack([given.labels[:, 1], given.labels[:, 2], given.labels[:, 0] * NAN])
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "class 'ILD' of the external set is none of the teacher's"),
        ({"drop": ["ILD", "Oedema"]}, "--drop: the external set has no class 'Oedema'"),
        ({"rename": {"IDL": "Nodule"}}, "--rename: the external set has no class 'IDL'"),
        ({"rename": {"ILD": "Noduel"}}, r"\(close to 'Nodule'\)"),
        ({"rename": {"ILD": "Edema"}}, "'Edema' of the teacher has more than one external column: 'Edema', 'ILD'"),
        ({"joint": {"ILD": ["Nodule", "Mass"]}}, "--joint ILD: the teacher has no class 'Mass'"),
        ({"joint": {"ILD": ["Nodule"]}}, "at least two findings"),
        ({"joint": {"ILD": ["Nodule", "Edema"]}}, "image xi.* has this label and one of its findings' own"),
        ({"joint": {"ILD": ["Nodule", "Edema"], "Hernia": ["Nodule", "Edema"]}}, "'Nodule' is named more than once"),
    ],
)
def test_classes_that_do_not_match_are_refused_by_name(tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        in_classes_of(external_set(tmp_path), CLASSES, **options)


def test_findings_given_any_by_hand():
    found = finding_given_any(np.array([[0.3, 0.2], [1.0, 0.25], [0.0, 0.4], [0.0, 0.0], [1e-12, 3e-12]]))
    wanted = [[0.3 / 0.44, 0.2 / 0.44], [1.0, 0.25], [0.0, 1.0], [0.5, 0.5], [0.25, 0.75]]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_findings_given_any_equal_a_sum_over_all_outcomes():
    p = np.random.default_rng(0).random((7, 3))
    for row, found in zip(p, finding_given_any(p), strict=True):
        outcomes = list(product((0, 1), repeat=3))[1:]  # all but "none"
        weight = [np.prod([q if x else 1 - q for q, x in zip(row, outcome, strict=True)]) for outcome in outcomes]
        wanted = [sum(w for w, o in zip(weight, outcomes, strict=True) if o[k]) / sum(weight) for k in range(3)]
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_joint_label_says_none_or_which_is_likely(tmp_path):
    classes = ("Edema", "Mass", "Nodule")
    base = make_manifest(tmp_path, 4, max_views=1)
    images = base.images.assign(split="train").astype({"split": "str"})
    given = Manifest(images, np.array([[0], [1], [NAN], [0.5]], dtype=np.float32), ("Nodule/Mass",), tmp_path)
    external = in_classes_of(given, classes, joint={"Nodule/Mass": ["Nodule", "Mass"]})
    np.testing.assert_array_equal(external.manifest.labels, [[NAN, 0, 0], *[[NAN, NAN, NAN]] * 3])
    p = np.tile(np.array([0.1, 0.2, 0.3], dtype=np.float32), (4, 1))
    wanted = [[0.1, 0, 0], [0.1, 0.4545, 0.6818], [0.1, 0.2, 0.3], [0.1, 0.2273, 0.3409]]  # 0.2 / 0.44, 0.3 / 0.44
    np.testing.assert_allclose(fill_unknown(external, p).labels, wanted, atol=1e-6)


def test_a_joint_label_that_is_a_class_too_serves_both(tmp_path):
    given = make_manifest(tmp_path, 6, max_views=1)
    given = Manifest(given.images, given.labels[:, :1], ("Lung Lesion",), tmp_path)
    classes = ("Mass", "Lung Lesion", "Nodule")
    labels = in_classes_of(given, classes, joint={"Lung Lesion": ["Nodule", "Mass"]}).manifest.labels
    np.testing.assert_array_equal(labels[:, 1], given.labels[:, 0])
    np.testing.assert_array_equal(labels[:, 0], np.where(given.labels[:, 0] == 0, 0, NAN))


def joinable(tmp_path) -> tuple[Manifest, Manifest]:
    own = make_manifest(tmp_path / "a" / "images")
    return own, in_classes_of(external_set(tmp_path / "b"), CLASSES, drop=["ILD"]).manifest


def test_joined_are_all_own_rows_and_the_external_training_rows_with_files_where_they_were(tmp_path):
    own, external = joinable(tmp_path)
    joined, train = join_manifests(own, external), external.of_split("train")
    assert len(joined) == len(own) + len(train) < len(own) + len(external)
    assert joined.labels.tobytes() == own.labels.tobytes() + train.labels.tobytes()
    for name in ("image_id", "study_id", "patient_id", "view", "split", "source"):
        assert joined.images[name].tolist() == own.images[name].tolist() + train.images[name].tolist()
    where = [joined.image_path(i) for i in range(len(joined))]
    assert where == [own.image_path(i) for i in range(len(own))] + [train.image_path(i) for i in range(len(train))]
    write_manifest(joined, tmp_path / "run" / "manifest.csv")
    assert read_manifest(tmp_path / "run" / "manifest.csv").digest == joined.digest


def test_classes_in_another_order_are_joined_by_name(tmp_path):
    own, external = joinable(tmp_path)
    turned = Manifest(own.images, own.labels[:, ::-1].copy(), CLASSES[::-1], own.root)
    train = external.of_split("train").labels[:, ::-1]
    np.testing.assert_array_equal(join_manifests(turned, external).labels[len(own) :], train)
    with pytest.raises(InputError, match="other classes than the teacher: Nodule, Nodules"):
        join_manifests(Manifest(own.images, own.labels, ("Edema", "Nodules", "Hernia"), own.root), external)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_training_patient_who_is_to_be_scored_is_refused(tmp_path, split):
    own, external = joinable(tmp_path)
    patient = own.of_split(split).images["patient_id"][0]
    names = external.images["patient_id"].replace({external.of_split("train").images["patient_id"][0]: patient})
    leaking = Manifest(external.images.assign(patient_id=names), external.labels, CLASSES, external.root)
    with pytest.raises(InputError, match=f"1 patients of the external train split are in val or test.*{patient}"):
        join_manifests(own, leaking)


def test_patients_of_two_known_archives_are_not_the_same_though_their_ids_are(tmp_path):
    own, external = joinable(tmp_path)
    patient = own.of_split("test").images["patient_id"][0]
    first = external.of_split("train").images["patient_id"][0]
    names = external.images["patient_id"].replace({first: patient})
    alike = Manifest(external.images.assign(patient_id=names, source="brax"), external.labels, CLASSES, external.root)
    mimic = Manifest(own.images.assign(source="mimic_cxr_jpg"), own.labels, own.classes, own.root)
    joined = join_manifests(mimic, alike)
    assert joined.images["patient_id"].iloc[len(own)] == f"BRAX:{patient}"
    assert joined.images["patient_id"].iloc[: len(own)].tolist() == own.images["patient_id"].tolist()
    again = own.of_split("train").select(np.arange(2))
    again = Manifest(again.images.assign(source="mimic_cxr"), again.labels, CLASSES, own.root)
    with pytest.raises(InputError, match="2 images of the external train split are in the manifest to join, first"):
        join_manifests(mimic, again)


def test_sources_that_nothing_tells_apart_are_refused(tmp_path):
    own, external = joinable(tmp_path)
    with pytest.raises(InputError, match=r"both have the source 'made up'.*--source"):
        join_manifests(own, Manifest(external.images.assign(source="made up"), external.labels, CLASSES, tmp_path))


def test_an_image_that_is_a_copy_of_a_scored_one_is_refused(tmp_path):
    own, _ = joinable(tmp_path)
    content = [f"{i:x}" for i in range(len(own))]
    refuse_same_content(own, content)
    splits = own.images["split"].tolist()
    unreadable = ["" if i in (splits.index("train"), splits.index("test")) else text for i, text in enumerate(content)]
    refuse_same_content(own, unreadable)
    content[splits.index("train")] = content[splits.index("test")]
    with pytest.raises(InputError, match=r"1 training images are byte for byte.*\(test\)"):
        refuse_same_content(own, content)


def test_counts_are_those_of_the_training_images(tmp_path):
    external = in_classes_of(external_set(tmp_path), CLASSES, drop=["ILD"])
    p = probabilities_of(external.manifest)
    unreadable = int(np.flatnonzero(is_train(external.manifest))[-1])
    p[unreadable] = np.nan
    counts, labels = (
        label_counts(external.manifest, fill_unknown(external, p)),
        external.manifest.of_split("train").labels,
    )
    assert counts["Nodule"] == {"known": 0, "filled": len(labels) - 1, "unknown": 1}
    assert counts["Edema"]["known"] == np.isfinite(labels[:, 0]).sum() > 0


def test_unknown_labels_of_a_joined_set_contribute_nothing(tmp_path):
    joined = join_manifests(*joinable(tmp_path)).of_split("train")
    logits = torch.randn(len(joined), 3, requires_grad=True, generator=torch.Generator().manual_seed(0))
    multilabel_loss(logits, torch.from_numpy(joined.labels), class_statistics(joined.labels), LossConfig()).backward()
    unknown = np.isnan(joined.labels)
    assert unknown.any()
    assert ((logits.grad.numpy() == 0) == unknown).all()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a trained teacher, runs/own, and an external set, ext/manifest.csv."""
    folder = tmp_path_factory.mktemp("self_training")
    make_run(folder / "own")
    run("extract", folder / "own", "--epochs", "2", "--augmentation.hflip", "0.5")
    external = external_set(folder / "ext" / "images")
    colours = Manifest(external.images, np.nan_to_num(external.labels), external.classes, external.root)
    write_images(colours, seed=7)
    write_manifest(external, folder / "ext" / "manifest.csv")
    return folder


def words(made: Path, out: Path, **changes) -> list[str]:
    options = {
        "teacher": made / "own" / "stage_one",
        "manifest": made / "ext" / "manifest.csv",
        "join": made / "own" / "manifest.csv",
        "out": out / "manifest.csv",
        "drop": '["ILD"]',
        "num_workers": 0,
    } | changes
    return [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]


def slow_probabilities(model_dir: Path, path: Path) -> np.ndarray:
    """One image, one model built by hand from the recipe's parts, sigmoid written out."""
    image = Preprocessing.from_dict(json.loads((model_dir / "preprocessing.json").read_text()))
    head = HeadConfig(kind="ml_decoder", width=48, num_heads=4)
    model = ImageClassifier(BackboneConfig(name="test_convnext"), head, image.channels, len(CLASSES)).eval()
    model.load_state_dict(safetensors.torch.load_file(model_dir / "model.safetensors"))
    pixels = image(read_image(path))[None]
    with torch.no_grad():
        logits = torch.cat([model(pixels), model(pixels.flip(-1))]).double().numpy()
    return (1 / (1 + np.exp(-logits))).mean(axis=0)


@pytest.mark.slow
def test_the_command_writes_what_a_slow_prediction_says_and_leaves_the_rest_to_the_byte(made, tmp_path):
    main(words(made, tmp_path))
    own, external, joined = (read_manifest(d / "manifest.csv") for d in (made / "own", made / "ext", tmp_path))
    train = external.of_split("train")
    assert joined.images["image_id"].tolist() == own.images["image_id"].tolist() + train.images["image_id"].tolist()
    best = made / "own" / "stage_one" / "best"
    slow = np.array([slow_probabilities(best, train.image_path(i)) for i in range(len(train))])
    slow = pd.DataFrame(slow).groupby(train.images["study_id"]).transform("mean").to_numpy()
    table, before = read_table(tmp_path / "manifest.csv").iloc[len(own) :], read_table(made / "ext" / "manifest.csv")
    before = before[before["split"] == "train"]
    for c, name in enumerate(CLASSES):
        texts = before[name].tolist() if name in before else [""] * len(train)
        for old, new, value in zip(texts, table[name], slow[:, c], strict=True):
            assert new == old if old else abs(float(new) - value) < 6e-5
    own_text = read_table(made / "own" / "manifest.csv")
    assert read_table(tmp_path / "manifest.csv")[: len(own)][list(CLASSES)].equals(own_text[list(CLASSES)])
    card = json.loads((tmp_path / "pseudo_labels.json").read_text())
    assert card["labels"]["Nodule"] == {"known": 0, "filled": len(train), "unknown": 0}


@pytest.mark.slow
def test_without_flips_in_training_the_image_alone_counts(made, tmp_path):
    main(words(made, tmp_path / "both"))
    main(words(made, tmp_path / "alone", flip="false"))
    both, alone = (read_manifest(tmp_path / name / "manifest.csv").labels for name in ("both", "alone"))
    assert 0 < np.nanmax(np.abs(both - alone)) < 0.5


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes_as_one_on_two_processes(made, tmp_path, monkeypatch):
    launch(ROOT / "scripts" / "pseudo_label.py", *words(made, tmp_path / "two", batch_size=3))
    monkeypatch.setattr(extract.pseudo_label, "PART", 9)  # three whole batches
    predict, calls = extract.pseudo_label.predict_probabilities, []

    def dies(*args, **kwargs):
        calls.append(len(args[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*args, **kwargs)

    monkeypatch.setattr(extract.pseudo_label, "predict_probabilities", dies)
    with pytest.raises(SystemExit):
        main(words(made, tmp_path / "one", batch_size=3))
    assert not (tmp_path / "one" / "manifest.csv").exists()
    main(words(made, tmp_path / "one", batch_size=3))
    train = read_manifest(made / "ext" / "manifest.csv").of_split("train")
    assert sum(calls) - calls[2] == len(train), "each image predicted once, but for the part that was killed"
    assert (tmp_path / "one" / "manifest.csv").read_bytes() == (tmp_path / "two" / "manifest.csv").read_bytes()


@pytest.mark.slow
def test_both_stages_train_on_the_joined_manifest(made, tmp_path):
    main(words(made, tmp_path))
    run("extract", tmp_path, "--max_rejected", "0")
    rows = [json.loads(line) for line in (tmp_path / "stage_one" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(rows[-1]["train_loss"])
    run("fusion", tmp_path)  # which refuses studies whose images have different labels
    assert (tmp_path / "fusion" / "predictions_test.csv").exists()


def refusal(capsys, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code in (1, 2)
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_patients_the_teacher_remembers_are_refused_unless_asked_for(made, tmp_path, capsys):
    own = made / "own" / "manifest.csv"
    seen = words(made, tmp_path, manifest=own, join=None, drop="[]")
    line = refusal(capsys, seen)
    assert "patients to be labelled are among those that the teacher was trained on, first p000" in line
    assert not (tmp_path / "manifest.csv").exists()
    main([*seen, "--allow_seen"])
    assert (tmp_path / "manifest.csv").read_bytes() == own.read_bytes(), "everything was known already"


@pytest.mark.slow
def test_a_teacher_of_another_split_and_copies_of_scored_images_are_refused(made, tmp_path, capsys):
    own, external = read_manifest(made / "own" / "manifest.csv"), read_manifest(made / "ext" / "manifest.csv")
    swap = own.images["split"].replace({"train": "test", "test": "train"})
    write_manifest(
        Manifest(own.images.assign(split=swap), own.labels, CLASSES, own.root), tmp_path / "s" / "manifest.csv"
    )
    line = refusal(capsys, words(made, tmp_path / "out", join=tmp_path / "s" / "manifest.csv"))
    assert "the teacher was trained on" in line
    assert "patients of val or test" in line
    shutil.copytree(external.root, tmp_path / "copies")
    copies = Manifest(external.images, external.labels, external.classes, tmp_path / "copies")
    row = copies.images["split"].tolist().index("train")
    shutil.copyfile(own.of_split("test").image_path(0), copies.image_path(row))
    write_manifest(copies, tmp_path / "c" / "manifest.csv")
    line = refusal(capsys, words(made, tmp_path / "out", manifest=tmp_path / "c" / "manifest.csv"))
    assert "byte for byte an image of val or test" in line
    assert copies.images["image_id"][row] in line


@pytest.mark.slow
def test_an_unreadable_image_keeps_its_unknown_labels(made, tmp_path, capsys):
    external = read_manifest(made / "ext" / "manifest.csv")
    shutil.copytree(external.root, tmp_path / "images")
    broken = Manifest(external.images, external.labels, external.classes, tmp_path / "images")
    row = broken.images["split"].tolist().index("train")
    broken.image_path(row).write_bytes(b"no image")
    write_manifest(broken, tmp_path / "b" / "manifest.csv")
    arguments = words(made, tmp_path / "out", manifest=tmp_path / "b" / "manifest.csv", join=None)
    assert "1 of 49 images (2.0%) cannot be read" in refusal(capsys, arguments)
    main([*arguments, "--max_rejected", "0.1"])
    labels = read_manifest(tmp_path / "out" / "manifest.csv").labels
    assert np.isnan(labels[row, 1])
    assert np.isfinite(np.delete(labels, row, axis=0)[np.delete(is_train(broken), row), 1]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("preprocessing.json", "{}", "preprocessing.json: damaged"),
        ("model.safetensors", "", "model.safetensors: damaged"),
        ("classes.json", None, "classes.json is missing"),
    ],
)
def test_a_damaged_teacher_is_refused(made, tmp_path, capsys, name, text, found):
    shutil.copytree(made / "own" / "stage_one" / "best", tmp_path / "best")
    (tmp_path / "best" / name).unlink()
    if text is not None:
        (tmp_path / "best" / name).write_text(text)
    assert found in refusal(capsys, words(made, tmp_path / "out", teacher=tmp_path / "best"))


@pytest.mark.slow
def test_a_model_of_stage_two_is_no_teacher(made, tmp_path, capsys):
    shutil.copytree(made / "own" / "stage_one" / "best", tmp_path / "best")
    safetensors.torch.save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "best" / "model.safetensors")
    digests = json.loads((tmp_path / "best" / "digests.json").read_text())
    digests["model.safetensors"] = sha256_file(tmp_path / "best" / "model.safetensors")
    (tmp_path / "best" / "digests.json").write_text(json.dumps(digests))
    line = refusal(capsys, words(made, tmp_path / "out", teacher=tmp_path / "best"))
    assert "has no backbone" in line


def test_the_output_must_be_another_manifest(tmp_path, capsys):
    same = tmp_path / "manifest.csv"
    line = refusal(capsys, ["--teacher", "t", "--manifest", str(same), "--out", str(same)])
    assert "out must be another file" in line
    line = refusal(capsys, ["--teacher", "t", "--manifest", str(same), "--out", "labels.csv"])
    assert "out must be called manifest.csv" in line
