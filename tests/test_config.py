"""A configuration is a dataclass, YAML files and options; nothing in a file can run code or fill the memory."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from data.config import MAX_YAML_BYTES, default_values, flatten, parse_config, to_dict


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part."""

    lr: float = 0.5
    """Rate."""

    kind: Literal["plain", "fancy"] = "plain"
    """Kind."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Typed as loosely as can be."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"part.lr must be positive, got {self.lr}")


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Says what this program is for."""

    steps: int = 3
    """Number of steps, a sentence that --help shows."""

    weights: bool | Path = False
    """False, or a file."""

    mean: tuple[float, ...] = (0.5,)
    """Numbers."""

    part: Part = field(default_factory=Part)
    """A part."""


def parse(folder: Path, *words: str, **files: str) -> tuple[Whole, str]:
    (folder / "base.yaml").write_text("steps: 7\n")
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
        words = (*words, "--config", str(folder / f"{name}.yaml"))
    return parse_config(Whole, folder / "base.yaml", list(words))


def error_of(capsys: pytest.CaptureFixture, folder: Path, *words: str, **files: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(folder, *words, **files)
    assert stop.value.code == 2
    return capsys.readouterr().err.split("error: ", 1)[1]


def test_the_base_file_is_read_only_where_the_command_line_names_none(tmp_path):
    assert parse(tmp_path)[0] == Whole(steps=7)
    assert parse(tmp_path, "--part.lr", "2")[0] == Whole(steps=7, part=Part(lr=2.0))
    assert parse(tmp_path, own="mean: [1, 2]\n")[0] == Whole(mean=(1.0, 2.0))


def test_later_files_and_options_win_and_nested_defaults_stay(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("steps: 1\npart: {lr: 0.1, kind: fancy}\n")
    second.write_text("part: {lr: 0.2}\n")
    config, _ = parse(tmp_path, "--config", str(first), f"--config={second}", "--steps", "9")
    assert config == Whole(steps=9, part=Part(lr=0.2, kind="fancy"))


def test_what_was_parsed_before_leaves_nothing_behind(tmp_path, capsys):
    error_of(capsys, tmp_path, "--part.lr", "-1", bad="part: {kind: fancy, extra: {a: 1}}\n")
    parse(tmp_path, "--steps", "5", own="part: {lr: 0.1, extra: {b: 2}}\nweights: w.safetensors\n")
    assert default_values(Whole)["part.extra"] == {}
    assert parse(tmp_path) == parse_config(Whole, tmp_path / "base.yaml", [])
    assert parse(tmp_path)[0] == Whole(steps=7)


def test_a_rate_written_3e_4_is_a_number_and_a_path_is_a_path(tmp_path):
    config, _ = parse(tmp_path, own="part: {lr: 3e-4}\nweights: some/file.safetensors\n")
    assert config.part.lr == 3e-4
    assert config.weights == Path("some/file.safetensors")


def test_the_resolved_yaml_holds_every_value_and_reads_back_to_the_same_config(tmp_path):
    config, resolved = parse(tmp_path, "--part.lr", "0.25", "--weights", "w.safetensors")
    assert parse(tmp_path, saved=resolved) == (config, resolved)
    assert flatten(yaml.safe_load(resolved)) == {
        "steps": 7,
        "weights": "w.safetensors",
        "mean": [0.5],
        "part.lr": 0.25,
        "part.kind": "plain",
        "part.extra": {},
    }


def test_a_config_becomes_plain_json(tmp_path):
    config = Whole(weights=tmp_path, part=Part(extra={"a": [1, (2.0,)]}))
    assert json.loads(json.dumps(to_dict(config))) == to_dict(config)
    assert to_dict(config)["weights"] == str(tmp_path)
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


@pytest.mark.parametrize(
    ("words", "text", "named"),
    [
        (["--part.lrr", "1"], None, "part.lrr"),
        (["--part.kind", "odd"], None, "part.kind"),
        (["--part.lr", "-1"], None, "part.lr must be positive, got -1.0"),
        (["--steps", "many"], None, "steps"),
        ([], "# a comment\nsteps:\n", "\"steps\": Expected a <class 'int'>. Got value: None"),
        ([], "part: {lr: , kind: fancy}\n", "\"part.lr\": Expected a <class 'float'>. Got value: None"),
        (["--ste", "4"], None, "--ste"),  # an abbreviation of --config would pass our checks by
        ([], "part: {rate: 1}\n", "rate"),
        ([], "steps: [1\n", "not readable as a configuration"),
        ([], "", "wanted option names"),
        ([], "- steps\n", "wanted option names"),
        (["--config", "nowhere.yaml"], None, "nowhere.yaml: no such configuration file"),
    ],
)
def test_what_does_not_fit_ends_with_status_2_and_names_the_key(tmp_path, capsys, words, text, named):
    files = {} if text is None else {"own": text}
    assert named in error_of(capsys, tmp_path, *words, **files)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("part: {extra: {a: {class_path: canary.Made}}}\n", "class_path"),
        ("part: {class_path: canary.Made}\n", "class_path"),
        ("part: {extra: {a: [{'class_path': canary.Made}]}}\n", "class_path"),
        ("class_path: canary.Made\n", "class_path"),
        ("part: {kind: !!python/object/apply:canary.Made []}\n", "tags"),
        ("part: nested.yaml\n", "part"),  # a file behind a file would be read unchecked
        ("config: nested.yaml\n", "config"),
        ("steps: &a 3\npart: {lr: *a}\n", "aliases"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n", "aliases"),
        ("# " + MAX_YAML_BYTES * "x" + "\n", "bytes"),
        ("steps: \xff\n", "not readable"),
        ("steps: " + "[" * 60000, "brackets"),
    ],
)
def test_a_hostile_file_is_refused_before_anything_in_it_is_imported_or_built(
    tmp_path, capsys, monkeypatch, text, reason
):
    (tmp_path / "canary.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\nclass Made: pass\n")
    (tmp_path / "nested.yaml").write_text("extra: {a: {class_path: canary.Made}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own.yaml").write_bytes(text.encode("latin-1"))
    message = error_of(capsys, tmp_path, "--config", str(tmp_path / "own.yaml"))
    assert reason in message
    assert "own.yaml" in message
    assert not (tmp_path / "RAN").exists()


def test_help_shows_the_sentences_and_the_defaults(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(tmp_path, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Says what this program is for." in shown
    assert "a sentence that --help shows." in shown
    assert "default: 0.5" in shown
