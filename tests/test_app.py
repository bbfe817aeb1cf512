"""The app shows each user their own study, names what it cannot read, and lets nothing else out."""

import ast
import asyncio
import base64
import io
import re
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from data.cache import FeatureCache
from data.errors import InputError
from data.manifest import Manifest, write_manifest
from fusion.app import fragments
from fusion.app.command import make_page
from fusion.app.examples import example_of, example_studies
from fusion.app.findings import Finding, rank_findings, untested_classes
from fusion.app.guard import Guard
from fusion.app.pictures import heat_pictures
from fusion.app.similar import load_similar
from fusion.app.study import StudyReader
from fusion.app.uploads import MAX_FILES, Upload, shown_name, take
from tests.faults.uploads import hostile_uploads
from tests.make_data import make_cache, make_manifest, write_images
from tests.make_dicom import plain, ramp
from tests.make_model import CLASSES, FREQUENCY, make_predictor

ROOT = Path(__file__).parents[1]


def png(seed: int, height: int = 40, width: int = 36) -> bytes:
    return imagecodecs.png_encode(np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8))


def uploads(folder: Path, **files: bytes) -> list[Upload]:
    """Files under a path that no user should ever see, by the name they were uploaded with."""
    kept = []
    for n, (name, data) in enumerate(files.items()):
        path = folder / "server-side" / f"{n}.tmp"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        kept.append(Upload(path, name.replace("_", ".")))
    return kept


@pytest.fixture(scope="module")
def reader() -> StudyReader:
    return StudyReader(make_predictor(), frozenset({"Mass"}))


def test_findings_are_ranked_and_untested_ones_come_last_whatever_their_number():
    probabilities, thresholds = np.array([0.2, 0.7, 0.2, 0.9]), np.array([0.1, 0.7, 0.3, 0.0])
    found = rank_findings(CLASSES, probabilities, thresholds, FREQUENCY, {"Mass"})
    assert [finding.name for finding in found] == ["Nodule", "Edema", "Hernia", "Mass"]
    assert [finding.called for finding in found] == [False, True, False, True], "called means above, not at"
    assert [finding.band for finding in found] == ["medium", "head", "tail", "tail"]
    assert [f.called for f in rank_findings(CLASSES, probabilities, None, {}, set())] == [None] * 4


@pytest.mark.parametrize(
    ("probability", "words"), [(0.0, "<1 %"), (0.0099, "<1 %"), (0.01, "1 %"), (0.994, ">99 %"), (0.5, "50 %")]
)
def test_no_number_promises_certainty(probability, words):
    assert Finding(0, "Edema", probability, None, None, True).percent == words


def test_untested_classes_are_those_without_a_positive_on_validation(tmp_path):
    assert untested_classes(tmp_path) == frozenset()
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "metrics.json").write_text('{"val": {"absent": ["Mass"], "mAP": 0.5}}')
    assert untested_classes(tmp_path) == {"Mass"}
    assert untested_classes(tmp_path / "best") == {"Mass"}


def test_uploads_beyond_the_limits_are_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    one = tmp_path / "a.png"
    one.write_bytes(b"x" * 3000)
    assert take([(str(one), "C:\\scans\\a.png")]) == [Upload(one, "a.png")]
    with pytest.raises(InputError, match="No file"):
        take([])
    with pytest.raises(InputError, match=f"{MAX_FILES + 1} files .* at most {MAX_FILES}"):
        take([(str(one), "a.png")] * (MAX_FILES + 1))
    monkeypatch.setattr("fusion.app.uploads.MAX_STUDY_MIB", 0)
    with pytest.raises(InputError, match="at most 0 MiB"):
        take([(str(one), "a.png")])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\x\\chest.dcm", "chest.dcm"),
        ("a\u202egnp.exe\n", "agnp.exe"),
        ("\x00", "unnamed file"),
        ("", "unnamed file"),
        ("1.2.840." + "9" * 60 + ".dcm", "1.2.840." + "9" * 23 + "…" + "9" * 12 + ".dcm"),
    ],
)
def test_a_file_is_called_by_its_own_name_and_nothing_of_its_path(name, shown):
    assert shown_name(name) == shown


def test_a_broken_file_is_named_as_uploaded_and_the_rest_goes_on(tmp_path, reader):
    files = uploads(tmp_path, front_png=png(1), cut_png=png(2)[:200], notes_txt=b"hello", side_png=png(3))
    reading = reader.read(files)
    assert [view.name for view in reading.prediction.views] == ["front.png", "side.png"]
    assert reading.rejected == (
        ("cut.png", "is a cut PNG: its end is missing"),
        ("notes.txt", "is of an unknown format; wanted JPEG, PNG or DICOM"),
    )
    page = fragments.messages(reading)
    assert "2 files were left out; the rest of the study was read" in page
    assert "server-side" not in page
    without = reader.read([files[0], files[3]])
    np.testing.assert_array_equal(reading.prediction.logits, without.prediction.logits)


def test_nothing_readable_is_said_and_shows_nothing(tmp_path, reader):
    reading = reader.read(uploads(tmp_path, cut_png=png(2)[:200]))
    assert reading.prediction is None
    assert "None of these files can be used." in fragments.messages(reading)
    assert fragments.views(reading) == fragments.findings(reading) == ""


def test_a_fault_of_a_decoder_does_not_end_the_study_or_quote_the_file(tmp_path, reader, monkeypatch, caplog):
    def fail(parts, path, name, view):
        raise RuntimeError("PatientName DOE^JANE")

    files = uploads(tmp_path, a_png=png(1))
    with monkeypatch.context() as patched:
        patched.setattr("fusion.app.study.open_image", fail)
        reading = reader.read(files)
    assert reading.rejected == (("a.png", "could not be read"),)
    assert "JANE" not in caplog.text


def test_a_corrected_view_is_the_view_that_was_told_from_the_start(tmp_path, reader):
    files = uploads(tmp_path, a_png=png(1), b_png=png(2))
    first = reader.read(files)
    assert [view.view for view in first.prediction.views] == ["UNKNOWN", "UNKNOWN"]
    corrected = reader.corrected(first, 1, "LATERAL")
    assert [(view.view, view.view_from) for view in corrected.prediction.views][1] == ("LATERAL", "user")
    told = reader.read(files, [None, "LATERAL"])
    np.testing.assert_array_equal(corrected.prediction.logits, told.prediction.logits)
    assert np.abs(corrected.prediction.logits - first.prediction.logits).max() > 1e-6, "the view type is an input"


@pytest.mark.parametrize(
    ("number", "view"), [(2, "PA"), (-1, "PA"), ("0", "PA"), (None, "PA"), (0, "SIDE"), (0, ["PA"])]
)
def test_what_a_browser_sends_is_checked(tmp_path, reader, number, view):
    reading = reader.read(uploads(tmp_path, a_png=png(1), b_png=png(2)))
    with pytest.raises(InputError, match="no such view"):
        reader.corrected(reading, number, view)
    for wrong in (4, -1, "0", None, True, [0]):
        with pytest.raises(InputError, match="no such finding"):
            reader.explain(reading, wrong)
        with pytest.raises(InputError, match="no such example"):
            example_of([], wrong)


def test_an_explained_finding_has_a_heat_map_and_a_share_for_every_view(tmp_path, reader):
    reading = reader.read(uploads(tmp_path, a_png=png(1), b_png=png(2), c_png=png(3)))
    explained = reader.explain(reading, 2)
    assert explained.finding.name == "Hernia"
    assert [values.shape for values in explained.heat] == [(32, 32)] * 3
    assert explained.amounts.sum() == pytest.approx(1)
    assert explained.shares.sum() == pytest.approx(float(reading.prediction.plain_logits()[2]), abs=1e-5)
    page = fragments.views(reading, explained)
    assert page.count('class="heat"') == page.count("log odds") == 3


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_heat_is_clear_where_there_is_none_and_on_one_scale_for_all_views():
    weak, strong = np.zeros((5, 7)), np.zeros((6, 4))
    weak[1, 2], weak[0, 0], strong[3, 1] = 0.25, -1.0, 1.0
    small, large = (decoded(uri)[..., 3] for uri in heat_pictures([weak, strong]))
    assert (small > 0).sum() == (large > 0).sum() == 1, "negative heat is not drawn"
    assert large[3, 1] == round(0.85 * 255)
    assert small[1, 2] == pytest.approx(large[3, 1] / 2, abs=1), "a quarter of the heat, half as opaque"
    assert not decoded(heat_pictures([np.zeros((2, 3))])[0])[..., 3].any()


def test_raw_scores_are_called_raw_and_calibrated_ones_calibrated(tmp_path, reader, monkeypatch):
    reading = reader.read(uploads(tmp_path, a_png=png(1)))
    assert "not calibrated" in fragments.findings(reading)
    assert "1 more classes, never tested" in fragments.findings(reading)
    kind = type(reading.prediction)
    monkeypatch.setattr(kind, "calibrated", np.full(4, 0.25, np.float32))
    monkeypatch.setattr(kind, "thresholds", np.array([0.5, 0.2, 0.5, 0.5]))
    calibrated = reader.read(uploads(tmp_path, a_png=png(1)))
    page = fragments.findings(calibrated)
    assert "about 3 in 10 were present" in page
    assert "not calibrated" not in page
    assert re.findall(r'class="finding called".*?class="name">(\w+)', page, re.DOTALL) == ["Nodule"]
    assert page.count("25 %") == 4


def test_file_names_are_text_on_the_page_and_never_markup(tmp_path, reader):
    files = [
        Upload(file.path, f"<img src=x onerror=a()>{n}") for n, file in enumerate(uploads(tmp_path, a=png(1), b=b""))
    ]
    reading = reader.read(files)
    pages = fragments.views(reading) + fragments.messages(reading) + fragments.messages(None, "<b>")
    assert "<img src=x" not in pages
    assert pages.count("&lt;img src=x") >= 2


CANARIES = {
    "PatientName": "CANARY^NAME",
    "PatientID": "CANARYID77",
    "StudyDescription": "CANARYTEXT",
    "AccessionNumber": "CANARYACC",
    "InstitutionName": "CANARYHOME",
    "ReferringPhysicianName": "CANARY^DOC",
    "ImageComments": "CANARYNOTE",
    "StudyInstanceUID": "1.2.77777.3",
    "PatientBirthDate": "19010203",
}


def test_nothing_of_a_dicom_header_but_the_view_reaches_the_page(tmp_path, reader):
    good = plain(ramp(), ViewPosition="LL", **CANARIES)
    cut = good[: len(good) // 2]
    reading = reader.read(uploads(tmp_path, good_dcm=good, cut_dcm=cut))
    assert [(view.view, view.view_from) for view in reading.prediction.views] == [("LATERAL", "header")]
    assert len(reading.rejected) == 1
    explained = reader.explain(reading, 0)
    pages = fragments.views(reading, explained) + fragments.findings(reading) + fragments.messages(reading)
    texts = re.sub(r"base64,[^\"]+", "", pages)
    assert not [value for value in CANARIES.values() for part in value.split("^") if part in texts]


def index_run(folder: Path, source: str, weights: str = "ab", ill: bool = False) -> Manifest:
    """A run whose cache fits `make_predictor`; `ill`: every finding in every study."""
    made = make_manifest(folder / "images", num_studies=30)
    made.labels[:] = 1 if ill else made.labels
    made.images["source"] = source
    write_images(made)
    write_manifest(made, folder / "manifest.csv")
    parts = make_predictor().parts
    make_cache(
        folder / "cache", made, parts.identity.map_shape, weights=weights, preprocessing=parts.identity.preprocessing
    )
    return made


@pytest.mark.parametrize(("source", "shows"), [("phantom", True), ("mimic", False)])
def test_a_training_study_finds_itself_and_only_simulated_ones_show_images(tmp_path, source, shows):
    made = index_run(tmp_path, source)
    similar = load_similar(tmp_path, make_predictor().parts)
    assert len(similar) == made.of_split("train").images["study_id"].nunique()
    number = 4
    maps = torch.from_numpy(FeatureCache(tmp_path / "cache").read(similar.groups.ordinals[number]))
    near = similar.nearest(maps)
    labels = [name for name, y in zip(made.classes, similar.groups.labels[number], strict=True) if y == 1]
    assert near[0].similarity == pytest.approx(1, abs=1e-3)
    assert list(near[0].labels) == labels
    assert [one.rank for one in near] == [1, 2, 3, 4, 5]
    assert len(near[0].pictures) == (len(near[0].views) if shows else 0)


def test_an_index_of_another_backbone_is_refused(tmp_path):
    index_run(tmp_path, "mimic", weights="00")
    with pytest.raises(InputError, match="not made by the model's own backbone"):
        load_similar(tmp_path, make_predictor().parts)


def test_examples_are_simulated_studies_and_never_patients(tmp_path):
    index_run(tmp_path / "phantom", "phantom", ill=True)
    index_run(tmp_path / "real", "mimic", ill=True)
    assert example_studies(tmp_path / "real") == example_studies(tmp_path / "nothing") == []
    examples = example_studies(tmp_path / "phantom")
    assert examples
    assert all({"LATERAL"} < set(one.views) and len(one.truth) > 1 for one in examples)
    assert all(upload.path.is_file() for one in examples for upload in one.uploads)


def test_without_gradio_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "fusion.app.page", raising=False)
    with pytest.raises(InputError, match=r"needs gradio.*pip install -e '\.\[app\]'"):
        make_page(str(tmp_path))


def test_without_the_demo_one_line_says_make_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="make demo"):
        make_page("runs/demo/fusion")


def test_only_the_page_imports_gradio():
    names = {}
    for path in (path for folder in ("data", "extract", "fusion") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            if any(name.split(".")[0].startswith("gradio") for name in modules):
                names[path.name] = path
    assert set(names) == {"page.py"}


def ask_guard(path: str, host: str) -> tuple[int, dict[bytes, bytes]]:
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Referrer-Policy", b"origin")]})

    async def collect(message):
        sent.append(message)

    asyncio.run(Guard(app)({"type": "http", "path": path, "headers": [(b"host", host.encode())]}, None, collect))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_the_guard_serves_the_page_to_this_machine_and_no_files_to_anybody():
    status, headers = ask_guard("/gradio_api/queue/join", "127.0.0.1:7860")
    assert status == 200
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert headers[b"referrer-policy"] == b"no-referrer"
    assert ask_guard("/", "localhost")[0] == 200
    assert ask_guard("/", "evil.example:7860")[0] == ask_guard("/", "")[0] == 403
    for path in ("/gradio_api/file=/etc/passwd", "/file=x", "/gradio_api/stream/a/b", "/gradio_api/proxy=http://x"):
        assert ask_guard(path, "127.0.0.1")[0] == 404


def test_fifty_hostile_uploads_are_named_but_for_a_whole_picture_and_none_does_harm(tmp_path, reader):
    canary, read = tmp_path / "canary", []
    hostile = hostile_uploads(canary)
    assert len(hostile) == 50
    (good,) = uploads(tmp_path, good_png=png(1))
    alone = reader.read([good])
    for number, (name, data) in enumerate(hostile.items()):
        path = tmp_path / "server-side" / f"hostile{number}"
        path.write_bytes(data)
        (upload,) = take([(str(path), name)])
        reading = reader.read([upload, good])
        if len(reading.opened) == 2:
            read.append(name)
        else:
            ((shown, reason),) = reading.rejected
            assert shown == upload.name, name
            assert "\n" not in reason, name
            np.testing.assert_array_equal(reading.prediction.logits, alone.prediction.logits, err_msg=name)
        refuse_harm(fragments.views(reading) + fragments.messages(reading), str(tmp_path))
        path.unlink()
    assert read == ["behind.png"], "what follows the end of a picture is not looked at"
    assert not canary.exists()


def refuse_harm(page: str, server_path: str) -> None:
    """Nothing that a browser would run, nothing of a header, nothing of the server."""
    texts = re.sub(r"base64,[^\"]+", "", page)
    for word in ("<script", "<img src=x", "CANARY", "Traceback", server_path):
        assert word not in texts
