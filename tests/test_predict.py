"""New studies get the numbers that val and test got, whatever their files are called or lie; one bad file costs itself.

The reference throughout is what training's own evaluation wrote, through manifest and cache.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest

import fusion.predict_command
from data.cache import FeatureCache
from data.cache_convert import convert
from data.calibration import fit_calibration
from data.errors import InputError
from data.images import ImageError
from data.manifest import read_manifest
from data.predictions import read_predictions
from data.study_files import find_images, read_image_table
from data.tables import read_table, write_table
from data.thresholds import fit_thresholds
from fusion.explain import heat_methods
from fusion.fitted import load_fitted, save_fitted
from fusion.predict import load_model
from fusion.predict_command import predict
from fusion.saved import read_saved
from tests.launch import run
from tests.make_dicom import plain
from tests.make_trained import QUICK, images_of_test, make_trained
from tests.test_dicom_private import planted, spellings

CLOSE = 2e-5
"""Of logits. On one machine 5e-7 is found; elsewhere a few map values may be rounded to the next float16."""
AVERAGED = ["--evaluation.augment", "true", "--evaluation.slot_draws", "2", "--evaluation.normal_gate", "power"]
RESULTS = ("fusion", "averaged", "small", "fusion/joint")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with results of several kinds; not to be changed."""
    run_dir = tmp_path_factory.mktemp("predict") / "run"
    make_trained(run_dir, "--cache.flip", "true", "--cache.augmented", "1", "--augmentation.rotate", "10")
    run("fusion", run_dir, *QUICK, "--name", "averaged", "--grouping.by", "patient", *AVERAGED,
        "--evaluation.normal_class", "Hernia")  # fmt: skip
    convert(run_dir / "cache", run_dir / "half", dtype="uint8", pool=2)
    run("fusion", run_dir, *QUICK, "--name", "small", "--cache_dir", str(run_dir / "half"), "--model.token_stride", "2")
    run("fusion", run_dir, *QUICK, "--joint", "--joint.epochs", "1", "--joint.num_workers", "0")
    write_calibration(run_dir)
    return run_dir


def write_calibration(run_dir):
    """As scripts/calibrate.py writes it, from made-up logits: five validation studies are too few to fit on."""
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 3)) < 0.4).astype(np.float32)
    logits = (rng.normal(size=(40, 3)) + labels).astype(np.float32)
    manifest = read_manifest(run_dir / "manifest.csv")
    fitted = fit_calibration(logits, labels, manifest.classes, "temperature", min_positives=1)
    chosen = fit_thresholds(fitted(logits), labels, manifest.classes, min_positives=1)
    held_out = read_saved(run_dir / "fusion" / "logits_val.csv", manifest, ("val",), "study")
    save_fitted(run_dir / "fusion", fitted, chosen, held_out)


@pytest.fixture(scope="module")
def model(run_dir):
    return load_model(run_dir / "fusion", device="cpu")


@pytest.fixture(scope="module")
def study(run_dir):
    """Path and view of the images of a test study with three."""
    images = [one for one in images_of_test(run_dir) if one.study_id == "s023"]
    assert len(images) == 3
    return [one.path for one in images], [one.view for one in images]


@pytest.fixture(autouse=True)
def own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))


@pytest.mark.parametrize("name", RESULTS)
def test_new_studies_get_the_logits_that_evaluation_wrote(run_dir, name):
    model = load_model(run_dir / name, device="cpu")
    ids, wanted, classes = read_predictions(run_dir / name / "logits_test.csv")
    _, probabilities, _ = read_predictions(run_dir / name / "predictions_test.csv")
    row, seen = {image: n for n, image in enumerate(ids["image_id"])}, 0
    assert model.classes == classes
    for one in model.outcomes(model.groups(images_of_test(run_dir))):
        for image in one.images:
            np.testing.assert_allclose(one.prediction.logits, wanted[row[image.image_id]], rtol=0, atol=CLOSE)
            np.testing.assert_allclose(one.prediction.probabilities, probabilities[row[image.image_id]], atol=CLOSE)
            seen += 1
    assert seen == len(ids)


def test_maps_are_those_of_the_cache_within_one_unit_in_the_last_place(run_dir, model):
    cache = FeatureCache(run_dir / "cache")
    for one in model.outcomes(model.groups(images_of_test(run_dir))):
        assert (one.prediction.maps.half() == one.prediction.maps).all()  # what no cache could hold is gone
        for place, view in enumerate(one.prediction.order):
            cached = cache.read(np.array([cache.ordinal[one.images[view].image_id]]))[0]
            found = one.prediction.maps[place].numpy().astype(np.float16)
            assert (np.abs(found.view(np.int16).astype(int) - cached.view(np.int16)) <= 1).all()


def test_a_study_does_not_depend_on_names_order_or_company_of_its_files(model, study, tmp_path):
    paths, views = study
    renamed = [Path(shutil.copy(path, tmp_path / f"{2 - n}.png")) for n, path in enumerate(paths)]
    one, other = model.predict_study(paths, views), model.predict_study(renamed[::-1], views[::-1])
    assert np.array_equal(one.logits, other.logits)
    assert [view.view for view in other.views] == views[::-1]
    np.testing.assert_array_equal(one.images, other.images[::-1])
    np.testing.assert_allclose(one.shares(), other.shares()[:, ::-1], atol=1e-6)
    for heat, same in zip(one.heat_maps("Nodule"), other.heat_maps("Nodule")[::-1], strict=True):
        np.testing.assert_allclose(heat, same, atol=1e-7)


def test_views_change_the_prediction_and_an_unknown_one_is_said_so(model, study):
    paths, views = study
    told, untold = model.predict_study(paths, views), model.predict_study(paths)
    assert np.abs(told.logits - untold.logits).max() > 10 * CLOSE
    assert {view.view_from for view in told.views} == {"user"}
    assert {(view.view, view.view_from) for view in untold.views} == {("UNKNOWN", "unknown")}


def test_the_table_holds_what_the_parts_say(run_dir, model, study):
    prediction = model.predict_study(*study)
    table, (fitted, chosen) = prediction.table(), load_fitted(run_dir / "fusion")
    calibrated = fitted(prediction.logits[None])
    np.testing.assert_array_equal(table["class"], model.classes)
    np.testing.assert_allclose(table["probability"], 1 / (1 + np.exp(-prediction.logits)), rtol=1e-6)
    np.testing.assert_array_equal(table["calibrated"], calibrated[0])
    np.testing.assert_array_equal(table["threshold"], chosen.values)
    np.testing.assert_array_equal(table["positive"], chosen(calibrated)[0])
    shares = table[[name for name in table if name.startswith("share")]].to_numpy()
    np.testing.assert_allclose(shares.sum(axis=1), prediction.logits - model.parts.empty_logits(), atol=1e-5)
    validation = read_table(run_dir / "fusion" / "logits_val.csv").drop_duplicates("study_id")
    np.testing.assert_allclose(model.parts.empty_logits(), validation[list(model.classes)].astype(float).mean())


def test_heat_maps_lie_over_the_images_and_are_written(model, study, tmp_path):
    prediction = model.predict_study(*study)
    assert heat_methods(model.parts.fusion)[0] == "attention"
    heat = prediction.heat_maps("Edema")
    assert [one.shape for one in heat] == [prediction.images[0].shape] * 3 == [(64, 64)] * 3
    assert [path.name for path in prediction.save_heat_maps(tmp_path, ["Edema"])] == ["Edema.png"]
    assert (tmp_path / "Edema.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="'Oedema' is none of the classes Edema"):
        prediction.heat_maps("Oedema")


def test_folders_are_studies_and_a_row_of_the_frame_each(model, tmp_path, run_dir):
    images = images_of_test(run_dir)
    for one in images:
        (tmp_path / "new" / one.study_id).mkdir(parents=True, exist_ok=True)
        shutil.copy(one.path, tmp_path / "new" / one.study_id)
    table = model.predict(tmp_path / "new")
    assert table["study_id"].tolist() == sorted({f"new/{one.study_id}" for one in images})
    counts = pd.Series([f"new/{one.study_id}" for one in images]).value_counts()
    assert dict(zip(table["study_id"], table["num_images"], strict=True)) == counts.to_dict()
    alone = model.predict_study(sorted((tmp_path / "new" / "s023").iterdir()))
    np.testing.assert_array_equal(table.set_index("study_id").loc["new/s023", list(model.classes)], alone.probabilities)


# DICOM ---------------------------------------------------------------------------------------------------------------


def pixels(seed: int) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 200, (30, 26)).astype(np.uint8)
    image[seed % 20 :, 5:15] += 55
    return image


def as_dicom(image: np.ndarray, study: str, number: int, view: str, **elements) -> bytes:
    """With a window that leaves 8 bits as they are."""
    ids = {"SOPInstanceUID": f"{study}.{number}", "StudyInstanceUID": study, "PatientID": f"MRN{study[-1]}"}
    return plain(image, 8, ViewPosition=view, WindowCenter=128, WindowWidth=256, **ids | elements)


def test_dicom_studies_are_grouped_by_uid_and_equal_the_pictures_they_hold(model, tmp_path):
    studies = {"1.2.8": [(0, "PA"), (1, "LATERAL")], "1.2.9": [(2, "AP")]}
    (tmp_path / "dicom" / "odd").mkdir(parents=True)
    for study, images in studies.items():
        (tmp_path / study).mkdir()
        for seed, view in images:
            place = tmp_path / "dicom" / ("odd" if seed == 1 else "") / f"{9 - seed}"
            place.write_bytes(as_dicom(pixels(seed), study, seed, view.replace("LATERAL", "LL")))
            (tmp_path / study / f"{seed}.png").write_bytes(imagecodecs.png_encode(pixels(seed)))
    found, rejected = find_images([tmp_path / "dicom"])
    assert not rejected
    groups = {tuple(sorted(one.name[-1] for one in images)): images for images in model.groups(found).values()}
    assert set(groups) == {("8", "9"), ("7",)}
    for study, images in studies.items():
        names = tuple(sorted(f"{9 - seed}" for seed, _ in images))
        (one,) = model.outcomes({"x": groups[names]})
        files = [tmp_path / study / f"{seed}.png" for seed, _ in images]
        assert np.array_equal(one.prediction.logits, model.predict_study(files, [view for _, view in images]).logits), (
            study
        )
        assert {view.view_from for view in one.prediction.views} == {"header"}


def test_no_word_of_a_header_is_in_any_output(run_dir, tmp_path, capfd):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    good = planted(data=as_dicom(pixels(3), "1.2.7", 0, "PA"))
    (folder / "a").write_bytes(good)
    (folder / "b").write_bytes(planted(instead="Modality"))
    (folder / "c").write_bytes(good[: len(good) - 40])
    (folder / "d").write_bytes(planted(instead="PhotometricInterpretation"))
    predict(str(run_dir / "fusion"), images=[folder], out=out, shares=True, heat_maps=True, top=1, device="cpu")
    printed = "".join(capfd.readouterr()).lower().encode()
    written = {str(path): path.read_bytes().lower() for path in out.rglob("*") if path.is_file()}
    written |= {f"name of {path}": str(path).encode() for path in out.rglob("*")}
    assert len(written) >= 20
    for word in [*spellings(), b"mrn7"]:
        assert word not in printed
        assert not [name for name, content in written.items() if word in content], word
    assert read_table(out / "rejected.csv")["path"].tolist() == [str(folder / name) for name in "bcd"]
    (ids,) = read_table(out / "predictions.csv")[["image_id", "study_id", "patient_id"]].to_numpy().tolist()
    assert [text[0] for text in ids] == ["i", "s", "p"]
    assert {len(text) for text in ids} == {17}


@pytest.mark.skipif("CXR_SHARED_DATA" not in os.environ, reason="CXR_SHARED_DATA is not set")
def test_real_dicom_files_are_predicted_or_refused_by_name(model):
    folder = Path(os.environ["CXR_SHARED_DATA"]) / "dicom"
    table = model.predict([folder / name for name in ("chest_original", "negative_controls", "other_radiograph")])
    rejected = {Path(name).name: reason for name, reason in table.attrs["rejected"]}
    assert "modality CT" in rejected["CT_small.dcm"]
    assert "body part HIP" in rejected["RG2_JPLY.dcm"]
    assert {path.name for path in (folder / "negative_controls").iterdir()} <= rejected.keys()
    assert table["num_images"].sum() == 6 - 1 + 2  # one is a copy of another under a wrong label; two name no body part
    assert np.isfinite(table[list(model.classes)].to_numpy()).all()


# the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(run_dir, tmp_path):
    """A table of test images, one of them cut, and one study with no whole image."""
    part = pd.DataFrame([vars(one) for one in images_of_test(run_dir)])
    part["path"] = [shutil.copy(path, tmp_path / Path(path).name) for path in part["path"]]
    cut = [part.index[part["study_id"] == "s023"][1], part.index[part["study_id"] == "s021"][0]]
    assert (part["study_id"] == "s021").sum() == 1
    for row in cut:
        path = Path(part["path"][row])
        path.write_bytes(path.read_bytes()[:-30])
    part["path"] = [Path(path).name for path in part["path"]]
    write_table(tmp_path / "table.csv", part[["path", "image_id", "study_id", "patient_id", "view"]].astype(str))
    return tmp_path / "table.csv", part.loc[cut, "image_id"].tolist()


def test_a_broken_file_is_named_and_the_rest_predicted_in_trainings_format(run_dir, listed, tmp_path, capsys):
    table, (cut, lost) = listed
    predict(str(run_dir / "fusion"), table=table, out=tmp_path / "out", device="cpu")
    assert set(read_table(tmp_path / "out" / "rejected.csv")["path"]) == {f"{cut}.png", f"{lost}.png"}
    ids, values, _ = read_predictions(tmp_path / "out" / "predictions.csv")
    wanted_ids, wanted, _ = read_predictions(run_dir / "fusion" / "predictions_test.csv")
    assert ids["image_id"].tolist() == [image for image in wanted_ids["image_id"] if image != lost]
    whole = (wanted_ids["study_id"] != "s023") & (wanted_ids["image_id"] != lost)
    ours = (ids["study_id"] != "s023").to_numpy()
    np.testing.assert_allclose(values[ours], wanted[whole.to_numpy()], atol=CLOSE)
    assert len({tuple(row) for row in values[~ours].tolist()}) == 1  # all rows of a study are its prediction
    fitted, chosen = load_fitted(run_dir / "fusion")
    _, calibrated, _ = read_predictions(tmp_path / "out" / "calibrated.csv")
    _, logits, _ = read_predictions(tmp_path / "out" / "logits.csv")
    np.testing.assert_array_equal(calibrated, fitted(logits))
    _, positive, _ = read_predictions(tmp_path / "out" / "positive.csv")
    np.testing.assert_array_equal(positive, chosen(calibrated))
    said = capsys.readouterr().out
    assert "s023: PA (user), UNKNOWN (user)" in said
    assert "2 files left out" in said


def test_the_same_command_writes_the_same_and_others_results_are_left_alone(
    run_dir, model, listed, tmp_path, monkeypatch
):
    other = load_model(run_dir / "small")
    monkeypatch.setattr(fusion.predict_command, "load_model", lambda name, _: other if "small" in name else model)
    table, _ = listed
    options = {"table": table, "out": tmp_path / "out", "device": "cpu"}
    predict(str(run_dir / "fusion"), **options)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != ".lock"}
    predict(str(run_dir / "fusion"), **options)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != ".lock"} == before
    with pytest.raises(InputError, match="holds predictions of another model"):
        predict(str(run_dir / "small"), **options)
    write_table(table, read_table(table).iloc[:-1])
    with pytest.raises(InputError, match="holds predictions of other images"):
        predict(str(run_dir / "fusion"), **options)
    with pytest.raises(InputError, match=r"--out .*: lies in "):
        predict("fusion", images=[tmp_path], out=tmp_path / "out")
    with pytest.raises(InputError, match="holds something else than predictions"):
        predict(str(run_dir / "fusion"), **options | {"out": tmp_path})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view": "FRONTAL"}, r"row 3: view 'FRONTAL'; wanted PA, AP"),
        ({"path": "a.png"}, r"row 3: path 'a.png' occurs twice"),
        ({"study_id": ""}, r"row 3: study_id is empty"),
        ({"study_id": "s1", "patient_id": "p2"}, r"row 2: study 's1' has two patients"),
    ],
)
def test_a_fault_in_a_table_is_named(tmp_path, change, message):
    row = {"path": "a.png", "study_id": "s1", "patient_id": "p1", "view": ""}
    other = {"path": "b.png", "study_id": "s2", "patient_id": "p2", "view": ""} | change
    write_table(tmp_path / "t.csv", pd.DataFrame([row, other], dtype=str))
    with pytest.raises(InputError, match=message):
        read_image_table(tmp_path / "t.csv")


def test_what_cannot_be_a_study_is_refused(model, study, tmp_path):
    with pytest.raises(InputError, match="at least one image"):
        model.predict_study([])
    with pytest.raises(InputError, match=r"one per file \(3\), found 1"):
        model.predict_study(study[0], ["PA"])
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ImageError, match=r"notes\.txt: is of an unknown format"):
        model.predict_study([tmp_path / "notes.txt"])
    with pytest.raises(InputError, match="no such file or folder"):
        model.predict(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no usable image: .*unknown format"):
        model.predict(tmp_path)


# the model -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(run_dir, tmp_path):
    """A copy of what a model is read from, elsewhere."""
    for name in ("stage_one", "fusion", "small", "half", "cache"):
        shutil.copytree(
            run_dir / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("*.tar", "last", "prev*")
        )
    return tmp_path / "copy"


def test_a_moved_run_still_finds_its_parts(copy, model, study):
    moved = load_model(copy / "fusion" / "best")
    np.testing.assert_array_equal(moved.predict_study(*study).logits, model.predict_study(*study).logits)
    assert load_model(copy / "small").parts.identity.dtype == "uint8"


def test_parts_that_do_not_belong_together_are_refused(copy, run_dir):
    best = copy / "stage_one" / "best"
    weights = bytearray((best / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (best / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        load_model(copy / "fusion")
    digests = json.loads((best / "digests.json").read_text())
    digests["model.safetensors"] = hashlib.sha256(weights).hexdigest()
    (best / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(InputError, match="did not make the maps that the fusion model was trained on"):
        load_model(copy / "fusion")


@pytest.mark.parametrize("name", ["", "stage_one", "no_such", "fusion/single_image"])
def test_what_is_no_result_folder_is_refused_and_the_hub_is_not_asked(run_dir, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.chdir(run_dir.parent)
    with pytest.raises(InputError, match="wanted the result folder of a run"):
        load_model(Path("run") / name)
    with pytest.raises(InputError, match="--device tpu: there is no such device"):
        load_model(run_dir / "fusion", device="tpu")
    assert read_manifest(run_dir / "manifest.csv").classes  # the run itself is whole
