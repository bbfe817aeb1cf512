"""The command: a manifest and an account of it on success, one line and status 1 on a fault."""

import subprocess
import sys
import types
from pathlib import Path

import pandas as pd
import pytest

from data.label_spaces import CXR_LT_2023_CLASSES
from data.manifest import read_manifest
from data.prepare import main
from data.tables import write_table
from tests.make_mimic import cxr_lt_2024_files, mimic_files, write_files

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "prepare.py"


def labels(number: int) -> list[str]:
    return ["1" if c == number % 3 else "0" for c in range(26)]


def place(n: int, view: str) -> str:
    return f"files/p10/p1{n:07d}/s5{n:07d}/{n}{view}.jpg"


def write_challenge(folder: Path, patients: dict[str, range]) -> None:
    """CXR-LT 2023 tables of one study with two images per patient, and an empty image tree."""
    (folder / "mimic-cxr-jpg" / "files").mkdir(parents=True)
    for name, numbers in patients.items():
        lines = [
            [f"{n}{view}", f"1{n:07d}", f"5{n:07d}", view, "", place(n, view), *labels(n)]
            for n in numbers
            for view in ("PA", "LATERAL")
        ]  # fmt: skip
        columns = ["dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning", "path"]
        frame = pd.DataFrame(lines, columns=[*columns, *CXR_LT_2023_CLASSES], dtype="str")
        write_table(folder / "cxr-lt-2023" / f"{name}.csv", frame)


PATIENTS = {"train": range(12), "development": range(12, 17), "test": range(17, 24)}


def challenge_command(folder: Path, out: Path) -> list[str]:
    return ["cxr-lt-2023", f"--images={folder}/mimic-cxr-jpg", f"--labels={folder}/cxr-lt-2023", f"--out={out}"]


def test_it_writes_the_manifest_and_ends_with_the_next_command(tmp_path, capsys):
    write_challenge(tmp_path, PATIENTS)
    out = tmp_path / "my run" / "manifest.csv"
    main(challenge_command(tmp_path, out))
    lines = capsys.readouterr().out.splitlines()
    cells = [line.split() for line in lines[:4]]
    assert cells[0][:8] == ["images", "studies", "patients", "PA", "AP", "LATERAL", "OTHER", "UNKNOWN"]
    assert cells[1] == ["train", "24", "12", "12", "12", "0", "12", "0", "0", "16", "8", "0"]
    assert cells[3][:4] == ["test", "14", "7", "7"]
    assert "26 classes (8 head, 10 medium, 8 tail)" in lines[4]
    assert lines[-1] == f"next: accelerate launch extract.py --run_dir '{tmp_path}/my run'"
    assert len(read_manifest(out)) == 48


def test_a_fault_is_one_line_and_status_1(tmp_path, capsys):
    write_challenge(tmp_path, PATIENTS)
    (tmp_path / "cxr-lt-2023" / "test.csv").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(challenge_command(tmp_path, tmp_path / "run" / "manifest.csv"))
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "test.csv: no such file" in error
    assert not (tmp_path / "run" / "manifest.csv").exists()


def test_the_output_is_checked_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out, message in (
        (tmp_path / "m.csv", "must be called manifest.csv"),
        (tmp_path / "file" / "manifest.csv", "cannot be made"),
    ):
        with pytest.raises(SystemExit):
            main(challenge_command(tmp_path / "absent", out))
        assert message in capsys.readouterr().err


def test_a_table_with_its_own_names_and_commas(tmp_path, capsys):
    table = pd.DataFrame(
        {
            "id": [f"{i:02d}" for i in range(30)],
            "who": [f"w{i // 2}" for i in range(30)],
            "how": ["front", "AP supine"] * 15,
            "path": "x.png",
            "Mass, any": ["1", "0", ""] * 10,
            "Edema": ["0.5", "1", "0"] * 10,
        },
        dtype="str",
    )
    write_table(tmp_path / "t.csv", table)
    main(
        [
            *("table", f"--table={tmp_path}/t.csv", f"--images={tmp_path}", f"--out={tmp_path}/manifest.csv"),
            *("--image_id=id", "--study_id=id", "--patient_id=who", "--view=how", "--source=clinic"),
            *("--view_map=front=PA, AP supine=AP", '--classes="Mass, any",Edema', "--test_fraction=0.3"),
        ]
    )
    manifest = read_manifest(tmp_path / "manifest.csv")
    assert manifest.classes == ("Mass, any", "Edema")
    assert manifest.images["view"].tolist() == ["PA", "AP"] * 15
    assert set(manifest.images["source"]) == {"clinic"}
    assert manifest.images["split"].value_counts()["test"] in (8, 10)
    assert "2 classes (2 head, 0 medium, 0 tail)" in capsys.readouterr().out


def test_a_view_map_without_a_view_is_named(tmp_path, capsys):
    words = [f"--table={tmp_path}/t.csv", f"--images={tmp_path}", f"--out={tmp_path}/manifest.csv", "--classes=auto"]
    with pytest.raises(SystemExit):
        main(["table", *words, "--view_map=front"])
    assert "--view_map: 'front' is not of the form" in capsys.readouterr().err


def test_an_edited_manifest_can_be_accepted(tmp_path, capsys):
    write_challenge(tmp_path, PATIENTS)
    out = tmp_path / "manifest.csv"
    main(challenge_command(tmp_path, out))
    out.write_text(out.read_text().replace(",LATERAL,", ",OTHER,"))
    main(["accept", f"--manifest={out}"])
    assert set(read_manifest(out).images["view"]) == {"PA", "OTHER"}


def test_the_phantom_is_written_once_and_read_like_the_real_set(tmp_path, monkeypatch, capsys):
    calls = []

    def write_phantom(folder: Path, **options: object) -> None:
        calls.append(options)
        write_challenge(folder, PATIENTS)

    def phantom_is_complete(folder: Path, **options: object) -> bool:
        return folder.exists()

    fake = types.ModuleType("data.sources.phantom")
    fake.write_phantom, fake.phantom_is_complete = write_phantom, phantom_is_complete
    monkeypatch.setitem(sys.modules, "data.sources.phantom", fake)
    command = ["phantom", "--studies=12,5,7", "--size=32", f"--out={tmp_path}/run/manifest.csv"]
    for _ in range(2):
        main(command)
    assert calls == [{"num_studies": (12, 5, 7), "size": 32, "seed": 0}]
    manifest = read_manifest(tmp_path / "run" / "manifest.csv")
    assert set(manifest.images["source"]) == {"phantom"}
    assert manifest.image_path(0) == tmp_path / "run" / "phantom" / "mimic-cxr-jpg" / place(0, "PA")
    assert "already complete" in capsys.readouterr().out
    for studies in ("12,5", "a,b,c", "1,2,0", ""):
        with pytest.raises(SystemExit):
            main([*command, f"--studies={studies}"])
        assert "three numbers" in capsys.readouterr().err


def test_the_script_runs_from_another_folder_beside_a_stray_data_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("raise RuntimeError('stray')")
    result = subprocess.run(
        [sys.executable, SCRIPT, *challenge_command(tmp_path, tmp_path / "manifest.csv")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "no folder 'files'" in result.stderr


@pytest.mark.parametrize("form", ["package", "module"])
def test_a_foreign_package_called_data_is_named(tmp_path, form):
    if form == "package":
        (tmp_path / "data").mkdir()
    (tmp_path / ("data/__init__.py" if form == "package" else "data.py")).write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(SCRIPT.parent)!r}]; import data, _root"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: the package 'data' comes from {tmp_path}/data")


@pytest.mark.parametrize(
    ("command", "images"),
    [
        ("cxr-lt-2024 --task=2 --images={0} --labels={0}", 7),
        ("mimic-cxr-jpg --images={0} --uncertain=ones --not_mentioned=ignore --test_labels=radiologist", 9),
        ("mimic-cxr --images={0} --tables={0} --labeler=negbio", 10),
    ],
)
def test_every_source_is_a_command_with_the_options_of_its_reader(tmp_path, capsys, command, images):
    folder = write_files(tmp_path / "data", mimic_files() | cxr_lt_2024_files())
    out = tmp_path / "run" / "manifest.csv"
    main([*command.format(folder).split(), f"--out={out}"])
    assert len(read_manifest(out)) == images
    assert "next: accelerate launch" in capsys.readouterr().out
