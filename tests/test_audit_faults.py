"""The check before any training: 33 faults planted in a data set are all found by name, and a clean set has none."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.audit.command import main
from data.audit.planting import write_copy
from data.manifest import MANIFEST_COLUMNS, Manifest, write_manifest
from tests.test_audit import picture

N, HEIGHT, WIDTH = 90, 230, 210
SPLITS = ["train"] * 60 + ["val"] * 10 + ["test"] * 20
COPIED = {70: "flip", 71: "crop", 72: "encoding", 73: "brightness", 74: "bytes", 75: "bytes"}
"""Test images that are pictures of training images, and how they were changed."""
TURNED = {4: 1, 5: 2, 6: 3, 62: 1, 77: 2}
"""Images and by how many quarter turns."""
INVERTED, FOREIGN, BLANK, UNREADABLE = (7, 8, 9, 63, 78), (10, 11, 64, 79), (12, 13, 65, 80), (14, 15, 16, 17, 66, 81)
PATIENTS, SEEN = [f"p{row}" for row in range(N)], ["p82", "p83", "p84"]
"""An image each; three of the test patients were learned from before."""


def chest(seed: int) -> np.ndarray:
    """Two dark lungs on a grey ground, and what differs from patient to patient; uint8."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    lungs = np.where(((np.abs(x) - 0.4) ** 2 / 0.07 + (y + 0.1) ** 2 / 0.3) < 1, 20, 150) + 40 * y
    return np.clip(0.65 * lungs + 0.4 * picture(seed, HEIGHT, WIDTH), 0, 255).astype(np.uint8)


def write_set(root, patients, splits, at=0, name="manifest.csv"):
    """A faultless manifest of one frontal image for each patient, their pictures numbered from `at`."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for row, (patient, split) in enumerate(zip(patients, splits, strict=True), start=at):
        Image.fromarray(chest(row)).save(root / f"images/{row}.png")
        rows.append([f"i{row}", f"s{row}", patient, "PA", f"images/{row}.png", split, "here"])
    images = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS), dtype="str")
    write_manifest(Manifest(images, np.zeros((len(rows), 1), np.float32), ("Edema",), root), root / name)
    return str(root / name)


def plant_faults(images) -> None:
    """Everything that is wrong with single files, and copies of others."""
    for row, kind in COPIED.items():
        source, target = images / f"{row - 50}.png", images / f"{row}.png"
        if kind == "bytes":
            shutil.copyfile(source, target)
            continue
        write_copy(source, images / "copy.jpg", kind, np.random.default_rng(row))
        Image.open(images / "copy.jpg").save(target)
    for row, turns in TURNED.items():
        Image.fromarray(np.rot90(chest(row), turns)).save(images / f"{row}.png")
    for row in INVERTED:
        Image.fromarray(255 - chest(row)).save(images / f"{row}.png")
    for row in FOREIGN:
        Image.fromarray(picture(1000 + row)).save(images / f"{row}.png")
    for row, grey in zip(BLANK, (0, 255, 128, 77), strict=True):
        Image.fromarray(np.full((HEIGHT, WIDTH), grey, np.uint8)).save(images / f"{row}.png")
    whole = (images / "14.png").read_bytes()
    broken = (b"", b"no image", whole[:-60], whole[:4000], whole[:33] + bytes(len(whole) - 33))
    for row, content in zip(UNREADABLE, broken, strict=False):
        (images / f"{row}.png").write_bytes(content)
    (images / f"{UNREADABLE[-1]}.png").unlink()


def rows_of(table, column):
    """The numbers of the pictures that a table names."""
    return [int(name) for name in table[column].str.extract(r"i(\d+)$")[0]]


def test_thirty_three_planted_faults_are_found_by_name_and_nothing_else(tmp_path, capsys):
    manifest = write_set(tmp_path, PATIENTS, SPLITS)
    known = write_set(tmp_path, SEEN, ["train"] * len(SEEN), at=N, name="known.csv")
    plant_faults(tmp_path / "images")
    with pytest.raises(SystemExit) as left:
        main([manifest, "--pretraining", known, "--out", str(tmp_path / "out")])
    assert left.value.code == 1
    assert "6 near-duplicate pairs, 24 images to look at" in capsys.readouterr().out
    flags, copies, leaks = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("flags", "copies", "leaks"))
    found = {fault: sorted(rows_of(rows, "image")) for fault, rows in flags.groupby("fault")}
    turned = found["rotated"] + found["perhaps no chest"]  # what is no chest may look like a turned one
    assert set(TURNED) <= set(found["rotated"])
    assert sorted(turned) == sorted([*TURNED, *FOREIGN])
    assert found["inverted"] == sorted(INVERTED)
    assert found["blank"] == sorted(BLANK)
    assert found["unreadable"] == sorted(UNREADABLE)
    pairs = zip(rows_of(copies, "first"), rows_of(copies, "second"), strict=True)
    assert {tuple(sorted(pair)) for pair in pairs} == {(row - 50, row) for row in COPIED}
    assert copies["leak"].all()
    assert leaks["id"].tolist() == SEEN
    assert sum(map(len, (COPIED, TURNED, INVERTED, FOREIGN, BLANK, UNREADABLE, SEEN))) == 33


def test_a_clean_set_has_none(tmp_path, capsys):
    main([write_set(tmp_path, PATIENTS, SPLITS), "--out", str(tmp_path / "out")])
    assert "0 near-duplicate pairs, 0 images to look at\nno leak found" in capsys.readouterr().out
