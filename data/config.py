"""How a stage reads its configuration: YAML files, layered, then options."""

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from data.errors import InputError

set_parsing_settings(docstring_parse_attribute_docstrings=True)
Config = TypeVar("Config")
MAX_YAML_BYTES = 64 * 1024


def parse_config(config_class: type[Config], argv: list[str] | None = None) -> tuple[Config, str]:
    """Read a frozen dataclass from ``--config a.yaml --config b.yaml --section.key value``, the last one winning.

    Returns:
        The config, and the resolved YAML to be saved beside whatever the run writes.

    A key or value that does not fit ends the program with status 2 and one line naming the key.
    """
    parser = ArgumentParser(description=config_class.__doc__)
    parser.add_argument("--config", action="config", help="YAML file; may be repeated, later files and options win.")
    parser.add_class_arguments(config_class)
    try:
        for path in config_files(argv):
            check_yaml(path)
        arguments = parser.parse_args(argv)
        fields = vars(parser.instantiate(arguments))
        del fields["config"]
        return config_class(**fields), parser.dump(arguments, skip_none=False)
    except ValueError as error:
        parser.error(str(error))


def config_files(argv: list[str] | None) -> list[Path]:
    """The values of every ``--config`` in a command line."""
    words = sys.argv[1:] if argv is None else argv
    after = [following for word, following in itertools.pairwise(words) if word == "--config"]
    return [Path(name) for name in after + [w.split("=", 1)[1] for w in words if w.startswith("--config=")]]


def check_yaml(path: Path) -> None:
    """Refuse a configuration file that could exhaust memory: a few hundred bytes of nested aliases are enough."""
    if not path.is_file():
        raise InputError(f"{path}: no such configuration file")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise InputError(f"{path}: a configuration has at most {MAX_YAML_BYTES} bytes, this file has more")
    try:
        tokens = list(yaml.scan(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:200]})") from None
    if any(isinstance(token, yaml.AliasToken | yaml.AnchorToken) for token in tokens):
        raise InputError(f"{path}: YAML anchors and aliases are not accepted in a configuration; write the value out")


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
