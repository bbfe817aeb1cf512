"""Pictures that occur more than once: equal files, then near-duplicates.

Axes: **N** images, **U** different files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from data.audit.alignment import Alignment, align
from data.audit.candidates import VARIANTS, Pairs, find_candidates
from data.audit.confirmation import confirm
from data.audit.thumbnails import Thumbnails

SAME_PICTURE = 0.937
"""Least score of a near-duplicate. Chosen on planted copies; how, and what it misses, is in docs/audit.md."""

LOOKS_ALIKE = 0.85  # score of thumbnails from which the files themselves are compared
LEAST_CONTRAST = 0.05  # of full scale; below it there is no picture to compare
CROPPED = 0.97  # part of the original's area, at most, that is called a crop


class Copy(NamedTuple):
    """Two images (rows) of one picture; `how` says what was done to the first."""

    first: int
    second: int
    score: float
    how: str


def find_copies(
    thumbnails: Thumbnails,
    files: Sequence[Path],
    least_score: float = SAME_PICTURE,
    workers: int = 1,
    progress: bool = True,
) -> list[Copy]:
    """All pairs of near-duplicates, best first; of k equal files, k - 1 pairs with the first of them.

    A near-duplicate of one of k equal files is reported with the first of them only.

    Args:
        files: Where the images of the thumbnails lie.
        least_score: Of a pair, in (0, 1].
        workers: Threads that read files.
    """
    originals, copies = equal_files(thumbnails.content)
    rows = originals[thumbnails.contrast[originals] >= LEAST_CONTRAST]
    pixels = thumbnails.pixels if len(rows) == len(thumbnails.pixels) else thumbnails.pixels[rows]
    if len(rows) > 1:
        pairs = find_candidates(pixels, progress)
        alignment = align(pixels, pairs, progress)
        alike = np.flatnonzero(alignment.score >= LOOKS_ALIKE)
        pairs = Pairs(*(column[alike] for column in pairs))
        alignment = Alignment(*(column[alike] for column in alignment))
        scores = confirm([files[row] for row in rows.tolist()], pairs, alignment, workers, progress)
        for number in np.flatnonzero(scores >= least_score).tolist():
            how = _how(pairs, number, alignment.warp[number].tolist())
            first, second = int(rows[pairs.first[number]]), int(rows[pairs.second[number]])
            copies.append(Copy(first, second, float(scores[number]), how))
    return sorted(copies, key=lambda copy: (-copy.score, copy.first, copy.second))


def equal_files(content: list[str]) -> tuple[Int64[np.ndarray, "U"], list[Copy]]:
    """The first row of each different file, and pairs of equal ones; "" stands for a file that was not read."""
    first: dict[str, int] = {}
    copies = []
    for row, digest in enumerate(content):
        if digest and (original := first.setdefault(digest, row)) != row:
            copies.append(Copy(original, row, 1.0, "the same file"))
    return np.array(list(first.values()), dtype=np.int64), copies


def groups_of(copies: list[Copy], num_images: int) -> Int64[np.ndarray, "N"]:
    """The picture that each image shows, named by its first row: copies of copies are copies."""
    parent = list(range(num_images))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for copy in copies:
        one, other = sorted((root(copy.first), root(copy.second)))
        parent[other] = one
    return np.array([root(row) for row in range(num_images)], dtype=np.int64)


def _how(pairs: Pairs, number: int, warp: list[float]) -> str:
    variant = VARIANTS[int(pairs.variant[number])]
    words = [word for word, said in (("mirrored", variant.flipped), ("grey inverted", variant.inverted)) if said]
    if min(1.0, abs(warp[0])) * min(1.0, abs(warp[2])) < CROPPED:
        words.append("cropped")
    return ", ".join(words) or "the same view"
