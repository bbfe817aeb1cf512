"""The audit finds who and what is on two sides, copies however altered, and images that look wrong; and says so."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import data.audit.candidates
from data.archives import archive_of
from data.audit.appearance import flag_images
from data.audit.candidates import VARIANTS, Variant, find_candidates, grids
from data.audit.certificate import certificate, digested_text
from data.audit.command import main
from data.audit.counts import count, pairs_of_classes
from data.audit.duplicates import equal_files, find_copies, groups_of
from data.audit.measure import best_score
from data.audit.page import html_page, markdown_page
from data.audit.planting import KINDS, plant
from data.audit.result import audit
from data.audit.scale import measure_scale
from data.audit.sides import Collection, one_table, overlaps
from data.audit.thumbnails import SIDE, Thumbnails, equalised, read_thumbnails, thumbnail, without_bars
from data.files import sha256_file
from data.manifest import MANIFEST_COLUMNS, Manifest, write_manifest
from data.sources import vinbigdata, vindr
from tests.make_data import make_manifest
from tests.make_vindr import write_vinbigdata, write_vindr


def picture(seed: int, height: int = 230, width: int = 210) -> np.ndarray:
    """A smooth random picture, uint8: blobs of several sizes."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width))
    for cells, weight in ((4, 3.0), (9, 2.0), (20, 1.5), (40, 0.7)):
        blob = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        total += weight * np.asarray(blob.resize((width, height), Image.Resampling.BICUBIC))
    total -= total.min()
    return np.rint(255 * total / total.max()).astype(np.uint8)


def collection(root, ids, patients, splits, source="here", name="a", role="data", pictures=True) -> Collection:
    """A manifest of one image per study, written with its pictures (each image's seed is its id's number)."""
    rows = [[i, f"s{i}", p, "PA", f"{i}.png", s, source] for i, p, s in zip(ids, patients, splits, strict=True)]
    labels = np.arange(len(ids) * 2).reshape(-1, 2) % 3 == 0
    images = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS), dtype="str")
    root.mkdir(parents=True, exist_ok=True)
    if pictures:
        for i in ids:
            Image.fromarray(picture(int(i.strip("abcdefghijklmnopqrstuvwxyz")))).save(root / f"{i}.png")
    manifest = Manifest(images, labels.astype(np.float32), ("Edema", "Hernia"), root)
    write_manifest(manifest, root / "manifest.csv")
    return Collection(name, manifest, role)


@pytest.fixture
def two_sets(tmp_path):
    first = collection(tmp_path / "a", [f"i{n}" for n in range(9)], [f"p{n // 2}" for n in range(9)],
                       ["train"] * 6 + ["val"] * 2 + ["test"])  # fmt: skip
    second = collection(tmp_path / "b", [f"k{n}" for n in range(20, 25)], ["p4", "q1", "q2", "q3", "q4"],
                        ["train"] * 5, name="b", role="pretraining")  # fmt: skip
    return first, second


def test_a_patient_of_a_pretraining_set_in_test_is_a_leak_found_by_name(two_sets):
    found = audit(list(two_sets), progress=False)
    assert [(overlap.name, overlap.leaks) for overlap in found.patients] == [("p4", True)]
    assert found.patients[0].places == {"a: test": 1, "b: pretraining": 1}
    assert found.num_leaks == 1
    assert found.verdict == "1 patient on two sides"


def test_sides_that_do_not_overlap_are_no_leak(tmp_path, two_sets):
    found = audit([two_sets[0]], progress=False)
    assert (found.num_leaks, found.copies, found.images) == (0, [], [])
    both_train = collection(tmp_path / "c", ["k30"], ["p0"], ["train"], name="c")
    again = audit([two_sets[0], both_train], progress=False)
    assert again.num_leaks == 0
    assert again.patients[0].places == {"a: train": 2, "c: train": 1}


def test_ids_compare_within_an_archive_only(tmp_path):
    one = collection(tmp_path / "a", ["i1", "i2"], ["17", "18"], ["test", "test"], source="nih_cxr14")
    other = collection(tmp_path / "b", ["k3", "k4"], ["17", "18"], ["train"] * 2, source="RSNA-2018", name="b")
    apart = collection(tmp_path / "c", ["m5", "m6"], ["00000017", "x"], ["train"] * 2, source="elsewhere", name="c")
    assert [archive_of(s) for s in ("nih_cxr14", "RSNA-2018", "elsewhere")] == ["ChestX-ray14"] * 2 + ["elsewhere"]
    assert archive_of("VinBigData") == archive_of("vindr_cxr") != archive_of("mimic") == archive_of("CXR-LT 2024")
    assert [o.name for o in overlaps(one_table([one, other]), "patient_id") if o.leaks] == ["00000017", "00000018"]
    found = audit([one, apart], progress=False)
    assert found.num_leaks == 0
    assert [(s.kind, s.examples, s.count) for s in found.shared] == [("patient_id", ["00000017"], 1)]


def test_two_forms_of_one_archive_overlap_by_name(tmp_path):
    physionet, kaggle = vindr.read(write_vindr(tmp_path / "a")), vinbigdata.read(write_vinbigdata(tmp_path / "b"))
    table = one_table([Collection("physionet", physionet), Collection("kaggle", kaggle, "pretraining")])
    split = dict(zip(physionet.images["image_id"], physionet.images["split"], strict=True))
    shared = set(split) & set(kaggle.images["image_id"])
    assert len(shared) == 4
    for column in ("image_id", "patient_id"):
        found = overlaps(table, column)
        assert {overlap.name for overlap in found} == shared
        assert {overlap.name for overlap in found if overlap.leaks} == {
            name for name in shared if split[name] != "train"
        }
    table_says = collection(tmp_path / "c", ["i1"], ["13"], ["test"], source="nih", pictures=False)
    image_says = collection(tmp_path / "d", ["k2"], ["00000013"], ["train"], "rsna", "d", pictures=False)
    assert [(o.name, o.leaks) for o in overlaps(one_table([table_says, image_says]), "patient_id")] == [
        ("00000013", True)
    ]


def test_a_copy_of_a_training_picture_in_test_is_a_leak_whatever_its_name(two_sets, tmp_path):
    first, _ = two_sets
    Image.fromarray(picture(3)[:, ::-1]).save(first.manifest.root / "i8.png")  # of test
    found = audit([first], progress=False)
    assert [(c.first, c.second, c.how) for c in found.leaking_copies] in ([(3, 8, "mirrored")], [(8, 3, "mirrored")])
    assert found.leaking_pictures == found.num_leaks == 1


def test_planted_copies_of_every_kind_are_found_and_nothing_else(tmp_path):
    N = 24
    real = collection(tmp_path / "a", [f"i{n}" for n in range(N)], [f"p{n}" for n in range(N)], ["train"] * N)
    planted = plant(real.manifest, tmp_path / "planted", N // len(KINDS), seed=0)
    table = one_table([real, Collection("planted", planted)])
    files = [
        real.manifest.root / path if n < N else tmp_path / "planted" / path for n, path in enumerate(table["path"])
    ]
    copies = find_copies(read_thumbnails(files, progress=False), files, progress=False)
    names = {tuple(sorted((table["image_id"][c.first], table["image_id"][c.second]), key=len)) for c in copies}
    wanted = {(name.rpartition(".")[0], name) for name in planted.images["image_id"]}
    assert names <= wanted
    assert len(names) >= len(wanted) - 1
    assert plant(real.manifest, tmp_path / "again", N // len(KINDS), seed=0).digest == planted.digest
    for n in range(N):
        assert sha256_file(tmp_path / f"planted/images/{n:04d}.jpg") == sha256_file(
            tmp_path / f"again/images/{n:04d}.jpg"
        )


def test_thumbnails_do_not_see_bars_brightness_or_size():
    image = picture(1).astype(np.float32) / 255
    plain = thumbnail(image).astype(int)
    padded = np.pad(image, ((40, 0), (17, 30)))
    assert without_bars(padded).shape == image.shape
    assert np.abs(thumbnail(0.2 + 0.7 * image) - plain).max() <= 1
    assert np.abs(thumbnail(padded) - plain).max() <= 1
    assert np.abs(thumbnail(np.sqrt(image)) - plain).mean() < 2
    values = np.array([[0.1, 0.5], [0.5, 0.9]])
    np.testing.assert_array_equal(equalised(values), [[0, 128], [128, 255]])


def test_candidates_equal_a_slow_search_over_all_variants():
    pixels = np.stack([thumbnail(picture(n) / np.float32(255)) for n in range(9)])
    pixels[8] = 255 - pixels[4][:, ::-1]  # mirrored and inverted
    pairs = find_candidates(pixels, progress=False)
    found = dict(zip(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True), pairs.similarity, strict=True))
    assert len({frozenset(pair) for pair in found}) == len(found)
    assert max(found, key=lambda pair: found[pair]) in {(4, 8), (8, 4)}
    stored = grids(pixels, Variant())  # fewer than 16 images: not projected
    slow = np.max([grids(pixels, variant) @ stored.T for variant in VARIANTS], axis=0)
    for (one, other), similarity in found.items():
        assert similarity == pytest.approx(max(slow[one, other], slow[other, one]), abs=1e-5)


def test_large_sets_are_searched_in_cells_that_find_the_same_copies(monkeypatch, capfd):
    pixels = np.stack([thumbnail(picture(n) / np.float32(255)) for n in range(240)])
    rng = np.random.default_rng(0)
    for n in range(30):  # the last ones are the first ones, mirrored and grainy
        grainy = pixels[n][:, ::-1] + rng.normal(scale=8, size=(SIDE, SIDE))
        pixels[210 + n] = np.clip(grainy, 0, 255)
    exact = find_candidates(pixels, progress=False)
    monkeypatch.setattr(data.audit.candidates, "EXACT_UP_TO", 100)
    monkeypatch.setattr(data.audit.candidates, "CELLS_PROBED", 2)  # of 6
    cells = find_candidates(pixels, progress=False)
    assert len(cells.first) != len(exact.first)  # some neighbours lie in cells that were not looked into
    for pairs in (exact, cells):
        found = {(min(pair), max(pair)) for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}
        assert len({(n, 210 + n) for n in range(30)} - found) <= 1
    assert "WARNING" not in "".join(capfd.readouterr())


def test_equal_files_and_copies_of_copies_are_one_picture():
    originals, copies = equal_files(["x", "y", "", "x", "z", "x", ""])
    assert originals.tolist() == [0, 1, 4]
    assert [(c.first, c.second) for c in copies] == [(0, 3), (0, 5)]
    chain = [*copies, copies[0]._replace(first=4, second=3)]
    assert groups_of(chain, 7).tolist() == [0, 1, 2, 0, 0, 0, 6]


def test_blank_inverted_turned_and_foreign_pictures_are_flagged():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    chest = np.where(((np.abs(x) - 0.4) ** 2 / 0.07 + (y + 0.1) ** 2 / 0.3) < 1, 0.1, 0.8) + 0.15 * y
    pixels = np.stack([equalised(chest + rng.normal(0, 0.2, chest.shape)) for _ in range(60)])
    pixels[50], pixels[51] = 255 - pixels[50], np.rot90(pixels[51])
    pixels[52] = equalised(rng.normal(size=chest.shape))
    contrast = np.full(60, 0.7, np.float32)
    contrast[53], contrast[54] = 0.01, np.nan
    reasons = ["is blank: all pixels are equal" if n == 54 else "" for n in range(60)]
    thumbnails = Thumbnails(pixels, contrast, ["x"] * 60, reasons)
    flags, notes = flag_images(thumbnails, ["PA"] * 58 + ["LATERAL", "UNKNOWN"])
    assert sorted((flag.row, flag.fault) for flag in flags) == [
        (50, "inverted"), (51, "rotated"), (52, "perhaps no chest"), (53, "blank"), (54, "blank"),
    ]  # fmt: skip
    assert "lateral" in notes[0]


def test_counts_equal_loops_over_rows(tmp_path):
    manifest = make_manifest(tmp_path, num_studies=17)
    images, counts = manifest.images, count(manifest)
    frontal = {s for s, v in zip(images["study_id"], images["view"], strict=True) if v in ("PA", "AP")}
    unknown = {s for s, v in zip(images["study_id"], images["view"], strict=True) if v == "UNKNOWN"}
    assert counts.missing["studies without a frontal view"] == sorted(set(images["study_id"]) - frontal - unknown)
    assert sum(size * n for size, n in counts.study_sizes.items()) == len(manifest)
    for a in range(3):
        for b in range(3):
            assert counts.together[a, b] == sum(1 for row in manifest.labels if row[a] == 1 and row[b] == 1)
    one, other, number, lift = pairs_of_classes(counts)[0]
    a, b = (manifest.labels[:, manifest.classes.index(name)] == 1 for name in (one, other))
    assert number == (a & b).sum()
    assert lift == pytest.approx((a & b).mean() / (a.mean() * b.mean()))


def test_the_least_score_is_chosen_in_the_middle_of_the_gap():
    assert best_score(np.array([0.9, 0.97, 0.4]), np.array([0.8, 0.5])) == pytest.approx(0.85)


def test_the_command_writes_everything_and_ends_with_status_1_for_a_leak(two_sets, tmp_path, capsys):
    first, _ = two_sets
    paths = [str(each.manifest.root / "manifest.csv") for each in two_sets]
    main([paths[0], "--workers", "2"])
    assert "no leak found" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([paths[0], "--pretraining", paths[1], "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    out = capsys.readouterr()
    assert "leak: patient p4 of here: a: test, b: pretraining" in out.out
    assert "error: 1 patient on two sides" in out.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"audit.html", "audit.md", "card_0.md", "card_1.md", "certificate.json", "copies.csv", "flags.csv",
                     "leaks.csv"}  # fmt: skip
    statement = json.loads((tmp_path / "out/certificate.json").read_text())
    assert statement["patients_on_two_sides"] == 1
    assert statement["manifests"][0]["sha256"] == sha256_file(first.manifest.root / "manifest.csv")
    text = json.dumps(statement) + (tmp_path / "out/card_0.md").read_text()
    ids = [*first.manifest.images["image_id"], *first.manifest.images["study_id"], str(tmp_path)]
    assert not [name for name in ids if f'"{name}"' in text or f" {name} " in text or name in text.split()]
    page = (tmp_path / "out/audit.html").read_text()
    assert "p4" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_whole_command_finds_the_copies_among_made_up_pictures(tmp_path):
    pixels = np.stack([thumbnail(picture(n) / np.float32(255)) for n in range(11)])
    numbers = measure_scale(pixels, tmp_path, 50, seed=0)
    assert {key: numbers[key] for key in ("images", "status", "planted", "planted_found", "others_found")} == {
        "images": 50, "status": 1, "planted": 5, "planted_found": 5, "others_found": 0,
    }  # fmt: skip
    assert sum(numbers["by_stage"].values()) <= numbers["processor_seconds"] + 0.5  # each is rounded
    assert len(pd.read_csv(tmp_path / "manifest.csv")) == 50


def test_ids_cannot_write_markup_into_the_page(tmp_path):
    bad = collection(tmp_path / "a", ["i1", "i2"], ["<script>x", "p"], ["train", "test"])
    Image.fromarray(picture(1)).save(tmp_path / "a/i2.png")
    found = audit([bad], progress=False)
    statement = certificate(found)
    assert "<script>x" not in html_page(found, statement)
    assert "<script>x" not in markdown_page(found, statement)
    assert found.num_leaks == 1
    changed = statement | {"verdict": "no leak found"}
    assert digested_text(changed) != digested_text(statement)


def test_a_faulty_call_is_one_line(two_sets, tmp_path, capsys):
    path = str(two_sets[0].manifest.root / "manifest.csv")
    for options, words in (([path, path], "named twice"), ([path, "--least_score", "1.5"], "--least_score"),
                           ([path, "--workers", "0"], "--workers")):  # fmt: skip
        with pytest.raises(SystemExit):
            main([*options, "--out", str(tmp_path / "out")])
        assert words in capsys.readouterr().err
    empty = make_manifest(tmp_path / "nowhere", num_studies=3)
    with pytest.raises(ValueError, match="does not exist; not one image can be read"):
        audit([Collection("x", empty)], progress=False)
