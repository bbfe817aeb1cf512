"""A disk that is full from any operation on a file on: one line that says which file and what to do, no room kept, and
the same command ends with the bytes of an undisturbed run once there is room."""

from pathlib import Path

import pytest
import torch

from data.files import atomic_write
from data.runs import Log, run_command
from extract.checkpoint import save_folder
from tests.faults.commands import CASES, results
from tests.faults.full_disk import fill_everywhere

MOST = {"submission": None, "table": 2, "conversion": None}
"""Operations tried here; `python scripts/prove.py --part disk --long` tries all, of the other commands, too."""


@pytest.mark.parametrize("name", MOST)
def test_a_full_disk_at_any_operation_is_one_line_and_made_good_by_the_same_command(tmp_path, name):
    case = CASES[name](tmp_path)
    counts = fill_everywhere(case.folder, case.command, results, case.skip, MOST[name])
    assert counts["operations"] > 10
    assert counts["tried"] >= (MOST[name] or counts["operations"])


def test_a_full_disk_at_any_operation_of_a_save_is_one_line_and_leaves_nothing_of_it(tmp_path):
    files = {"model.safetensors": {"weight": torch.ones(9)}, "state.json": {"step": 3}}
    save_folder(tmp_path / "last", {"state.json": {"step": 2}})
    counts = fill_everywhere(
        tmp_path,
        lambda: save_folder(tmp_path / "last", files, keep=tmp_path / "previous"),
        lambda content: {name: data for name, data in content.items() if name.startswith("last/")},
    )
    assert counts["operations"] > 10


def test_a_full_disk_is_said_once_where_the_log_has_no_room_for_it_either(tmp_path):
    def command() -> None:
        Log(tmp_path, speaks=True)("begun")
        atomic_write(tmp_path / "x", b"content")

    counts = fill_everywhere(tmp_path, lambda: run_command(command, tmp_path), lambda content: {"x": content["x"]})
    assert counts["tried"] == counts["operations"] >= 4


def greedy(path: Path) -> None:
    with open(path.with_name(".tmp-x"), "wb") as file:
        file.write(b"content")
    path.with_name(".tmp-x").rename(path)


def silent(path: Path) -> None:
    try:
        atomic_write(path, b"content")
    except OSError:
        return


def once(path: Path) -> None:
    """Whole, but not to be begun again."""
    path.with_name("begun").mkdir()
    atomic_write(path, b"content")


@pytest.mark.parametrize(
    ("write", "words"), [(greedy, "left .*tmp-x"), (silent, "went on, on a full disk"), (once, "begun")]
)
def test_the_search_finds_what_it_looks_for(tmp_path, write, words):
    with pytest.raises((AssertionError, FileExistsError), match=words):
        fill_everywhere(tmp_path, lambda: write(tmp_path / "x"), lambda content: content)
