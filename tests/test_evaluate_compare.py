"""Comparing predictions: differences are paired, ranks are scipy's, and the page needs nothing but itself."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from data.bootstrap import patient_bootstrap
from data.manifest import read_manifest, write_manifest
from data.predictions import read_predictions, write_predictions
from fusion.evaluate.command import main
from fusion.evaluate.moved import MOVED
from tests.make_predictions import CLASSES, make_evaluable

ROOT = Path(__file__).resolve().parents[1]
VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Notes every tag and attribute, and that tags close in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> out of place"

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparable") / "run"
    make_evaluable(folder, seed=0, name="good", noise=0.15)
    make_evaluable(folder, seed=1, name="poor", noise=0.4)
    return folder


def compared(first, second, *options):
    out = first.parent / "out"
    main(["--compare", str(first), str(second), "--out", str(out), "--replicates", "30", *map(str, options)])
    return json.loads((out / "comparison.json").read_text()), (out / "comparison.html").read_text()


def arrays(run_dir):
    """Both sides' test images in the manifest's order."""
    manifest = read_manifest(run_dir / "manifest.csv").of_split("test")
    values = {name: read_predictions(run_dir / name / "predictions_test.csv")[1] for name in ("good", "poor")}
    return manifest, values


def test_differences_are_those_of_the_paired_bootstrap_on_image_rows(run_dir):
    report, _ = compared(run_dir / "good", run_dir / "poor")
    manifest, values = arrays(run_dir)
    patients = manifest.images["patient_id"].tolist()
    expected = patient_bootstrap(values, manifest.labels, patients, replicates=30, pairs=[("good", "poor")])
    difference = expected.differences["good", "poor"]
    found = report["images"]["headline"]["mAP"]["difference"]
    assert (found["estimate"], found["low"], found["high"]) == (difference.estimate, difference.low, difference.high)
    assert found["low"] > 0
    for c, name in enumerate(CLASSES[:3]):
        row, alone = report["images"]["per_class"][name], expected.difference("good", "poor", [c])
        assert (row["AP_difference"]["low"], row["AP_difference"]["high"]) == (alone.low, alone.high)
        assert row["AP"]["first"]["estimate"] == expected.class_values["good"][c]
    assert (report["first"], report["second"]) == ("good", "poor")
    assert report["images"]["per_class"]["Fibrosis"]["AP_difference"]["estimate"] is None


def test_swapping_the_sides_turns_every_sign(run_dir):
    one, _ = compared(run_dir / "good", run_dir / "poor")
    two, _ = compared(run_dir / "poor", run_dir / "good")
    for unit in ("images", "groups"):
        for key, values in one[unit]["headline"].items():
            other = two[unit]["headline"][key]
            assert values["first"] == other["second"]
            for end, swapped in (("estimate", "estimate"), ("low", "high"), ("high", "low")):
                left, right = values["difference"][end], other["difference"][swapped]
                assert (left is None and right is None) or left == pytest.approx(-right, abs=1e-12)
    assert [item["id"] for item in one["moved"]["first_better"]] == [
        item["id"] for item in two["moved"]["second_better"]
    ]


def test_rank_correlation_is_that_of_scipy_with_ties(run_dir):
    report, _ = compared(run_dir / "good", run_dir / "poor")
    _, values = arrays(run_dir)
    for c, name in enumerate(CLASSES):
        expected = spearmanr(values["good"][:, c], values["poor"][:, c]).statistic
        assert report["images"]["per_class"][name]["rank_correlation"] == pytest.approx(expected, abs=1e-12)


def test_the_studies_that_moved_most_are_those_of_a_slow_loop_over_known_labels(run_dir):
    report, _ = compared(run_dir / "good", run_dir / "poor")
    manifest, values = arrays(run_dir)
    gains = {}
    for study in manifest.images["study_id"].unique():
        rows = (manifest.images["study_id"] == study).to_numpy()
        a, b = (np.float32(values[name][rows].mean(axis=0, dtype=np.float64)) for name in ("good", "poor"))
        label = manifest.labels[rows][0]
        gains[study] = sum(
            (float(b[c]) - y) ** 2 - (float(a[c]) - y) ** 2 for c, y in enumerate(label) if not np.isnan(y)
        )
    best = sorted(gains, key=lambda study: -gains[study])[:MOVED]
    found = report["moved"]["first_better"]
    assert [item["id"] for item in found] == best
    for item in found:
        assert item["gain"] == pytest.approx(gains[item["id"]], abs=1e-6)
        known = manifest.labels[(manifest.images["study_id"] == item["id"]).to_numpy()][0]
        assert all(not np.isnan(known[CLASSES.index(moved["class"])]) for moved in item["classes"])
    assert report["moved"]["second_better"][0]["gain"] == pytest.approx(min(gains.values()), abs=1e-6)


def test_equal_predictions_differ_by_nothing(run_dir, tmp_path):
    shutil.copytree(run_dir / "good", tmp_path / "run" / "twin")
    report, page = compared(run_dir / "good", tmp_path / "run" / "twin", "--manifest", run_dir / "manifest.csv")
    for unit in ("images", "groups"):
        for values in report[unit]["headline"].values():
            assert {values["difference"][end] for end in ("estimate", "low", "high")} <= {0, None}
    assert report["moved"] == {"first_better": [], "second_better": []}
    assert "do not tell the two apart" in page


def test_the_page_loads_nothing_and_shows_no_path(run_dir):
    _, page = compared(run_dir / "good", run_dir / "poor")
    reader = Reader(page)
    assert not {"script", "link", "img", "iframe", "object", "a", "base", "form"} & set(reader.tags)
    assert not {"src", "href", "xlink:href", "action", "onload", "onclick"} & {name for name, _ in reader.attributes}
    assert "://" not in page
    assert not re.search(r"url\(|@import", page)
    assert str(run_dir.parent) not in page
    assert "svg" in reader.tags
    assert "Without a positive and in no mean: Fibrosis." in "".join(reader.words)


def test_names_of_classes_and_studies_are_text_on_the_page_never_markup(run_dir, tmp_path):
    manifest = read_manifest(run_dir / "manifest.csv")
    classes = ("<script>alert(1)</script>", 'Nod"ule&', *CLASSES[2:])
    images = manifest.images.assign(study_id="<b>" + manifest.images["study_id"])
    write_manifest(replace(manifest, images=images, classes=classes), tmp_path / "manifest.csv")
    for name in ("good", "poor"):
        for split in ("val", "test"):
            ids, values, _ = read_predictions(run_dir / name / f"predictions_{split}.csv")
            ids = ids.assign(study_id="<b>" + ids["study_id"])
            write_predictions(tmp_path / name / f"predictions_{split}.csv", ids, values, classes)
    _, page = compared(tmp_path / "good", tmp_path / "poor")
    reader = Reader(page)
    assert "script" not in reader.tags
    assert "<b>s" not in page
    assert any("<b>s" in words for words in reader.words)


def test_only_what_both_predicted_is_compared_and_the_rest_is_counted(run_dir, tmp_path, capsys):
    ids, values, classes = read_predictions(run_dir / "poor" / "predictions_test.csv")
    keep = np.arange(len(ids)) % 5 > 0
    table = tmp_path / "part" / "predictions_test.csv"
    write_predictions(table, ids[keep].reset_index(drop=True), values[keep][:, [2, 0]], [classes[2], classes[0]])
    report, page = compared(run_dir / "good", table, "--manifest", run_dir / "manifest.csv")
    assert report["classes"] == ["Edema", "Hernia"]
    assert report["images"]["rows"] == keep.sum()
    assert list(report["images_not_compared"].values()) == [(~keep).sum(), 0]
    assert f"{(~keep).sum()} images of" in page
    expected = patient_bootstrap(
        {"a": read_predictions(run_dir / "good" / "predictions_test.csv")[1][keep][:, [0, 2]]},
        read_manifest(run_dir / "manifest.csv").of_split("test").labels[keep][:, [0, 2]],
        ids["patient_id"][keep].tolist(),
        replicates=1,
    )
    assert report["images"]["headline"]["mAP"]["first"]["estimate"] == expected.estimate("a")


def test_what_cannot_be_compared_is_named(run_dir, tmp_path, capsys):
    def error(*options):
        with pytest.raises(SystemExit):
            main(["--replicates", "3", "--compare", *map(str, options)])
        return capsys.readouterr().err

    assert "the same predictions twice" in error(run_dir / "good", run_dir / "good")
    manifest = read_manifest(run_dir / "manifest.csv")
    labels = manifest.labels.copy()
    row = int(np.flatnonzero((manifest.images["split"] == "test") & ~np.isnan(labels[:, 0]))[0])
    same_study = (manifest.images["study_id"] == manifest.images["study_id"].iat[row]).to_numpy()
    labels[same_study, 0] = 1 - labels[row, 0]
    write_manifest(replace(manifest, labels=labels), tmp_path / "manifest.csv")
    shutil.copytree(run_dir / "poor", tmp_path / "poor")
    said = error(run_dir / "good", tmp_path / "poor")
    assert f"say different things of {same_study.sum()} images" in said
    assert "have no images in common" in error(
        run_dir / "good" / "predictions_val.csv", run_dir / "poor" / "predictions_test.csv"
    )


def test_the_script_compares_from_any_folder(run_dir, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), "--replicates", "5"]
    options = ["--compare", str(run_dir / "good"), str(run_dir / "poor"), "--out", "here"]
    out = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.rstrip().endswith("next: look at here/comparison.html")
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "comparison.html", "comparison.json", "per_class_groups.csv", "per_class_images.csv", "table.txt"
    }  # fmt: skip
