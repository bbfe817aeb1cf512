"""Cut off at any operation on a file, by a kill or a power cut, a command leaves nothing that looks finished, and the
same command again ends with the bytes of an undisturbed run."""

import os
from pathlib import Path

import pytest

from data.files import atomic_write, create, sync_folder
from tests.faults.commands import CASES, quietly, results
from tests.faults.crashes import Recorder, crash_everywhere

FEW = {"stage_one": 5, "stage_two": 4}
"""States tried here of the commands that train; `python scripts/prove.py --part crashes --long` tries all."""
LONG_ONLY = ("images",)  # starts processes each time; test_prepared_images.py stops it anywhere, too


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("name", [name for name in CASES if name not in LONG_ONLY])
def test_a_crash_before_any_operation_is_made_good_by_the_same_command(tmp_path, name):
    case = CASES[name](tmp_path)
    most = FEW.get(name)
    counts = crash_everywhere(case.folder, quietly(case.command), results, case.skip, case.in_place, most)
    assert counts["operations: rename"] >= 2
    assert counts["tried"] >= (most or counts["states"]) - 2


def careless(path: Path) -> None:
    path.write_bytes(b"content")


def unflushed(path: Path) -> None:
    path.with_name(".tmp-x").write_bytes(b"content")
    os.replace(path.with_name(".tmp-x"), path)


def flushed_too_early(path: Path) -> None:
    with create(path.with_name(".tmp-x")) as file:
        os.fsync(file.fileno())
        file.write(b"content")
    os.replace(path.with_name(".tmp-x"), path)


def folder_unflushed(path: Path) -> None:
    path.with_name(".tmp-x").mkdir()
    with create(path.with_name(".tmp-x") / "y") as file:
        file.write(b"content")
        file.flush()
        os.fsync(file.fileno())
    os.rename(path.with_name(".tmp-x"), path)


def name_unflushed(path: Path) -> None:
    """What a name is published upon, another is, or something is removed, before the name is on disk."""
    atomic_write(path.with_name("old"), b"old")
    with create(path.with_name(".tmp-x")) as file:
        file.write(b"content")
        file.flush()
        os.fsync(file.fileno())
    os.replace(path.with_name(".tmp-x"), path)


def and_another(path: Path) -> None:
    name_unflushed(path)
    atomic_write(path.with_name("y"), b"content")


def and_removed(path: Path) -> None:
    name_unflushed(path)
    path.with_name("old").unlink()
    sync_folder(path.parent)


def once(path: Path) -> None:
    """Whole, but not to be written again."""
    if path.with_name(".tmp-" + path.name).exists():
        return
    atomic_write(path, b"content")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (careless, "under their final name"),
        (unflushed, "x renamed before .tmp-x was on disk"),
        (flushed_too_early, "x renamed before .tmp-x was on disk"),
        (folder_unflushed, "x renamed before .tmp-x/ was on disk"),
        (name_unflushed, "the end came before the name x was on disk"),
        (and_another, "y was renamed before the name x was on disk"),
        (and_removed, "old was removed before the name x was on disk"),
        (once, r"'x'\] differ"),
    ],
)
def test_the_search_finds_what_it_looks_for(tmp_path, write, words):
    with pytest.raises(AssertionError, match=words):
        crash_everywhere(tmp_path, lambda: write(tmp_path / "x"), lambda content: content)


def test_what_only_begins_like_a_name_to_skip_is_looked_at(tmp_path):
    (tmp_path / "images").mkdir()
    with Recorder(tmp_path, skip=("images",)) as recorder:
        atomic_write(tmp_path / "images.csv", b"12345678")
        atomic_write(tmp_path / "images" / "0.png", b"12345678")
    assert [what for what, _ in recorder.moments if what.startswith("rename")] == ["rename images.csv"]
    assert recorder.content(recorder.moments[-1][1]) == {"images.csv": b"12345678"}


def test_a_power_cut_halves_what_was_not_flushed_and_nothing_else(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    with Recorder(tmp_path) as recorder:
        atomic_write(tmp_path / "new", b"12345678")
    found = [recorder.content(state) for _, state in recorder.states()]
    assert {"old": b"old", ".tmp-new": b"1234"} in found
    assert {"old": b"old", ".tmp-new": b"12345678"} in found
    assert found[-1] == {"old": b"old", "new": b"12345678"}
    assert all(content["old"] == b"old" and content.get("new") in (None, b"12345678") for content in found)
