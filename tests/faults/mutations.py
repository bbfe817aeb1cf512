"""Bytes that were right, made wrong: flipped, cut, repeated, spliced, and filled with what breaks parsers."""

import copy
import json
import random
from typing import Any

NUMBERS = [0, 1, -1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 10**30]
TEXTS = ["", "x", "..", "../x", "/etc/passwd", "\0", "\n", "é", "\ud800", "nan", "1e999", "-", "{{7*7}}", "a" * 5000]
OTHERS: list[Any] = [None, True, False, 0.5, 1e308, float("nan"), float("inf"), [], {}, [[]], {"a": {}}]
VALUES = [*OTHERS, *NUMBERS, *TEXTS]
"""What a key of a JSON file may hold instead."""
SYNTAX = ['"', "'", ",", "\r", "\n\n", "{", "[", "&a", "*a", "!!python/object:os.system", "\ufeff"]
TOKENS = [text.encode("utf-8", "surrogatepass") for text in (*TEXTS, *SYNTAX, *map(str, NUMBERS))]
TOKENS += [n.to_bytes(4, order) for n in (0, 1, 2**16, 2**31, 2**32 - 1) for order in ("little", "big")]


def mutated(corpus: list[bytes], rng: random.Random, most_bytes: int = 1 << 16) -> bytes:
    """One of the corpus with one to five changes."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        data = _change(data, corpus, rng)
    return bytes(data[:most_bytes])


def _change(data: bytearray, corpus: list[bytes], rng: random.Random) -> bytearray:
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 2, 4, 8, 30, 300)))
    kind = rng.randrange(8)
    if kind == 0 and start < len(data):
        data[start] ^= 1 << rng.randrange(8)
    elif kind == 1 and start < len(data):
        data[start] = rng.randrange(256)
    elif kind == 2:
        data[start:end] = b""
    elif kind == 3:
        data[start:start] = data[start:end] * rng.choice((1, 2, 50))
    elif kind == 4:
        data = data[:start]
    elif kind == 5:
        other = rng.choice(corpus)
        data = data[:start] + other[rng.randrange(len(other) + 1) :]
    else:
        token = rng.choice(TOKENS)
        data[start : start + (len(token) if kind == 6 else 0)] = token
    return data


def mutated_json(record: Any, rng: random.Random) -> Any:
    """A JSON value with another value, a key less or a key more at one to three places."""
    record = json.loads(json.dumps(record))
    for _ in range(rng.choice((1, 1, 2, 3))):
        record = _change_value(record, rng)
    return record


def _change_value(value: Any, rng: random.Random) -> Any:
    keys: list[Any] = list(range(len(value))) if isinstance(value, list) else []
    keys = list(value) if isinstance(value, dict) else keys
    if not keys or rng.random() < 0.15:
        return _another(rng)
    key, kind = rng.choice(keys), rng.random()
    if kind < 0.1:
        del value[key]
    elif kind < 0.2 and isinstance(value, dict):
        value[rng.choice(TEXTS)] = _another(rng)
    elif kind < 0.3 and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = _change_value(value[key], rng)
    return value


def _another(rng: random.Random) -> Any:
    """A value of its own: what is changed in it later must not change the next input's."""
    return copy.deepcopy(rng.choice(VALUES))
