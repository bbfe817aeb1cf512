"""A folder of DICOM files becomes studies of patients, and not one identifier of a header gets out."""

import base64
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, Sequence, uid
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite

from data.dicom_header import read_study_header
from data.errors import InputError
from data.images import ImageError
from data.manifest import read_manifest
from data.prepare import main
from data.pseudonyms import load_key, pseudonym
from data.scan import scan_images
from data.sources.dicom_folder import read
from data.tables import read_table

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")  # while writing them
ROOT = Path(__file__).resolve().parents[1]
KEY = bytes(range(32))


def dataset(image: str, study: str = "1.2.1", patient: str = "P1", **elements) -> Dataset:
    """A 10 x 12 radiograph of a chest."""
    out = Dataset()
    out.SOPInstanceUID, out.StudyInstanceUID, out.PatientID = image, study, patient
    out.Modality, out.BodyPartExamined, out.PhotometricInterpretation = "DX", "CHEST", "MONOCHROME2"
    out.SamplesPerPixel, out.Rows, out.Columns = 1, 10, 12
    out.BitsAllocated, out.BitsStored, out.HighBit, out.PixelRepresentation = 16, 12, 11, 0
    out.PixelData = np.random.default_rng(0).integers(0, 4096, (10, 12)).astype("<u2").tobytes()
    out["PixelData"].VR = "OW"
    for name, value in elements.items():
        if value is None:
            delattr(out, name)
        else:
            setattr(out, name, value)
    return out


def view_code(value: str, meaning: str = "") -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return Sequence([item])


def save(path: Path, content: Dataset, syntax: str = uid.ExplicitVRLittleEndian) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = syntax
    content.file_meta.MediaStorageSOPClassUID = content.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dcmwrite(path, content, enforce_file_format=True)
    return path


@pytest.fixture
def key(tmp_path) -> Path:
    path = tmp_path / "keys" / "mine"
    path.parent.mkdir()
    path.write_text(KEY.hex() + "\n")
    return path


def ids(image: str, study: str, patient: str) -> list[str]:
    return [pseudonym("image", image, KEY), pseudonym("study", study, KEY), pseudonym("patient", patient, KEY)]


def test_the_manifest_equals_rows_written_by_hand_and_the_rest_is_named(tmp_path, key, caplog):
    root = tmp_path / "images"
    save(root / "b" / "IM1", dataset("1.1", ViewPosition="PA"))
    save(root / "a" / "x.dcm", dataset("1.2", ViewPosition="LL"), uid.ImplicitVRLittleEndian)
    save(root / "other", dataset("1.3", "1.2.2", "P1", BodyPartExamined="TORAX^Anna"), uid.ExplicitVRBigEndian)
    save(root / "z.img", dataset("1.4", "1.2.3", "P2", IssuerOfPatientID="A"), uid.DeflatedExplicitVRLittleEndian)
    save(root / "zz", dataset("1.5", "1.2.4", None, ViewPosition="AP", Modality=None))
    save(root / "copy", dataset("1.3", "1.2.2", "P1"))
    save(root / "ct", dataset("1.6", Modality="CT"))
    save(root / "hand", dataset("1.7", BodyPartExamined="HAND"))
    save(root / "colour", dataset("1.8", PhotometricInterpretation="RGB", SamplesPerPixel=3))
    save(root / "report", dataset("1.9", PixelData=None))
    save(root / "no_study", dataset("1.10", study=None))
    save(root / "no_image", dataset(None))
    save(root / "mixed" / "1", dataset("1.11", "1.2.9", "P3"))
    save(root / "mixed" / "2", dataset("1.12", "1.2.9", "P4"))
    cut = save(root / "cut", dataset("1.13"))
    cut.write_bytes(cut.read_bytes()[:-300])
    (root / "empty").touch()
    (root / "notes.txt").write_text("hello")
    os.mkfifo(root / "pipe")
    (root / "link").symlink_to(key)
    (root / "new\nline").write_text("hello")
    (tmp_path / "outside").mkdir()
    save(tmp_path / "outside" / "x", dataset("1.14", "1.2.7"))
    (root / "away").symlink_to(tmp_path / "outside")
    with caplog.at_level(logging.WARNING):
        manifest = read(root, key=key)
    study = pseudonym("study", "1.2.4", KEY)
    assert manifest.images.to_numpy().tolist() == [
        [*ids("1.2", "1.2.1", "P1"), "LATERAL", "a/x.dcm", "test", "dicom"],
        [*ids("1.1", "1.2.1", "P1"), "PA", "b/IM1", "test", "dicom"],
        [*ids("1.3", "1.2.2", "P1"), "UNKNOWN", "copy", "test", "dicom"],
        [*ids("1.4", "1.2.3", "P2\\A"), "UNKNOWN", "z.img", "test", "dicom"],
        [*ids("1.5", "1.2.4", "")[:2], pseudonym("patient", study, KEY), "AP", "zz", "test", "dicom"],
    ]
    assert np.isnan(manifest.labels).all()
    assert len(manifest.classes) == 26
    reasons = {
        "away": "is a link to a folder; links are not followed: name that folder instead",
        "colour": "is RGB; wanted MONOCHROME1 or MONOCHROME2",
        "ct": "has modality CT; wanted a radiograph (CR, DX, RG, or no modality given)",
        "cut": None,
        "empty": "is not a DICOM file",
        "hand": "has body part HAND; wanted a chest radiograph",
        "link": "leads out of the image folder (a link or ..); name the folder it leads to as the root instead",
        "mixed/1": "its study holds files with different Patient IDs",
        "mixed/2": "its study holds files with different Patient IDs",
        "new\nline": "has a name that a manifest cannot hold: control characters, \\, :, or not UTF-8",
        "no_image": "has no (0008,0018) SOP Instance UID to tell it from others by",
        "no_study": "has no (0020,000D) Study Instance UID to group it by",
        "notes.txt": "is not a DICOM file",
        "other": "has the same SOP Instance UID as copy",
        "pipe": "is a pipe, socket or device",
        "report": "has no pixel data, or is cut before its end",
    }
    found = dict(manifest.rejected)
    assert found.pop("cut", None) in ("has no pixel data, or is cut before its end", "is a damaged DICOM file")
    assert found == {path: reason for path, reason in reasons.items() if reason}
    assert "1 studies have no Patient ID; each is taken for a patient of its own" in caplog.text
    assert "16 of 21 files are left out" in caplog.text


@pytest.mark.parametrize(
    ("elements", "view"),
    [
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": "pa "}, "PA"),
        ({"ViewPosition": "POSTEROANTERIOR"}, "PA"),
        ({"ViewPosition": "AP", "PatientOrientation": ["A", "F"]}, "AP"),
        ({"ViewPosition": "RL"}, "LATERAL"),
        ({"ViewPosition": "LLD"}, "OTHER"),
        ({"ViewPosition": "ANNA", "ViewCodeSequence": view_code("272479007")}, "PA"),
        ({"ViewCodeSequence": view_code("R-10206")}, "AP"),
        ({"ViewCodeSequence": view_code("399173006")}, "LATERAL"),
        ({"ViewCodeSequence": view_code("399135007")}, "OTHER"),
        ({"ViewCodeSequence": view_code("local", "Left Lateral")}, "LATERAL"),
        ({"ViewCodeSequence": view_code("local", "Anna"), "PatientOrientation": ["P", "F"]}, "LATERAL"),
        ({"PatientOrientation": ["A", "FR"]}, "OTHER"),
        ({"PatientOrientation": ["L", "F"]}, "UNKNOWN"),  # frontal, but the picture does not tell which
        ({"PatientOrientation": ["LE", "CD"]}, "UNKNOWN"),  # directions of animals
        ({"PatientOrientation": "A"}, "LATERAL"),
        ({}, "UNKNOWN"),
    ],
)
def test_views_come_from_position_then_code_then_orientation(tmp_path, elements, view):
    path = save(tmp_path / "x", dataset("1.1", **elements))
    assert read_study_header(path, "x", KEY).view == view


def test_pixels_are_not_read_but_must_be_there(tmp_path):
    content = save(tmp_path / "x", dataset("1.1")).read_bytes()
    place = content.rindex(struct.pack("<HH", 0x7FE0, 0x0010))
    (tmp_path / "x").write_bytes(content[: place + 12])  # the pixels are gone, which is for the scan to find
    assert read_study_header(tmp_path / "x", "x", KEY).image_id == pseudonym("image", "1.1", KEY)
    for length in range(0, place, 7):
        (tmp_path / "x").write_bytes(content[:length])
        with pytest.raises(ImageError):
            read_study_header(tmp_path / "x", "x", KEY)


def test_a_header_with_damage_raises_our_error_only(tmp_path):
    content = save(tmp_path / "x", dataset("1.1", ViewCodeSequence=view_code("272479007"))).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(content)
        for place in rng.integers(132, len(content) - 240, 4):
            damaged[place] = rng.integers(256)
        (tmp_path / "x").write_bytes(damaged)
        try:
            read_study_header(tmp_path / "x", "x", KEY)
        except ImageError:
            refused += 1
    assert refused > 20


def three_patients(root: Path) -> None:
    for patient in range(3):
        for study in range(2):
            for image in range(2):
                number = f"{patient}{study}{image}"
                save(root / number, dataset(f"1.1.{number}", f"1.2.{patient}{study}", f"P{patient}"))


@pytest.mark.parametrize("by", ["SOPInstanceUID", "StudyInstanceUID", "path"])
def test_a_table_of_labels_is_joined_by_uid_or_path(tmp_path, key, by, caplog):
    three_patients(tmp_path / "images")
    studies = {"00": "1,0.25", "01": "0,", "10": "1,1", "20": "0,0"}  # 11 and 21 have no row
    lines = [f"{by},Edema,Mass"]
    for study, labels in studies.items():
        values = {"StudyInstanceUID": [f"1.2.{study}"], "SOPInstanceUID": [f"1.1.{study}0", f"1.1.{study}1"]}
        lines += [f"{value},{labels}" for value in values.get(by, [f"{study}0", f"{study}1"])]
    lines.append("1.9.9,1,1")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        manifest = read(
            tmp_path / "images", labels=tmp_path / "labels.csv", key=key, test_fraction=0.3, val_fraction=0.3
        )
    assert manifest.classes == ("Edema", "Mass")
    nan = float("nan")
    expected = [(1, 0.25)] * 2 + [(0, nan)] * 2 + [(1, 1)] * 2 + [(nan, nan)] * 2 + [(0, 0)] * 2 + [(nan, nan)] * 2
    np.testing.assert_array_equal(manifest.labels, np.array(expected, np.float32))
    assert manifest.images.groupby("patient_id")["split"].nunique().tolist() == [1, 1, 1]
    assert set(manifest.images["split"]) == {"train", "val", "test"}
    assert "8 of 12 files have a row" in caplog.text
    only = read(tmp_path / "images", labels=tmp_path / "labels.csv", classes=["Mass"], key=key)
    np.testing.assert_array_equal(only.labels[:, 0], manifest.labels[:, 1])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,Edema\n1,1\n", "one of the columns SOPInstanceUID, StudyInstanceUID or path is wanted .* got none"),
        ("path,StudyInstanceUID,Edema\n000,1.2.00,1\n", "got StudyInstanceUID and path"),
        ("path,Edema\n000,1\n000,1\n", "row 3: this path has a row already"),
        ("StudyInstanceUID,Edema\n1.2.00,yes\n", "row 2, column 'Edema': label must be empty or in 0..1, got 'yes'"),
        ("StudyInstanceUID,Edema\n1.2.99,1\n", "not one of its values belongs to a file"),
        ("path,Edema\n000,1\n001,0\n", "1 studies hold images with different labels, first study_id s[0-9a-f]{16}"),
    ],
)
def test_a_fault_in_the_table_of_labels_is_named_without_an_identifier(tmp_path, key, table, message):
    three_patients(tmp_path / "images")
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "images", labels=tmp_path / "labels.csv", key=key)
    assert "1.2." not in str(caught.value)


def test_a_folder_without_a_radiograph_names_the_first_files(tmp_path, key):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="no usable chest radiograph in DICOM form: it holds no files"):
        read(tmp_path / "images", key=key)
    (tmp_path / "images" / "a.txt").write_text("a")
    with pytest.raises(InputError, match=r"DICOM form: a\.txt: is not a DICOM file"):
        read(tmp_path / "images", key=key)
    with pytest.raises(InputError, match="absent: no such folder"):
        read(tmp_path / "absent", key=key)


def test_a_folder_that_cannot_be_listed_is_named_rather_than_missing(tmp_path, key, monkeypatch):
    three_patients(tmp_path / "images")
    (tmp_path / "images" / "locked").mkdir()
    scandir = os.scandir

    def locked(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(InputError, match=r"locked: cannot be listed \(Permission denied\)"):
        read(tmp_path / "images", key=key)


def test_ids_depend_on_the_key_and_on_what_they_stand_for(tmp_path):
    assert pseudonym("patient", "7", KEY) == pseudonym("patient", "7", KEY)
    one = {pseudonym(kind, "7", k)[1:] for kind in ("patient", "study", "image") for k in (KEY, KEY[::-1])}
    assert len(one) == 6
    assert [pseudonym(kind, "7", KEY)[0] for kind in ("patient", "study", "image")] == ["p", "s", "i"]
    assert all(len(text) == 16 for text in one)


def test_the_users_own_key_is_made_once_for_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    first, place = load_key()
    assert place == tmp_path / "config" / "cxr-fusion" / "pseudonym.key"
    assert len(first) == 32
    assert place.stat().st_mode & 0o777 == 0o600
    assert load_key()[0] == first
    assert os.listdir(place.parent) == ["pseudonym.key"]
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    second, place = load_key()
    assert place == tmp_path / "home" / ".config" / "cxr-fusion" / "pseudonym.key"
    assert second != first


@pytest.mark.parametrize("text", ["", "xyz", "00" * 31, "00" * 65, "ü"])
def test_a_file_without_a_key_is_named(tmp_path, text):
    (tmp_path / "key").write_text(text)
    with pytest.raises(InputError, match=r"key: .*hexadecimal digits of 32 to 64 random bytes are wanted"):
        load_key(tmp_path / "key")
    with pytest.raises(InputError, match="absent: cannot be read or made"):
        load_key(tmp_path / "absent")


def test_a_key_in_the_data_folder_is_refused(tmp_path, key):
    three_patients(tmp_path / "images")
    (tmp_path / "images" / "k").write_text(KEY.hex())
    (tmp_path / "k").symlink_to(tmp_path / "images" / "k")
    for path in (tmp_path / "images" / "k", tmp_path / "k"):
        with pytest.raises(InputError, match="the key must not lie in the data folder"):
            read(tmp_path / "images", key=path)


def canaries() -> dict[str, Dataset]:
    """Files with another canary in every text of their headers, good and bad ones; no canary in a file's name."""

    def filled(number: int, **elements) -> Dataset:
        texts = {
            "PatientName": f"CANARY^NAME{number}", "PatientID": f"CANARYID{number % 2}", "PatientBirthDate": "19770718",
            "AccessionNumber": f"CANARYACC{number}", "InstitutionName": "CANARY HOSPITAL", "StudyID": "CANARYSID",
            "StudyDescription": "CANARY STUDY", "IssuerOfPatientID": "CANARYISSUER", "BodyPartExamined": "CANARYPART",
            "ViewPosition": "CANARYVIEW", "StudyDate": "19770717", "PatientOrientation": ["CANARYO", "F"],
            "ViewCodeSequence": view_code("CANARYCODE", "CANARY"),
        }  # fmt: skip
        out = dataset(f"1.9.77{number}.717", f"1.9.88{number}.818", **texts | elements)
        out.add_new(0x00110010, "LO", "CANARY PRIVATE")
        out.add_new(0x00111001, "LO", "CANARY PRIVATE VALUE")
        return out

    return {
        "good0": filled(0),
        "good1": filled(1),
        "copy": filled(0),
        "modality": filled(2, Modality="CANARYMOD"),
        "colour": filled(3, PhotometricInterpretation="CANARYPHOTO"),
        "frames": filled(4, NumberOfFrames=3),
        "uid": filled(5, SOPInstanceUID="1.9.CANARYUID"),
        "no_study": filled(6, StudyInstanceUID=None),
    }


def test_no_identifier_and_no_word_of_a_header_gets_out(tmp_path, key):
    """Look in all that the command and the scan write and print for what the headers hold."""
    images = tmp_path / "images"
    for name, content in canaries().items():
        save(images / name, content)
    damaged = (images / "good0").read_bytes()
    (images / "damaged").write_bytes(damaged.replace(b"US\x02\x00", b"IS\x02\x00"))
    (images / "preamble").write_bytes(b"CANARY" + damaged[6:400])
    script = str(ROOT / "scripts" / "prepare.py")
    words = ["dicom", f"--images={images}", f"--key={key}", f"--out={tmp_path}/run/manifest.csv"]
    command = [sys.executable, "-W", "always", script, *words]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    manifest = read_manifest(tmp_path / "run" / "manifest.csv")
    assert manifest.images["path"].tolist() == ["copy", "good1", "uid"]
    assert len(read_table(tmp_path / "run" / "rejected.csv")) == 7
    scan_images(manifest, tmp_path / "run", workers=1, max_rejected=0.0, progress=False)
    written = [path.read_bytes() for path in (tmp_path / "run").iterdir()]
    everything = (run.stdout + run.stderr).encode() + b"\n".join(written)
    assert b"p" + pseudonym("patient", "CANARYID1\\CANARYISSUER", KEY)[1:].encode() in everything
    for secret in ("CANARY", "19770718", "19770717", "1.9.77", "1.9.88", KEY.hex()):
        utf_16, digits = secret.encode("utf-16-le"), secret.encode().hex().encode()
        for form in (secret.encode(), secret.lower().encode(), utf_16, digits):
            assert form not in everything, (secret, form)
        assert base64.b64encode(secret.encode())[:6] not in everything


def test_the_command_ends_in_a_manifest_and_a_list_of_the_rest(tmp_path, key, capsys):
    three_patients(tmp_path / "images")
    (tmp_path / "images" / "readme").write_text("x")
    out = tmp_path / "run" / "manifest.csv"
    main(["dicom", f"--images={tmp_path}/images", f"--key={key}", "--classes=[Edema, Mass]", f"--out={out}"])
    assert "1 files left out" in capsys.readouterr().out
    manifest = read_manifest(out)
    assert (len(manifest), manifest.classes) == (12, ("Edema", "Mass"))
    assert (out.parent / "rejected.csv").read_text() == "path,reason\nreadme,is not a DICOM file\n"


@pytest.fixture(scope="module")
def samples() -> Path:
    folder = os.environ.get("CXR_SHARED_DATA")
    if not folder:
        pytest.skip("CXR_SHARED_DATA is not set: the folder with real DICOM files")
    return Path(folder) / "dicom"


def test_real_files_are_told_apart(samples, key):
    manifest = read(samples, key=key)
    taken = manifest.images["path"]
    rejected = dict(manifest.rejected)
    assert taken.str.startswith(("chest_original/", "derived_from_RG1/", "other_radiograph/")).all()
    assert not [path for path in rejected if path.startswith("chest_original/") and "same SOP" not in rejected[path]]
    assert rejected["other_radiograph/RG3_RLE.dcm"] == "has body part EXTREMITY; wanted a chest radiograph"
    assert rejected["negative_controls/CT_small.dcm"].startswith("has modality CT; wanted a radiograph")
    assert rejected["dicom_table.csv"] == "is not a DICOM file"
