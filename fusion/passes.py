"""Groups of any numbers of views packed into forward passes, without padding.

A *pass* is what goes through the model at once: the views of its groups in a row. Within it a *bucket* is the groups
with equally many views, which attention takes together. G groups, N views of all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fusion.model import ModelConfig
from fusion.published import MAX_VIEWS


class Views(NamedTuple):
    """One group's views at one visit."""

    ordinals: Int[np.ndarray, "V"]
    """Their maps in the cache."""
    view_types: Int[np.ndarray, "V"]
    """Numbers into `VIEWS`."""
    slots: Int[np.ndarray, "V"]
    variants: Int[np.ndarray, "V"]
    """Which of an image's cached maps."""


@dataclass(frozen=True)
class Pass:
    """Groups for one forward pass, few views first; their views in a row, group by group."""

    groups: Int[np.ndarray, "G"]
    """Numbers into the group set."""
    buckets: tuple[tuple[int, int], ...]
    """(groups, views of each) of every bucket in turn."""
    ordinals: Int[np.ndarray, "N"]
    variants: Int[np.ndarray, "N"]
    view_types: Int[Tensor, "N"]
    slots: Int[Tensor, "N"]

    def __len__(self) -> int:
        """N, the number of views."""
        return len(self.ordinals)

    def spans(self) -> Iterator[tuple[int, slice]]:
        """Each group's number and where its views lie in the row."""
        sizes = [views for groups, views in self.buckets for _ in range(groups)]
        for group, size, end in zip(self.groups.tolist(), sizes, np.cumsum(sizes).tolist(), strict=True):
            yield group, slice(end - size, end)


def make_passes(
    model: ModelConfig, numbers: Int[np.ndarray, "G"], views: list[Views], max_views: int = 0
) -> Iterator[Pass]:
    """The forward passes of some groups, sorted by number of views, as the configured model takes them.

    Args:
        numbers: Group numbers.
        views: Views of each of them; the published module's are padded to four.
        max_views: Views per pass at most (one group always fits); 0: no limit.
    """
    taken = [padded_views(part) for part in views] if model.kind == "published" else views
    counts = np.array([len(part.ordinals) for part in taken], dtype=int)
    order = np.argsort(counts, kind="stable")
    begin = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (max_views and counts[order[begin : end + 1]].sum() > max_views):
            yield pack(numbers[order[begin:end]], [taken[place] for place in order[begin:end]])
            begin = end


def pack(numbers: Int[np.ndarray, "G"], views: list[Views]) -> Pass:
    """One pass of groups that are sorted by number of views."""
    sizes, counts = np.unique([len(part.ordinals) for part in views], return_counts=True)
    ordinals, types, slots, variants = (np.concatenate(parts) for parts in zip(*views, strict=True))
    buckets = tuple(zip(counts.tolist(), sizes.tolist(), strict=True))
    return Pass(numbers, buckets, ordinals, variants, torch.from_numpy(types), torch.from_numpy(slots))


def padded_views(views: Views) -> Views:
    """A group as the published module takes it: the first four views by slot, absent ones marked by slot -1.

    Slots are drawn anew at each training visit, which makes the four random, as published; at test time they are in
    canonical order, where the release draws again. An absent view's map is the first one's, read but not looked at.
    """
    order = np.argsort(views.slots, kind="stable")[:MAX_VIEWS]
    taken = np.pad(order, (0, MAX_VIEWS - len(order)), mode="edge")
    place = np.arange(MAX_VIEWS)
    return Views(
        views.ordinals[taken], views.view_types[taken], np.where(place < len(order), place, -1), views.variants[taken]
    )


def maps_of(passes: list[Pass]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Ordinals and variants of all maps of some passes, pass after pass."""
    none = [np.empty(0, dtype=int)]
    return (
        np.concatenate([one.ordinals for one in passes] or none),
        np.concatenate([one.variants for one in passes] or none),
    )
