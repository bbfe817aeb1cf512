"""Several sets in one manifest: labels unknown where a set is silent, ids apart, shared images once, splits kept."""

from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import torch

import extract.train
from data.archives import archive_of
from data.errors import InputError
from data.join import join
from data.label_spaces import CXR_LT_2023_CLASSES, NIH_CHEST_XRAY14_CLASSES
from data.manifest import MANIFEST_COLUMNS, Manifest, read_manifest, write_manifest
from data.prepare import main
from data.sources import vinbigdata, vindr
from extract.losses import multilabel_loss
from tests.launch import run
from tests.make_vindr import write_vinbigdata, write_vindr

NAN = float("nan")


def made(root: Path, source: str, classes: tuple[str, ...], rows: list[tuple], **labels: list[float]) -> Manifest:
    """Rows of image, study, patient, split; labels by class, 0 where not given."""
    lines = [[i, s, p, "PA", f"{i.removesuffix('.png')}.png", split, source] for i, s, p, split in rows]
    values = np.zeros((len(rows), len(classes)), dtype=np.float32)
    for name, column in labels.items():
        values[:, classes.index(name.replace("_", " "))] = column
    return Manifest(pd.DataFrame(lines, columns=list(MANIFEST_COLUMNS), dtype="str"), values, classes, root)


def nih(root: Path, splits=("train", "train", "test"), **labels) -> Manifest:
    images = ("00000013_000", "00000013_001", "00000021_000")
    rows = [
        (f"{i}.png", i, str(int(i[:8])), split) for i, split in zip(images, splits, strict=True)
    ]  # patient 13, 13, 21
    return made(root, "nih", NIH_CHEST_XRAY14_CLASSES, rows, **labels)


def rsna(root: Path, splits=("train", "test", "val"), **labels) -> Manifest:
    images = ("00000013_001", "00000021_000", "00000034_000")
    rows = [(f"{i}.png", i, i[:8], split) for i, split in zip(images, splits, strict=True)]
    return made(root, "rsna", ("Lung Opacity", "Normal"), rows, **labels)


def column(manifest: Manifest, name: str) -> list[float]:
    return manifest.labels[:, manifest.classes.index(name)].tolist()


def test_labels_are_unknown_where_a_set_does_not_annotate(tmp_path):
    joined = join([nih(tmp_path, Effusion=[1, 0, 1]), vindr.read(write_vindr(tmp_path / "v"))], "ab", "cxr-lt-2023")
    assert joined.classes == CXR_LT_2023_CLASSES
    assert column(joined, "Pleural Effusion") == [1, 0, 1, 0, 0, 0, 1, 0]
    assert np.isnan(column(joined, "Fracture")).all()
    hernia = column(joined, "Hernia")
    assert hernia[:3] == [0, 0, 0]
    assert np.isnan(hernia[3:]).all()
    assert joined.images["split"].tolist()[-1] == "test"


def test_a_set_in_the_target_classes_keeps_its_rows_to_the_letter(tmp_path):
    rows = [("a", "s", "p", "train"), ("b", "t", "q", "val")]
    own = made(tmp_path, "cxr_lt_2023", CXR_LT_2023_CLASSES, rows, Fracture=[1, NAN], Edema=[0.5, 0])
    joined = join([own, nih(tmp_path)], "ab", "cxr-lt-2023")
    assert joined.images[:2].equals(own.images)
    np.testing.assert_array_equal(joined.labels[:2], own.labels)


def test_an_image_in_two_sets_is_one_row_and_the_first_known_label_counts(tmp_path, caplog):
    first, second = nih(tmp_path, Pneumonia=[0, 1, NAN]), rsna(tmp_path, Lung_Opacity=[0, 1, 1], Normal=[1, 0, 0])
    second.images["study_id"] = "other " + second.images["study_id"]
    joined = join([first, second], "ab", "cxr-lt-2024")
    assert joined.images["image_id"].tolist() == [*first.images["image_id"], "00000034_000.png"]
    assert joined.images["study_id"].tolist() == [*first.images["study_id"], "other 00000034_000"]
    assert joined.images["patient_id"].tolist() == ["00000013", "00000013", "00000021", "00000034"]  # 13 is 00000013
    assert joined.images["source"].tolist() == ["nih", "nih", "nih", "rsna"]
    assert column(joined, "Pneumonia") == [0, 1, 1, 1]  # unknown by NIH: RSNA's word
    assert column(joined, "Normal") == [0, 0, 0, 0]
    assert "2 images are in several sets, one row each; 2 labels are another set's word" in caplog.text
    turned = join([second, first], "ab", "cxr-lt-2024")
    assert column(turned, "Pneumonia") == [0, 1, 1, 0]
    assert column(turned, "Normal") == [1, 0, 0, 0]


def test_the_images_of_a_study_share_what_becomes_known(tmp_path):
    pairs = [("a1", "s", "p", "train"), ("a2", "s", "p", "train")]
    partly = made(tmp_path, "mimic_cxr_jpg", CXR_LT_2023_CLASSES, pairs, Edema=[NAN, NAN], Fracture=[1, 1])
    one = made(tmp_path, "cxr_lt_2023", CXR_LT_2023_CLASSES, pairs[1:], Edema=[1], Fracture=[0])
    joined = join([partly, one], "ab", "cxr-lt-2023")
    assert column(joined, "Edema") == [1, 1]
    assert column(joined, "Fracture") == [1, 1]


def test_vindr_and_vinbigdata_are_one_set(tmp_path):
    physionet = vindr.read(write_vindr(tmp_path / "a"))
    kaggle = vinbigdata.read(write_vinbigdata(tmp_path / "b"))
    same = dict(zip(physionet.images["image_id"], physionet.images["split"], strict=True))
    splits = pd.array(kaggle.images["image_id"].map(same).tolist(), dtype="str")
    kaggle = Manifest(kaggle.images.assign(split=splits), kaggle.labels, kaggle.classes, kaggle.root)
    joined = join([physionet, kaggle], "ab", "vindr")
    assert joined.images["image_id"].tolist() == physionet.images["image_id"].tolist()
    np.testing.assert_array_equal(joined.labels, physionet.labels)


def test_ids_alike_in_two_archives_stay_apart(tmp_path, caplog):
    rows = [("1", "1", "1", "train"), ("2", "1", "1", "train"), ("3", "3", "3", "test")]
    one = made(tmp_path, "chexpert", CXR_LT_2023_CLASSES, rows)
    other = made(tmp_path, "brax", CXR_LT_2023_CLASSES, [("9", "3", "8", "train"), ("1", "1", "1", "test")])
    joined = join([one, other], "ab", "cxr-lt-2023")
    assert joined.images["image_id"].tolist() == ["1", "2", "3", "BRAX:9", "BRAX:1"]
    assert joined.images["study_id"].tolist() == ["1", "1", "3", "BRAX:3", "BRAX:1"]
    assert joined.images["patient_id"].tolist() == ["1", "1", "3", "BRAX:8", "BRAX:1"]
    assert "ids of BRAX are alike" in caplog.text


def test_a_patient_in_two_splits_is_refused_or_kept_in_the_later_one(tmp_path):
    manifests = nih(tmp_path, ("val", "val", "test")), rsna(tmp_path, ("train", "test", "train"))
    with pytest.raises(
        InputError,
        match=r"1 patients are in several splits, first 00000013 .in val of a and in train of b.; --overlap drop",
    ):
        join(manifests, "ab", "cxr-lt-2023")
    joined = join(manifests, "ab", "cxr-lt-2023", "drop")
    assert joined.images["split"].tolist() == ["val", "val", "test", "train"]
    manifests = nih(tmp_path, ("train", "train", "test")), rsna(tmp_path, ("test", "test", "train"))
    joined = join(manifests, "ab", "cxr-lt-2023", "drop")
    assert joined.images["image_id"].tolist() == ["00000021_000.png", "00000013_001.png", "00000034_000.png"]
    assert joined.images["source"].tolist() == ["nih", "rsna", "rsna"]


def test_sources_that_nothing_tells_apart_are_refused(tmp_path):
    rows = [("1", "1", "1", "train")]
    one, other = (made(tmp_path, "clinic", ("Edema", "Hernia"), rows) for _ in range(2))
    with pytest.raises(InputError, match=r"a and b both have the source 'clinic'.*--source"):
        join([one, other], "ab", "cxr-lt-2023")


def test_an_image_of_two_patients_is_refused(tmp_path):
    second = rsna(tmp_path)
    second.images.loc[0, "patient_id"] = "00000099"
    with pytest.raises(InputError, match=r"b: image 00000013_001\.png is of patient 00000099, elsewhere of 00000013"):
        join([nih(tmp_path), second], "ab", "cxr-lt-2023")


def test_a_study_whose_images_differ_is_refused(tmp_path):
    rows = [("1", "s", "p", "train"), ("2", "s", "p", "train")]
    with pytest.raises(InputError, match="a: 1 studies hold images with different labels"):
        join([made(tmp_path, "nih", NIH_CHEST_XRAY14_CLASSES, rows, Edema=[0, 1])], "a", "cxr-lt-2023")


def test_files_stay_where_they_are(tmp_path):
    first, second = nih(tmp_path / "x" / "a"), vindr.read(write_vindr(tmp_path / "x" / "b" / "c"))
    rejected = Manifest(first.images, first.labels, first.classes, first.root, (("bad.png", "is cut"),))
    joined = join([rejected, second], "ab", "cxr-lt-2023")
    assert joined.root == (tmp_path / "x").resolve()
    assert [joined.image_path(n) for n in (0, 3)] == [
        (tmp_path / "x" / "a").resolve() / "00000013_000.png",
        (tmp_path / "x" / "b" / "c").resolve() / second.images["path"][0],
    ]
    assert joined.rejected == (("a/bad.png", "is cut"),)


@pytest.mark.parametrize(
    ("source", "archive"),
    [
        ("mimic_cxr_jpg", "MIMIC-CXR"),
        ("cxr_lt_2024_task_2", "MIMIC-CXR"),
        ("cxr_lt_2026", "PadChest"),
        ("cxr_lt_2026_nih", "ChestX-ray14"),
        ("padchest_rnn", "PadChest"),
        ("rsna", "ChestX-ray14"),
        ("VinDr-CXR", "VinDr-CXR"),
        ("brax", "BRAX"),
        ("made up", "made up"),
    ],
)
def test_sources_of_one_archive_are_recognised(source, archive):
    assert archive_of(source) == archive


def three_miniatures(root: Path) -> list[Path]:
    """VinDr, NIH and a set in the 26 classes, with small pictures."""
    rng = np.random.default_rng(0)
    numbers = range(12)
    splits = ["train"] * 8 + ["val", "val", "test", "test"]
    findings = [n % 2 for n in numbers]
    rows = [(f"000000{n:02d}_000.png", f"000000{n:02d}_000", str(n), split) for n, split in enumerate(splits)]
    chest14 = made(root / "nih", "nih", NIH_CHEST_XRAY14_CLASSES, rows, Effusion=findings, Hernia=findings[::-1])
    rows = [(f"m{n}", f"s{n}", f"p{n}", split) for n, split in enumerate(splits)]
    unsure = [NAN if n % 3 == 0 else value for n, value in enumerate(findings)]
    own = made(root / "own", "cxr_lt_2023", CXR_LT_2023_CLASSES, rows, Fracture=findings, Edema=unsure)
    paths = []
    for name, manifest in (("nih", chest14), ("own", own), ("vindr", vindr.read(write_vindr(root / "vindr")))):
        for row in range(len(manifest)):
            manifest.image_path(row).parent.mkdir(parents=True, exist_ok=True)
            manifest.image_path(row).write_bytes(imagecodecs.png_encode(rng.integers(0, 255, (24, 27), dtype=np.uint8)))
        write_manifest(manifest, root / name / "manifest.csv")
        paths.append(root / name / "manifest.csv")
    return paths


def test_stage_one_trains_on_three_joined_sets_and_their_unknown_cells_add_nothing(tmp_path, capsys, monkeypatch):
    paths = three_miniatures(tmp_path)
    out = tmp_path / "run" / "manifest.csv"
    main(["join", "--manifests", *map(str, paths), "--classes", "cxr-lt-2023", "--out", str(out)])
    assert "26 classes" in capsys.readouterr().out
    joined = read_manifest(out)
    assert len(joined) == 12 + 12 + 5
    unknown = np.isnan(joined.of_split("train").labels)
    assert 0.2 < unknown.mean() < 0.6
    steps = []

    def watched(logits, targets, *others):
        """The loss of the real step, whose gradient at every cell is written down."""
        logits.register_hook(lambda gradient: steps.append((gradient.clone(), targets.clone())))
        return multilabel_loss(logits, targets, *others)

    monkeypatch.setattr(extract.train, "multilabel_loss", watched)
    run("extract", tmp_path / "run")
    assert (tmp_path / "run" / "stage_one" / "best" / "model.safetensors").exists()
    gradients, targets = (torch.cat(parts).numpy() for parts in zip(*steps, strict=True))
    seen = np.isnan(targets)
    assert seen.sum() == unknown.sum()  # one epoch: every training image once
    assert len(targets) == len(unknown)
    assert (gradients[seen] == 0).all()
    assert (gradients[~seen] != 0).mean() > 0.9


def test_the_command_names_its_faults(tmp_path, capsys):
    paths = three_miniatures(tmp_path)
    for options, message in (
        (["--out", str(paths[0])], "is one of the manifests to join"),
        (["--out", str(tmp_path / "no" / "x.csv")], "must be called manifest.csv"),
    ):
        with pytest.raises(SystemExit):
            main(["join", "--manifests", *map(str, paths), "--classes", "cxr-lt-2023", *options])
        assert message in capsys.readouterr().err
