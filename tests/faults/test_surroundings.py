"""Where and when a command runs changes no byte of what it writes; a file system that fails ends it in one line."""

import errno
import json
import locale
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.files import atomic_write
from tests.faults.commands import CASES, quietly, results

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("submission", "table", "conversion")
LANGUAGES = ("de_DE", "tr_TR")  # a comma for the point; an i that is no I
PLACES = ["with space", "umläut-图像", "new\nline", "tab\tand 'quotes\" $HOME", "a" * 200, "-rf", "x.tar#1+2+ab"]


def run_in(base: Path, name: str) -> dict[str, object]:
    """What a command leaves below a folder of that name."""
    base.mkdir(parents=True)
    case = CASES[name](base)
    quietly(case.command)()
    return left_in(case.folder, base)


def left_in(folder: Path, base: Path) -> dict[str, object]:
    """What counts of the files below a folder, but for the name of the one in which all took place."""
    own = json.dumps(str(base), ensure_ascii=False)[1:-1].encode()  # a manifest says where its images lie
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return results({name: path.read_bytes().replace(own, b"BASE") for name, path in files.items()})


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> dict[str, dict]:
    return {name: run_in(tmp_path_factory.mktemp("usual") / name, name) for name in NAMES}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_odd_folder_names_change_no_byte(tmp_path, usual, name, place):
    assert run_in(tmp_path / place / name, name) == usual[name]


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
@pytest.mark.parametrize("name", NAMES)
def test_time_zone_umask_and_a_clock_that_runs_backwards_change_no_byte(tmp_path, monkeypatch, usual, name, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    now = time.time()
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now - 86400 * next(ticks))
    former = os.umask(0o077)
    try:
        assert run_in(tmp_path / name, name) == usual[name]
    finally:
        os.umask(former)
        monkeypatch.undo()
        time.tzset()


@pytest.fixture(scope="module")
def locales(tmp_path_factory) -> Path:
    """A folder with the languages, made here: few machines have them."""
    folder = tmp_path_factory.mktemp("locales")
    for language in LANGUAGES:
        command = ["localedef", "-i", language, "-f", "UTF-8", str(folder / f"{language}.UTF-8")]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            pytest.skip(f"the language {language} cannot be made here: {error}")
    return folder


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", NAMES)
def test_another_language_changes_no_byte(tmp_path, monkeypatch, usual, locales, name, language):
    former = locale.setlocale(locale.LC_ALL)
    monkeypatch.setenv("LOCPATH", str(locales))
    monkeypatch.setenv("LC_ALL", f"{language}.UTF-8")
    try:
        assert locale.setlocale(locale.LC_ALL, "") == f"{language}.UTF-8"  # Python alone takes LC_CTYPE only
        assert locale.localeconv()["decimal_point"] == ","
        assert run_in(tmp_path / name, name) == usual[name]
    finally:
        monkeypatch.undo()
        locale.setlocale(locale.LC_ALL, former)


@pytest.mark.slow
def test_ascii_and_another_hash_seed_change_no_byte(tmp_path, usual):
    CASES["table"](tmp_path)
    words = [f"--table={tmp_path}/table.csv", f"--images={tmp_path}/images", "--classes=Edema,Nodule,Hernia"]
    out = tmp_path / "run" / "manifest.csv"
    command = [sys.executable, "scripts/prepare.py", "table", *words, "--split=split", f"--out={out}"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONHASHSEED": "77", "PYTHONUTF8": "0"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert left_in(out.parent, tmp_path) == usual["table"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EBUSY, errno.EEXIST, errno.ESTALE, errno.EIO, errno.ENOSPC])
def test_a_rename_that_fails_leaves_the_old_file_and_the_next_try_works(tmp_path, monkeypatch, code):
    path = tmp_path / "x"
    atomic_write(path, "old")

    def rename(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code), str(source), None, str(target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", rename)
        with pytest.raises(OSError, match=os.strerror(code)):
            atomic_write(path, "new")
    assert path.read_text() == "old"
    atomic_write(path, "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x": "new"}


def test_a_rename_that_happened_although_it_reported_a_fault_is_made_good_by_the_next_try(tmp_path, monkeypatch):
    """As after a network file system has sent the request twice."""
    real = os.replace

    def rename(source: Path, target: Path) -> None:
        real(source, target)
        raise FileNotFoundError(errno.ENOENT, "gone", str(source))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", rename)
        with pytest.raises(FileNotFoundError):
            atomic_write(tmp_path / "x", "new")
    atomic_write(tmp_path / "x", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x": "new"}


READ_ONLY = """
mount --bind "$1/images" "$1/images" && mount -o remount,ro,bind "$1/images" || exit 77
mount --bind "$1/closed" "$1/closed" && mount -o remount,ro,bind "$1/closed" || exit 77
cd "$2" && "$3" scripts/prepare.py table --table="$1/table.csv" --images="$1/images" --classes=Edema,Nodule,Hernia \
    --split=split --out="$1/open/manifest.csv" || exit 1
"$3" scripts/prepare.py table --table="$1/table.csv" --images="$1/images" --classes=Edema,Nodule,Hernia \
    --split=split --out="$1/closed/run/manifest.csv"
"""


@pytest.mark.slow
def test_images_may_be_read_only_and_a_read_only_output_is_one_line_before_the_work(tmp_path):
    CASES["table"](tmp_path)
    (tmp_path / "closed").mkdir()
    command = ["unshare", "-Urm", "sh", "-c", READ_ONLY, "sh", str(tmp_path), str(ROOT), sys.executable]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here: nothing can be mounted read-only")
    if run.returncode == 77 or "unshare:" in run.stderr:
        pytest.skip(f"no mount namespace here: {run.stderr.strip()[:100]}")
    assert run.returncode == 1
    assert (tmp_path / "open" / "manifest.csv").exists()
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/closed")
    assert "Read-only file system" in line or "cannot be written" in line
