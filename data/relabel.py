"""Labels of one label space in the classes of another, by `data.label_maps`.

Axes: **N** images, **S** classes of the source, **C** classes of the target, **K** labels of one finding.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from data.errors import InputError
from data.label_maps import FINDINGS, KINDS, LISTS_ALL, SPACES, WHOLE


class Counterpart(NamedTuple):
    """What a source says of a target class: the source classes of which any makes it 1, and which, all 0, make it 0."""

    makes_1: tuple[str, ...]
    makes_0: tuple[str, ...]


def space_of(classes: Sequence[str], where: str) -> str:
    """The label space that a manifest's classes are from: the smallest one that has all of them.

    Args:
        where: The manifest, for the error.

    Raises:
        InputError: No space has them all, or two have that read them differently.
    """
    found = sorted((len(names), space) for space, names in SPACES.items() if set(classes) <= set(names))
    if not found:
        raise _no_space(classes, where)
    meanings = {space: ([FINDINGS[space][name] for name in classes], space in LISTS_ALL) for _, space in found}
    first = found[0][1]
    other = next((space for space in meanings if meanings[space] != meanings[first]), None)
    exact = len(SPACES[first]) == len(classes)
    if other is not None and not exact:
        raise InputError(
            f"{where}: its classes ({', '.join(classes[:3])}, ...) may be those of {first} or of {other}, which differ"
            " in meaning; prepare it with more classes"
        )
    return first


def relabel(labels: Float32[np.ndarray, "N S"], classes: Sequence[str], space: str, target: str) -> np.ndarray:
    """Labels in the classes of another space, (N, C) of float32; NaN where the source says nothing.

    Args:
        classes: Of the columns, all of them in `space`; those that are missing are unknown, and what a list of findings
            (`LISTS_ALL`) could have said by them is taken for absent.
    """
    if space == target:
        found = {name: labels[:, column] for column, name in enumerate(classes)}
        names = list(SPACES[target])
    else:
        found = _findings(labels, classes, space)
        names = [FINDINGS[target][name] for name in SPACES[target]]
    unknown = np.full(len(labels), np.nan, dtype=np.float32)
    return np.stack([found.get(name, unknown) for name in names], axis=1).astype(np.float32)


@cache
def counterparts(space: str, target: str) -> dict[str, Counterpart]:
    """What each target class is to a source, found by asking `relabel`; classes that stay unknown are left out."""
    classes = SPACES[space]
    one = np.concatenate([np.zeros((1, len(classes))), np.eye(len(classes))]).astype(np.float32)
    labels = relabel(one, classes, space, target)
    found = {}
    for column, name in enumerate(SPACES[target]):
        zero, ones = labels[0, column], labels[1:, column]
        makes_1 = tuple(source for source, value in zip(classes, ones, strict=True) if value == 1)
        makes_0 = tuple(source for source, value in zip(classes, ones, strict=True) if zero == 0 and value != 0)
        if makes_1 or makes_0:
            found[name] = Counterpart(makes_1, makes_0)
    return found


def _findings(labels: Float32[np.ndarray, "N S"], classes: Sequence[str], space: str) -> dict[str, np.ndarray]:
    """Every finding that the labels say something about, (N,) each."""
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(classes):
        columns.setdefault(FINDINGS[space][name], []).append(column)
    found = {finding: _any_of(labels[:, own]) for finding, own in columns.items()}
    order = _kinds_first()
    for finding in order:
        kinds = [found[kind] for kind in KINDS[finding] if kind in found]
        if kinds and space in LISTS_ALL:
            kinds += [found[finding]] if finding in found else []
            found[finding] = _any_of(np.stack(kinds, axis=1))
        elif finding in WHOLE and finding not in found and len(kinds) == len(KINDS[finding]):
            found[finding] = _any_of(np.stack(kinds, axis=1))
    for finding in reversed(order):
        if finding in found:
            for kind in KINDS[finding]:
                known = found.get(kind, np.full(len(labels), np.nan, dtype=np.float32))
                found[kind] = np.where(np.isnan(known) & (found[finding] == 0), np.float32(0), known)
    return found


def _any_of(labels: Float[np.ndarray, "N K"]) -> np.ndarray:
    """(N,): 1 where any label is 1, unknown where one is, else the largest."""
    return np.where((labels == 1).any(axis=1), np.float32(1), labels.max(axis=1))


def _kinds_first() -> list[str]:
    """The findings that have kinds, each after its kinds."""
    order: list[str] = []

    def visit(finding: str) -> None:
        for kind in KINDS.get(finding, ()):
            visit(kind)
        if finding in KINDS and finding not in order:
            order.append(finding)

    for finding in KINDS:
        visit(finding)
    return order


def _no_space(classes: Sequence[str], where: str) -> InputError:
    best = max(SPACES, key=lambda space: len(set(classes) & set(SPACES[space])))
    strange = next(name for name in classes if name not in SPACES[best])
    return InputError(
        f"{where}: its classes are from no label space that is known ({', '.join(SPACES)}); the nearest, {best}, lacks"
        f" '{strange}': give the columns its names"
    )
