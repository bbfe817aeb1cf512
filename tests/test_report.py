"""The report: the run's own numbers, one file that loads nothing, hostile ids, missing parts, three widths."""

import html
import json
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import sklearn.metrics
import torch

from data.errors import InputError
from data.images import read_image
from data.manifest import Manifest, write_manifest
from data.metrics import average_precision, precision_recall_curve
from data.phantom.constants import VISIBLE_CNR
from data.phantom.patient import sample_patient
from data.phantom.radiograph import Taking
from data.phantom.visibility import noise_free, ratio
from data.spans import number, span
from extract.engine import sigmoid
from fusion.report.cases import choose
from fusion.report.charts import thinned, ticks
from fusion.report.command import main
from fusion.report.lateral import class_row, sampled
from fusion.report.scrub import ask, behind_the_heart, into_the_lung, own_backbone
from fusion.report.source import Scored, open_run, open_runs
from tests.launch import run
from tests.make_data import CLASSES, make_manifest, write_images

HOSTILE = "<script>alert('{}')</script>"


def written(*arguments) -> str:
    """The page as text."""
    main([str(argument) for argument in arguments])
    paths = [arguments[k + 1] for k, one in enumerate(arguments) if one == "--out"]
    return (paths[0] if paths else arguments[0] / "fusion" / "report.html").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run whose study ids and source would be markup if they were not escaped."""
    run_dir = tmp_path_factory.mktemp("report") / "tiny <b>run"
    made = make_manifest(run_dir / "images", num_studies=30)
    images = made.images.assign(
        study_id=[HOSTILE.format(name) for name in made.images["study_id"]], source="<img src=x onerror=alert(1)>"
    )
    manifest = Manifest(images, made.labels, made.classes, made.root)
    write_images(manifest)
    write_manifest(manifest, run_dir / "manifest.csv")
    run("extract", run_dir)
    run("fusion", run_dir)
    return run_dir


@pytest.fixture(scope="module")
def page(finished):
    return written(finished)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_holds_the_numbers_of_metrics_json_in_both_units(finished, page):
    text = " ".join("".join(Tags(page).text).split())
    record = json.loads((finished / "fusion" / "metrics.json").read_text())
    for unit in ("images", "groups"):
        for name, values in record[unit]["methods"].items():
            assert f"{name}{span(values['interval'])}" in text.replace(f"{name} ", name), (unit, name)
            assert all(number(values[key]) in text for key in ("mAP_head", "mAP_tail", "mAUROC"))
        assert all(span(value, "+") in text for value in record[unit]["differences"].values())
    for name, values in record["groups"]["methods"]["fusion"]["per_class"].items():
        assert name in text
        assert number(values["AP"]) in text
    assert "For research. Not a medical device" in text


def test_nothing_is_loaded_and_no_id_becomes_markup(finished, page):
    tags = Tags(page).tags
    assert [attrs for tag, attrs in tags if tag == "script"] == [{}], "ours alone, and inline"
    assert not {tag for tag, _ in tags} & {"link", "iframe", "object", "embed", "base", "form"}
    for tag, attrs in tags:
        assert not [key for key in attrs if key.startswith("on")], (tag, attrs)
        for key in ("src", "href", "srcset", "data", "poster"):
            assert attrs.get(key, "#").startswith(("#", "data:image/jpeg;base64,")), (tag, key)
    assert "url(" not in page
    assert "@import" not in page
    assert "&lt;script&gt;alert(&#39;s" in page, "ids are there, escaped"
    assert "tiny &lt;b&gt;run" in page
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_same_files_make_the_same_bytes(finished, page, tmp_path):
    assert written(finished, "--out", tmp_path / "again.html") == page


def test_cases_show_views_labels_and_neighbours_and_none_leaves_all_ids_out(finished, page, tmp_path):
    pictures = [attrs["src"] for tag, attrs in Tags(page).tags if tag == "img"]
    assert page.count('class="case"') >= 2
    assert len(pictures) >= 2 * page.count('class="case"')
    assert "similarity" in page
    bare = written(finished, "--cases", 0, "--out", tmp_path / "bare.html")
    assert not [tag for tag, _ in Tags(bare).tags if tag == "img"]
    assert "alert(&#39;s" not in bare


def test_without_its_optional_parts_the_page_says_how_to_get_them(finished, tmp_path):
    copy = tmp_path / "bare"
    shutil.copytree(finished, copy, symlinks=True)
    shutil.rmtree(copy / "cache")
    shutil.rmtree(copy / "images")
    for name in ("fusion/scores_test.npz", "fusion/metrics.jsonl", "stage_one/metrics.jsonl", "environment.json"):
        (copy / name).unlink()
    text = html.unescape(written(copy))
    for command in ("scripts/calibrate.py", "scripts/audit.py", "scripts/compare_missing_views.py", "extract.py"):
        assert command in text, command
    assert "scores_test.npz" in text
    assert "No metrics.jsonl of stage one and stage two" in text
    assert "No environment.json" in text
    assert "Only a run on the phantom" in text
    assert text.count('<svg class="plot small"') == 2 * len(CLASSES), "curves of fusion from its predictions"


def test_parts_that_are_there_are_shown_and_a_certificate_of_another_manifest_is_not(finished, tmp_path):
    copy = tmp_path / "more"
    shutil.copytree(finished, copy, symlinks=True)
    (copy / "fusion" / "calibrated_test.csv").write_bytes((copy / "fusion" / "predictions_test.csv").read_bytes())
    value = {"estimate": 0.4321, "low": 0.4, "high": 0.5}
    methods = {"fusion": {"mAP": value, "minus_all_views": value}, "mean": {"mAP": value}}
    report = {"runs": 1, "draws": 3, "by": "study"}
    report["conditions"] = {"lateral only": {"groups": 7, "views": 1.5, "methods": methods, "fusion_minus": {}}}
    (copy / "missing_views").mkdir()
    (copy / "missing_views" / "missing_views.json").write_text(json.dumps(report))
    (copy / "audit").mkdir()
    certificate = {"verdict": "no leak found", "manifests": [{"sha256": "0"}], "digest": "x"}
    (copy / "audit" / "certificate.json").write_text(json.dumps(certificate))
    text = written(copy, "--cases", 0, "--out", tmp_path / "more.html")
    assert "Calibrated: ECE" in text
    assert "0.432 [0.400, 0.500]" in text
    assert "does not match its own digest" in text


def test_several_runs_stand_side_by_side_under_names_of_their_own(finished, tmp_path):
    copy = tmp_path / "other"
    shutil.copytree(finished, copy, symlinks=True)
    text = html.unescape("".join(Tags(written(finished, copy, "--cases", 0, "--out", tmp_path / "two.html")).text))
    assert "Runs side by side" in text
    assert "All are judged on the same studies" in text
    assert [one.label for one in open_runs([finished, copy / "fusion"])] == ["tiny <b>run", "other"]
    with pytest.raises(InputError, match="named twice"):
        open_runs([finished, finished])


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main([str(tmp_path)])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no finished run here" in error
    (tmp_path / "metrics.json").write_text('{"val": {}}')
    with pytest.raises(InputError, match="holds no scores"):
        open_run(tmp_path)


def test_asking_about_new_pictures_is_asking_about_their_cached_maps(finished):
    one = open_run(finished)
    trained = one.trained
    part, groups = trained.groups_of_split("test")
    number = next(g for g, types in enumerate(groups.view_types) if types.tolist() == [0, 2])  # PA and lateral
    pictures = [read_image(part.image_path(int(row))) for row in groups.rows[number]]
    answer = ask(trained, own_backbone(one, trained), pictures)
    assert answer.shape == (1, 3, len(CLASSES))
    with torch.no_grad():
        maps, types, slots = trained.inputs(groups, number)
        both = trained.model(maps, types, slots)
        alone = [trained.model(maps[:, [v]], types[:, [v]], slots[:, [0]]) for v in (0, 1)]
    expected = sigmoid(torch.cat([both, *alone]).numpy())
    np.testing.assert_allclose(answer[0], expected, atol=2e-3)  # cached maps are float16


def test_the_moving_bodies_are_what_the_page_says_of_them():
    patient, taking = sample_patient(12), Taking()
    empty = {view: noise_free(patient, {}, view, taking) for view in ("PA", "LATERAL")}

    def visible(body, step):
        found = {}
        for view, without in empty.items():
            signal = noise_free(patient, {}, view, taking, bodies=[body(patient, step)])
            found[view] = ratio(signal, np.log(without / signal), view, taking)
        return found

    behind = visible(behind_the_heart, 0.75)
    assert behind["PA"] < VISIBLE_CNR < behind["LATERAL"]
    skin, lung = visible(into_the_lung, 0.0), visible(into_the_lung, 1.0)
    assert skin["PA"] == pytest.approx(lung["PA"], rel=0.25), "one frontal shadow"
    assert lung["LATERAL"] < VISIBLE_CNR < skin["LATERAL"]


def test_best_cases_are_right_with_most_findings_and_worst_ones_are_furthest():
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, np.nan, 1], [0, 1, 0], [1, 1, 1]], dtype=np.float32)
    p = np.array([[0.7, 0.6, 0.2], [0.9, 0, 0], [0, 0, 0], [0.8, 0.9, 0.1], [0.9, 0.1, 0.2], [0.6, 0.6, 0.6]])
    scored = Scored(list("abcdef"), list("abcdef"), labels, {"fusion": p.astype(np.float32)})
    assert choose(scored, np.full(6, 2), 2) == ([5, 0], [4, 3], True)
    assert choose(scored, np.array([1, 1, 2, 2, 2, 1]), 2)[1] == [4, 3], "too few with several views"
    assert choose(scored, np.array([1, 2, 2, 2, 1, 1]), 1) == ([1], [3], True)


def test_precision_recall_is_scikit_learns_and_its_steps_sum_to_average_precision():
    rng = np.random.default_rng(1)
    scores, targets = rng.integers(0, 9, 57) / 8, (rng.random(57) < 0.3).astype(float)
    precision, recall, _ = sklearn.metrics.precision_recall_curve(targets, scores)
    found = precision_recall_curve(scores, targets)
    np.testing.assert_allclose(found[0], recall[::-1][1:])
    np.testing.assert_allclose(found[1], precision[::-1][1:])
    assert (np.diff(found[0], prepend=0) @ found[1]) == pytest.approx(average_precision(scores, targets))
    assert not precision_recall_curve(scores, np.zeros(57))[0].size


def test_a_thinned_curve_keeps_its_ends_and_stays_close():
    x = np.linspace(0, 1, 5000)
    a, b = thinned(x, x**3, 50)
    assert len(a) <= 51
    assert (a[0], a[-1]) == (0, 1)
    np.testing.assert_allclose(np.interp(x, a, b), x**3, atol=2e-3)
    assert ticks(-0.3, 1.2, 5) == [0.0, 0.5, 1.0]


def test_shares_are_means_over_present_and_absent_groups_and_unknown_is_neither():
    shares = np.array([[1.0, 2, 0], [3, 4, 0], [-1, 0, 0], [50, 50, 50]])
    row = class_row("x", shares, np.array([1, 1, 0, np.nan], dtype=np.float32))
    assert row["present"] == {"frontal": 2.0, "lateral": 3.0, "other": 0.0}
    assert row["absent"]["frontal"] == -1.0
    assert class_row("x", shares, np.array([0, 0, 0, np.nan], dtype=np.float32)) is None
    chosen = sampled(np.arange(100), 7)
    assert len(set(chosen.tolist())) == 7
    np.testing.assert_array_equal(chosen, sampled(np.arange(100), 7))


def test_no_width_makes_the_page_scroll_sideways(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("Chromium is not installed, so the page was not laid out")
    frames = "".join(
        f'<iframe width="{w}" height="900" srcdoc="{html.escape(page)}"></iframe>' for w in (1280, 800, 390)
    )
    measure = """<script>onload = () => document.title = [...document.querySelectorAll("iframe")].map(frame =>
        frame.width + ":" + frame.contentDocument.documentElement.scrollWidth + ":" +
        frame.contentDocument.querySelectorAll("section").length).join(" ")</script>"""
    (tmp_path / "sizes.html").write_text(f"<!doctype html><title>no</title>{frames}{measure}")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "sizes.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    title = done.stdout.split("<title>")[1].split("</title>")[0]
    for size in title.split():
        width, scroll, sections = map(int, size.split(":"))
        assert sections > 10
        assert scroll <= width, title
    assert len(title.split()) == 3, done.stderr[-800:]
