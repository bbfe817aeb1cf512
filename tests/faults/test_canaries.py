"""A canary in every text of a DICOM folder's headers, carried through all commands that read it: none gets out."""

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data import dicom_table, prepare
from data.audit.command import main as audit
from data.manifest import read_manifest
from data.predictions import read_predictions
from fusion import explanation, publish
from fusion import predict_command as predict
from fusion.doctor import report as doctor
from fusion.report import command as report
from tests.launch import run
from tests.test_dicom_folder import dataset, save, view_code
from tests.test_dicom_private import spellings

NUM_STUDIES = 14
UIDS = ("1.9.77", "1.9.88")
DATES = ("19770718", "19770717")
OPTIONS = ("--image.size=32", "--max_rejected=0.2")  # one file is cut behind its header
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")


def radiograph(number: int):
    """A chest with a canary in every text; studies of one image, patients of one or two studies."""
    values = np.random.default_rng(number).integers(0, 4096, (40, 36)).astype("<u2")
    values[5:20, 5:20] += np.uint16(2000 * (number % 2))
    texts = {
        "PatientName": f"CANARY^NAME{number}", "PatientID": f"CANARYID{number // 2}", "PatientBirthDate": DATES[0],
        "AccessionNumber": f"CANARYACC{number}", "InstitutionName": "CANARY HOSPITAL", "StudyID": "CANARYSID",
        "StudyDescription": "CANARY STUDY", "IssuerOfPatientID": "CANARYISSUER", "ViewPosition": "CANARYVIEW",
        "StudyDate": DATES[1], "PatientOrientation": ["CANARYO", "F"], "WindowCenter": 2048, "WindowWidth": 4096,
        "ViewCodeSequence": view_code("CANARYCODE", "CANARY"), "PatientComments": "CANARY " * 50,
    }  # fmt: skip
    out = dataset(f"{UIDS[0]}{number}.717", f"{UIDS[1]}{number}.818", **texts)
    out.Rows, out.Columns, out.PixelData = 40, 36, np.minimum(values, 4095).tobytes()
    out.add_new(0x00110010, "LO", "CANARY PRIVATE")
    out.add_new(0x00111001, "LO", "CANARY PRIVATE VALUE")
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """DICOM files, good and bad, in `images/`, the labels by UID, and a key."""
    base = tmp_path_factory.mktemp("canaries")
    for number in range(NUM_STUDIES):
        save(base / "images" / f"x{number:02}", radiograph(number))
    good = (base / "images" / "x00").read_bytes()
    (base / "images" / "cut").write_bytes(good[: len(good) // 2])
    (base / "images" / "swapped").write_bytes(good.replace(b"US\x02\x00", b"IS\x02\x00"))
    (base / "images" / "preamble").write_bytes(b"CANARY" + good[6:400])
    rows = [[f"{UIDS[1]}{n}.818", n % 2, 1 - n % 2] for n in range(NUM_STUDIES)]
    pd.DataFrame(rows, columns=["StudyInstanceUID", "Edema", "Mass"]).to_csv(base / "labels.csv", index=False)
    (base / "key").write_text("5a" * 32)
    save(base / "none" / "a", dataset("1.9.CANARY", Modality="CANARYMOD"))
    return base


def prepared(folder: Path) -> Path:
    """The manifest of the folder."""
    out = folder / "run" / "manifest.csv"
    if not out.exists():
        words = [f"--images={folder}/images", f"--labels={folder}/labels.csv", f"--key={folder}/key"]
        prepare.main(["dicom", *words, "--val_fraction=0.3", "--test_fraction=0.3", f"--out={out}"])
    return out


def prepare_images(folder: Path) -> None:
    out = folder / "small" / "manifest.csv"
    prepare.main(
        ["images", f"--manifest={prepared(folder)}", "--size=32", "--workers=1", "--max_rejected=0.2", f"--out={out}"]
    )


def accepted(folder: Path) -> None:
    prepare.main(["accept", f"--manifest={prepared(folder)}"])


def joined(folder: Path) -> None:
    words = [f"--manifests={prepared(folder)}", "--classes=cxr-lt-2023", f"--out={folder}/joined/manifest.csv"]
    prepare.main(["join", *words])


def audited(folder: Path) -> None:
    audit([str(prepared(folder)), "--out", str(folder / "audit"), "--workers", "1"])


def both_stages(folder: Path) -> None:
    prepared(folder)
    run("extract", folder / "run", *OPTIONS)
    run("fusion", folder / "run")


def trained(folder: Path) -> Path:
    """Stage two's results."""
    if not (folder / "run" / "fusion" / "predictions_test.csv").exists():
        both_stages(folder)
    return folder / "run" / "fusion"


def predicted(folder: Path) -> None:
    """All files of the folder, the broken ones too, by the run and by its published model."""
    words = [f"--images={folder}/images", "--shares", "--num_workers=1"]
    own = ["--heat_maps", "--top=1", f"--key={folder}/key", f"--out={folder}/predicted"]
    predict.main(["--model", str(trained(folder)), *words, *own])
    publish.main(["--run", str(trained(folder)), "--out", str(folder / "published")])
    predict.main(["--model", str(folder / "published"), *words, f"--out={folder}/predicted_again"])


def reported(folder: Path) -> None:
    report.main([str(trained(folder)), "--cases=2"])
    study = read_predictions(trained(folder) / "predictions_test.csv")[0]["study_id"].iloc[0]
    explanation.main(["--run_dir", str(folder / "run"), "--study", study, "--top=2"])


def broken_image(folder: Path) -> None:
    """An image that is damaged after it was listed: extraction names it, beside the one that was cut before."""
    path = read_manifest(prepared(folder)).image_path(NUM_STUDIES - 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    try:
        with pytest.raises(SystemExit, match=r"^1$"):
            run("extract", folder / "run", *OPTIONS, "--max_rejected=0")
    finally:
        path.write_bytes(whole)
    assert path.name in (folder / "run" / "rejected.csv").read_text()


def doctored(folder: Path) -> None:
    prepared(folder)
    words = ["--run_dir", str(folder / "run")]
    with pytest.raises(SystemExit):
        doctor.main(["--skip_self_test", *words])


def tabled(folder: Path) -> None:
    dicom_table.main(folder / "images", folder / "table.md")


def folder_without_radiographs(folder: Path) -> None:
    words = [f"--images={folder}/none", f"--key={folder}/key", f"--out={folder}/empty/manifest.csv"]
    with pytest.raises(SystemExit, match=r"^1$"):
        prepare.main(["dicom", *words])


TESTED = "run/cache/cache.json run/fusion/predictions_test.csv run/fusion/best/model.safetensors run/log.txt"
PREDICTED = "predicted/shares.csv predicted/rejected.csv published/config.json predicted_again/predictions.csv"
COMMANDS = {  # what proves that a command ran to its end: files that it wrote, words that it said
    prepared: ("run/manifest.csv run/manifest.json run/rejected.csv", "3 files left out, with reasons"),
    prepare_images: ("small/manifest.csv small/images/000000.tar small/contact_sheet.jpg", "13 images in 1 shard"),
    accepted: ("", "3 files left out, with reasons"),
    joined: ("joined/manifest.csv joined/rejected.csv", "joined/rejected.csv"),
    audited: ("audit/certificate.json audit/audit.html audit/card.md", "no leak found"),
    both_stages: (TESTED, "next: python scripts/report.py"),
    predicted: (PREDICTED, "13 studies with 13 images predicted; 4 files left out"),
    reported: ("run/fusion/report.html run/fusion/explained/shapley.csv", "next: open"),
    broken_image: ("run/rejected.csv run/log.txt", "error: 2 of 14 images"),
    doctored: ("", " checks, "),
    tabled: ("table.md", ""),
    folder_without_radiographs: ("", "none: no usable chest radiograph in DICOM form"),
}


def written(folder: Path) -> dict[str, bytes]:
    """All that the commands wrote."""
    mine = ("images/", "none/", "labels.csv", "key")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.startswith(mine)}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_no_word_of_a_header_gets_out_of_a_command(folder, command, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    before = written(folder)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        command(folder)
    out, err = capfd.readouterr()
    texts = {"printed": out.encode(), "errors": err.encode(), "log": caplog.text.encode()}
    texts["warnings"] = " ".join(str(warning.message) for warning in said).encode()
    new = {name: content for name, content in written(folder).items() if before.get(name) != content}
    texts |= new
    words = [*spellings(), *(word.encode() for word in (*UIDS, *DATES))]
    words += [word.encode("utf-16-le") for word in (*UIDS, *DATES)]
    hits = {name: word for name, text in texts.items() for word in words if word in text.lower()}
    assert not hits
    files, words_said = COMMANDS[command]
    assert set(files.split()) <= set(new)
    assert words_said in out + err


def test_the_manifest_was_filled(folder):
    manifest = read_manifest(prepared(folder))
    assert len(manifest) == NUM_STUDIES
    assert manifest.images["patient_id"].nunique() == NUM_STUDIES // 2
    assert len(json.loads((folder / "run" / "manifest.json").read_text())["rejected"]) == 3
