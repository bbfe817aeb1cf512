"""What README.md and docs/ say can be typed: every command parses, every named file and link is there."""

import argparse
import functools
import re
import runpy
import shlex
import sys
from pathlib import Path

import jsonargparse
import pytest
from accelerate.commands.launch import launch_command_parser

import data.prepare
from data.config import parse_config
from extract.config import ExtractConfig
from fusion.config import FusionConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PREPARE_PARSERS = functools.cache(data.prepare._parsers)  # of all data sets, for a third of all commands
STAGES = {
    "extract.py": (ExtractConfig, ROOT / "extract/configs/demo.yaml"),
    "train_fusion.py": (FusionConfig, ROOT / "fusion/configs/demo.yaml"),
}
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
OUTPUT = "```\n"  # a fence without a language holds drawings and what commands print
PARSES = re.compile(r"ArgumentParser|_bench|import main$", re.MULTILINE)  # a script that has none would do its work
STARTS = ("python scripts/", "accelerate launch ", "ACCELERATE_USE_CPU=1 accelerate launch ")


class Parsed(BaseException):
    """Thrown once a command line is understood: no command does its work. No Exception: nobody catches it."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(text: str) -> list[str]:
    """The commands of a page: lines of its code blocks, parts of a line joined by `&&`, and code within sentences."""
    text = text.replace("\\\n", " ")
    blocks = [block for block in FENCE.findall(text) if not block.startswith(OUTPUT)]
    prose = FENCE.sub("", text)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^ {4}(.*)$", prose, re.MULTILINE)
    parts = [part for line in lines for part in re.split(r"&&|;", line.split(" #")[0])]
    parts += re.findall(r"`([^`]+)`", prose)
    parts = [" ".join(part.split()) for part in parts]
    return [part for part in parts if part.startswith(STARTS) and ".py" in part]


def words_of(command: str) -> tuple[list[str], bool]:
    """The words of a command, and whether a lone `...` says that the rest is as told elsewhere."""
    command = re.sub(r"--config \S*\.\.\.\S*", "", command)  # any configuration
    words = shlex.split(re.sub(r"\[(.*?)\]", r"\1", command))  # what is optional is said too
    kept = [word for before, word in zip(["", *words], words, strict=False) if word != "..." or before.startswith("--")]
    return kept, kept != words


def every_parser(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser and those of its sub-commands."""
    below = [part for a in parser._actions if isinstance(a, argparse._SubParsersAction) for part in a.choices.values()]
    return [parser, *(p for part in below for p in every_parser(part))]


def ask_for_nothing(parser: argparse.ArgumentParser) -> None:
    """Make every option of a parser optional, for a command whose rest is left out."""
    for part in every_parser(parser):
        getattr(part, "required_args", set()).clear()  # jsonargparse keeps its own list
        for action in part._actions:
            action.required = False


def stop_behind(parse, is_shortened):
    """A parser's method that stops the program once it has understood the command line."""

    def parse_and_stop(self, *arguments, **options):
        if is_shortened:
            ask_for_nothing(self)
        parse(self, *arguments, **options)
        raise Parsed

    return parse_and_stop


@pytest.fixture
def understand(monkeypatch):
    """A function that gives a command's words to the program itself, up to the point where they are parsed.

    Configuration files of the stages are read, layered and checked in full.
    """

    def run(script: Path, words: list[str], is_shortened: bool = False) -> None:
        with monkeypatch.context() as patch:
            patch.chdir(ROOT)
            if script.name in STAGES:
                if words:
                    parse_config(*STAGES[script.name], words)
                return
            if not PARSES.search(script.read_text(encoding="utf-8")):
                assert not words, f"{script.name} takes no options, not {words}"
                return
            patch.setattr(sys, "argv", [str(script), *words])
            patch.syspath_prepend(str(ROOT / "scripts"))
            if not is_shortened:
                patch.setattr(data.prepare, "_parsers", PREPARE_PARSERS)
            for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
                patch.setattr(kind, "parse_args", stop_behind(kind.parse_args, is_shortened))
            with pytest.raises(Parsed):
                runpy.run_path(str(script), run_name="__main__")

    return run


def script_of(command: str) -> tuple[Path, list[str], bool]:
    """The script that a command starts, its options, and whether some are left out."""
    words, is_shortened = words_of(command)
    words = words[1:] if "=" in words[0] else words
    if words[0] == "python":
        return ROOT / words[1], words[2:], is_shortened
    options = launch_command_parser().parse_args(words[2:])
    return ROOT / options.training_script, options.training_script_args, is_shortened


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_starts_a_script_that_takes_its_options(page, understand, capfd):
    text = page.read_text(encoding="utf-8")
    for command in dict.fromkeys(commands(text)):
        try:
            script, words, is_shortened = script_of(command)
            assert script.is_file(), f"{page.name}: no such script: {command}"
            understand(script, words, is_shortened)
        except SystemExit:
            said = capfd.readouterr().err
            shown = re.search(r"error: (\S+): no such configuration file", said)
            # a configuration that the page itself shows; and import_weights.py has no second parser, it goes on to read
            understood = "No such file" in said or (shown is not None and f"# {shown[1]}:" in text)
            assert understood, f"{page.name}: {command}\n{said}"


def test_commands_are_found_where_pages_have_them():
    page = """
```
python scripts/drawn.py is the output of something
```
```bash
python scripts/a.py --x 1 \\
    --y "2 3"   # why
A=1 other; accelerate launch extract.py --run_dir r && python scripts/b.py
```
Or `python scripts/c.py
--z`, or `accelerate launch --quiet`:

    python scripts/d.py
"""
    found = ['python scripts/a.py --x 1 --y "2 3"', "accelerate launch extract.py --run_dir r", "python scripts/b.py"]
    assert commands(page) == [*found, "python scripts/d.py", "python scripts/c.py --z"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python scripts/prepare.py table --tabel my.csv ...", "--tabel"),
        ("python scripts/prepare.py padchst --images PNG ...", "padchst"),
        ("python scripts/submit.py cxr-lt-2023 --template t.csv", "predictions"),
        ("python scripts/tail.py --runs_dir runs/x", "--runs_dir"),
        ("python scripts/compare_losses.py --sead 3", "--sead"),
        ("accelerate launch extract.py --config extract/configs/cxr_lt_2032.yaml", "cxr_lt_2032"),
        ("accelerate launch train_fusion.py --config fusion/configs/demo.yaml --modell.width 8", "modell"),
        ("accelerate launch --num_process_es 2 extract.py", "--num_process_es"),
    ],
)
def test_a_mistake_in_a_command_is_found(command, said, understand, capfd):
    with pytest.raises(SystemExit):
        understand(*script_of(command))
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_and_every_named_file_is_there(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        target, _, heading = "".join(link).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        aim = (page.parent / target).resolve() if target else page
        assert aim.exists(), f"{page.name}: {target}"
        assert not heading or heading in headings(aim), f"{page.name}: {target} has no heading #{heading}"
    for name in set(
        re.findall(r"\b(?:scripts(?!/results)|tests|extract|fusion|data|docs)/[\w/]+\.(?:py|yaml|json|md)\b", text)
    ):
        assert (ROOT / name).exists(), f"{page.name}: {name}"
    for name in set(re.findall(r"\btest_\w+\.py\b", text)):
        assert list((ROOT / "tests").rglob(name)), f"{page.name}: {name}"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    lines = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md", ROOT / "docs/README.md"]  # the second one opens with its folder
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^):#\s]+\.md)", page.read_text(encoding="utf-8"))
        waiting += [aim for link in links if (aim := (page.parent / link).resolve()) not in reached]
    lost = sorted(name_of(page) for page in set(PAGES) - reached if page.parent.name == "docs")
    assert not lost, f"no page links to {lost}"


def pytest_commands() -> list[str]:
    """What the pages say about repeating a test."""
    return sorted({found for page in PAGES for found in re.findall(r"`(pytest [^`]+)`", page.read_text("utf-8"))})


@pytest.mark.parametrize("command", pytest_commands())
def test_a_pytest_command_names_files_that_are_there_and_words_of_their_tests(command):
    words = shlex.split(command)[1:]
    chosen = words.pop(words.index("-k") + 1).split(" or ") if "-k" in words else []
    places = [ROOT / word for word in words if word != "-k"] or [ROOT / "tests"]
    assert [place for place in places if not place.exists()] == []
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("test_*.py")))]
    names = [file.name for file in files]
    names += [name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)]
    assert [word for word in chosen if not any(word in name for name in names)] == []
