"""How a stage reads its configuration: YAML files, layered, then options."""

import dataclasses
import functools
import itertools
import sys
from argparse import ArgumentError
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from data.errors import InputError

set_parsing_settings(docstring_parse_attribute_docstrings=True)
Config = TypeVar("Config")
MAX_YAML_BYTES = 64 * 1024
MAX_BRACKETS = 500  # thousands of nested ones keep a YAML reader busy for minutes


def parse_config(config_class: type[Config], base: Path | None, argv: list[str] | None = None) -> tuple[Config, str]:
    """Read a frozen dataclass from ``--config a.yaml --config b.yaml --section.key value``, the last one winning.

    Args:
        base: The file read where the command line names none: the embedded default. None: the dataclass's defaults.

    Returns:
        The config, and the resolved YAML to be saved beside whatever the run writes.

    A key or value that does not fit ends the program with status 2 and one line naming the key.
    """
    parser = _parser(config_class)
    words = spell_out_flags(sys.argv[1:] if argv is None else argv, config_class)
    try:
        if base is not None and not config_files(words):
            words = ["--config", str(base), *words]
        for path in config_files(words):
            check_yaml(path, config_class)
        arguments = parser.parse_args(words)
        parser.validate(arguments, skip_unset=False)  # parsing passes a key without a value, whatever its type
        fields = vars(parser.instantiate(arguments))
        del fields["config"]
        return config_class(**fields), parser.dump(arguments, skip_unset=False)
    except (ValueError, TypeError, ArgumentError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def default_values(config_class: type) -> dict[str, Any]:
    """Every key's value where nobody sets it, as ``section.key``."""
    parser = _parser(config_class)
    return flatten(yaml.safe_load(parser.dump(parser.get_defaults(), skip_unset=False)))


@functools.cache
def _parser(config_class: type) -> ArgumentParser:
    """One per class: reading the docstrings of all its sections takes longer than parsing."""
    parser = ArgumentParser(description=config_class.__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file; may be repeated, later files and options win.")
    parser.add_class_arguments(config_class)
    return parser


def spell_out_flags(words: list[str], config_class: Any) -> list[str]:
    """``--trial`` alone, followed by no value, means ``--trial true``; a section's name alone, its ``run``."""
    flags = {f"--{part.name}" for part in dataclasses.fields(config_class) if part.type is bool}
    phases = {f"--{part.name}" for part in dataclasses.fields(config_class) if hasattr(part.type, "run")}
    words = [f"{word}.run=true" if word in phases else word for word in words]
    pairs = itertools.zip_longest(words, words[1:])
    return [f"{word}=true" if word in flags and after not in ("true", "false") else word for word, after in pairs]


def config_files(words: list[str]) -> list[Path]:
    """The values of every ``--config`` in a command line."""
    after = [following for word, following in itertools.pairwise(words) if word == "--config"]
    return [Path(name) for name in after + [w.split("=", 1)[1] for w in words if w.startswith("--config=")]]


def check_yaml(path: Path, config_class: type) -> None:
    """Refuse a configuration file that `read_yaml` refuses, or that has sections which `config_class` has not."""
    _check_sections(read_yaml(path), config_class, str(path))


def read_yaml(path: Path) -> Any:
    """Parse a configuration file; refuse one that could run code or exhaust memory, wherever it comes from.

    A few hundred bytes of nested aliases fill gigabytes, and the parser imports what a ``class_path`` names before it
    refuses it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such configuration file")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise InputError(f"{path}: a configuration has at most {MAX_YAML_BYTES} bytes, this file has more")
    try:
        text = path.read_text(encoding="utf-8")
        _check_tokens(text)
        tree = yaml.safe_load(text)
        _check_key_texts(tree)
        return tree
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as a configuration ({' '.join(str(error).split())[:200]})") from None


def _check_tokens(text: str) -> None:
    starts = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken | yaml.TagToken):
            raise InputError("YAML anchors, aliases and tags are not accepted; write values out")
        if isinstance(token, yaml.ScalarToken) and token.value == "class_path":
            raise InputError("a configuration does not choose classes; remove class_path")
        starts += isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken)
        if starts > MAX_BRACKETS:
            raise InputError(f"more than {MAX_BRACKETS} brackets")


def _check_key_texts(tree: Any) -> None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise InputError(f"the key {key!r} is no text")
            _check_key_texts(value)


def _check_sections(tree: Any, config_class: Any, where: str) -> None:
    """A section is written out where it stands; a string there would be read as one more file, past our checks."""
    if not isinstance(tree, dict):
        raise InputError(f"{where}: wanted option names and their values, found {tree!r:.80}")
    sections = {
        part.name: part.type for part in dataclasses.fields(config_class) if dataclasses.is_dataclass(part.type)
    }
    for name in tree.keys() & (sections.keys() | {"config"}):
        if name == "config":
            raise InputError(f"{where}: a configuration file cannot name another one (config)")
        _check_sections(tree[name], sections[name], f"{where}: {name}")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dictionaries, lists and strings, as JSON takes them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested dictionary: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
