"""Nothing in a file runs, is read or written outside its folder, or fills the memory."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import InputError
from data.files import atomic_write
from data.lock import locked, refuse_if_running
from data.plots import plot_batch, plot_roc
from data.predictions import read_predictions, write_predictions
from data.runs import Log
from data.shards import ShardWriter
from data.tables import read_table
from extract.checkpoint import check_folder, load_classes, save_folder
from tests.bombs import measure
from tests.faults.commands import tiny_manifest
from tests.faults.hostile import FILLS_MEMORY, LEAVES_FOLDER, RUNS_CODE, STAYS, pickled, refusal
from tests.launch import unchecked
from tests.make_data import make_cache

MOST_MB, MOST_CPU_S = 1500, 60


@pytest.mark.parametrize("name", RUNS_CODE)
def test_no_code_in_a_file_runs(tmp_path, name):
    case, words = RUNS_CODE[name]
    line = refusal(case, tmp_path)
    assert words in line
    assert "\n" not in line
    assert not {"evil", "modelling"} & set(sys.modules)


def test_the_payload_would_be_seen(tmp_path):
    import pickle

    pickle.loads(pickled(tmp_path / "canary"))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", LEAVES_FOLDER)
def test_no_name_in_a_file_leads_out_of_its_folder(tmp_path, name):
    case, words = LEAVES_FOLDER[name]
    assert words in refusal(case, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "secret.png", "x.tar"}


@pytest.mark.parametrize("name", STAYS)
def test_a_name_that_stays_in_its_folder_is_read(tmp_path, name):
    (tmp_path / "in").mkdir()
    assert len(STAYS[name](tmp_path / "in", tmp_path / "canary"))


def measure_all(folder: Path) -> dict[str, tuple[str, float, float]]:
    return {
        name: measure(b"", lambda _, name=name, number=number: FILLS_MEMORY[name](folder / str(number)))
        for number, name in enumerate(FILLS_MEMORY)
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What each said, with which time and memory, as for users: no type is checked before it is read."""
    folder = tmp_path_factory.mktemp("large")
    for number in range(len(FILLS_MEMORY)):
        (folder / str(number)).mkdir()
    return unchecked(measure_all, folder)


@pytest.mark.parametrize("name", FILLS_MEMORY)
def test_no_small_file_fills_the_memory(measured, name):
    said, seconds, peak = measured[name]
    assert not said.startswith(("read", "NOT OUR", "THE PROCESS")), said
    assert peak < MOST_MB
    assert seconds < MOST_CPU_S  # of CPU time; they take a second or two


def write_lock(folder: Path) -> None:
    with locked(folder):
        pass


def write_shard(folder: Path) -> None:
    identity = make_cache(folder / "cache", tiny_manifest(folder), map_shape=(2, 1, 3)).identity
    (folder / "cache" / "000000.tar").unlink()
    os.symlink(folder.parent / "victim", folder / "cache" / ".tmp-000000.tar")
    writer = ShardWriter(folder / "cache", 0, identity)
    writer.close()


def write_log(folder: Path) -> None:
    Log(folder, speaks=True)("a line")


PLANTED = {
    "a file's final name": ("x", lambda folder: atomic_write(folder / "x", "new")),
    "a file's temporary name": (".tmp-x", lambda folder: atomic_write(folder / "x", "new")),
    "the lock": (".lock", write_lock),
    "the lock, looked at": (".lock", lambda folder: refuse_if_running(["--run_dir", str(folder)], folder / "none")),
    "the log": ("log.txt", write_log),
    "a shard's temporary name": ("unused", write_shard),
    "a checkpoint": ("last", lambda folder: save_folder(folder / "last", {"state.json": {}}, folder / "previous")),
}


@pytest.mark.parametrize("name", PLANTED)
def test_no_output_is_written_through_a_link_planted_in_its_place(tmp_path, name):
    link, write = PLANTED[name]
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_text("untouched")
    os.symlink(tmp_path / "victim", tmp_path / "run" / link)
    try:
        write(tmp_path / "run")
    except (InputError, SystemExit) as error:
        assert f"{link}: is a link" in str(error)  # noqa: PT017  some refuse, others replace the link
    assert (tmp_path / "victim").read_text() == "untouched"


def test_an_error_is_one_line_without_control_characters_whatever_it_quotes():
    text = str(InputError("t.csv: column 'a\nerror: all is well\r\x1b[2J\x9b\u2028' occurs twice"))
    assert text == r"t.csv: column 'a\nerror: all is well\r\x1b[2J\x9b\u2028' occurs twice"
    assert str(InputError("größe 图像")) == "größe 图像"


def test_weights_that_nobody_vouches_for_are_refused(tmp_path):
    save_folder(tmp_path / "best", {"model.safetensors": {"w": torch.zeros(2)}, "classes.json": {"classes": ["A"]}})
    digests = json.loads((tmp_path / "best" / "digests.json").read_text())
    del digests["model.safetensors"]
    (tmp_path / "best" / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(InputError, match=r"model\.safetensors: digests\.json does not list it"):
        check_folder(tmp_path / "best")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"classes": "A"}', '{"classes": ["A", 1]}', '{"classes": null}'])
def test_classes_that_are_no_list_of_texts_are_one_line(tmp_path, content):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(InputError, match=r"classes\.json: damaged, wanted .*; copy the whole folder again"):
        load_classes(tmp_path)


FORMULAS = [
    "=cmd|'/c calc'!A0",
    "+1+1",
    "-1",
    "@SUM(A1)",
    "{{7*7}}",
    "{% raw %}",
    "<script>x</script>",
    "$(id)",
    "'; --",
]


def test_ids_are_text_whatever_a_spreadsheet_a_shell_or_a_template_would_make_of_them(tmp_path):
    manifest = tiny_manifest(tmp_path)
    ids = manifest.images.iloc[: len(FORMULAS)].assign(image_id=FORMULAS)
    write_predictions(tmp_path / "p.csv", ids, np.full((len(ids), 1), 0.5, np.float32), ("=1+1",))
    found, _, classes = read_predictions(tmp_path / "p.csv")
    assert (found["image_id"].tolist(), classes) == (FORMULAS, ("=1+1",))
    assert read_table(tmp_path / "p.csv")["image_id"].tolist() == FORMULAS


def test_the_next_command_is_quoted_for_the_shell(tmp_path, capsys):
    from data import prepare
    from tests.faults.commands import table

    out = tmp_path / "$(touch canary); x" / "manifest.csv"
    base = tmp_path / "base"
    table(base)
    words = f"table --table={base}/table.csv --images={base}/images --classes=Edema,Nodule,Hernia --split=split".split()
    prepare.main([*words, f"--out={out}"])
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("next: accelerate launch extract.py --run_dir ")
    subprocess.run(["sh", "-c", f"echo {command}"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("names", [(r"$\frac{$", "a_b^c{", r"\unknown"), ("%d {x}", "<b>&", "$$")])
def test_classes_of_any_name_can_be_drawn(tmp_path, names):
    manifest = replace(tiny_manifest(tmp_path), classes=names)
    plot_batch(torch.zeros(2, 1, 4, 4), manifest.select(np.arange(2)), tmp_path / "b.png")
    scores = np.random.default_rng(0).random((12, 3))
    plot_roc(tmp_path / "r.png", scores, manifest.labels.astype(float), names, names[0])
    for name in ("b.png", "r.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100
