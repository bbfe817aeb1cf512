"""Which pairs of thumbnails are worth a closer look: nearest neighbours among small descriptors, by faiss.

A descriptor is a thumbnail shrunk to 12 x 12, projected on its 64 strongest principal components over the set, each
scaled to variance 1: what all chests share counts little, what tells them apart counts much. Every image asks with
itself and with windows of itself, mirrored or not, because a crop as a whole resembles a window of its original,
and once with black and white exchanged.

Axes: **N** images, **S** side of a thumbnail, **g** side of what a descriptor sees, **G** its g * g values, **D**
components, **Q** images that ask, **M** pairs.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, Num, UInt8
from tqdm import tqdm

from data.audit.thumbnails import SIDE

GRID = 12
COMPONENTS = 64
IMAGES_PER_COMPONENT = 8  # with fewer, the weakest components would be the differences between two copies
WINDOW_SIDES = (0.93, 0.86, 0.79)
NEIGHBOURS = 16  # pairs kept for each image, over all variants
PER_VARIANT = 8
MIN_SIMILARITY = 0.55  # of 200 planted copies, all were above 0.61; 0.5 would leave half as many candidates again
EXACT_UP_TO = 20_000  # images; beyond it, neighbours are looked for in the nearest of many cells
CELLS_PROBED = 16
TRAINING_PER_CELL = 39  # images; with fewer, faiss warns
QUERIES = 4096


class Variant(NamedTuple):
    """How an image is altered before it asks; bounds of the window are parts of the sides, in [0, 1]."""

    top: float = 0.0
    bottom: float = 1.0
    left: float = 0.0
    right: float = 1.0
    flipped: bool = False
    inverted: bool = False


class Pairs(NamedTuple):
    """A variant of image `first` resembles the whole of image `second`; no two are in more than one pair."""

    first: Int64[np.ndarray, "M"]
    second: Int64[np.ndarray, "M"]
    variant: Int64[np.ndarray, "M"]
    similarity: Float32[np.ndarray, "M"]


def all_variants() -> list[Variant]:
    """The whole image and 27 windows (3 sizes, 3 x 3 places), each mirrored too; the whole image with grey inverted."""
    windows = [(0.0, 1.0, 0.0, 1.0)]
    for side in WINDOW_SIDES:
        starts = np.linspace(0, 1 - side, 3).tolist()
        windows += [(top, top + side, left, left + side) for top in starts for left in starts]
    plain = [Variant(*window, flipped=flipped) for window in windows for flipped in (False, True)]
    return [*plain, *(Variant(flipped=flipped, inverted=True) for flipped in (False, True))]


VARIANTS = all_variants()


def find_candidates(pixels: UInt8[np.ndarray, "N S S"], progress: bool = True) -> Pairs:
    """The pairs with the most similar descriptors, at most `NEIGHBOURS` for each image that asks."""
    whole = grids(pixels, Variant())
    projection = Projection.fit(whole)
    stored = projection(whole)
    index = _index(stored)
    parts = [
        _search(index, projection, pixels[start : start + QUERIES], start)
        for start in tqdm(range(0, len(pixels), QUERIES), desc="comparing", unit_scale=QUERIES, disable=not progress)
    ]
    return _each_once(Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True))))


def grids(pixels: Num[np.ndarray, "N S S"], variant: Variant) -> Float32[np.ndarray, "N G"]:
    """Thumbnails shrunk to `GRID` x `GRID` under a variant, mean 0, length 1."""
    rows, columns = _sampling(variant.top, variant.bottom), _sampling(variant.left, variant.right)
    if variant.flipped:
        columns = columns[:, ::-1]
    small = np.empty((len(pixels), GRID * GRID), dtype=np.float32)
    for start in range(0, len(pixels), QUERIES):  # all at once would take four times the thumbnails' memory
        part = pixels[start : start + QUERIES].astype(np.float32)
        small[start : start + QUERIES] = np.matmul(np.matmul(rows, part), columns.T).reshape(len(part), -1)
    small -= small.mean(axis=1, keepdims=True)
    return _unit(-small if variant.inverted else small)


class Projection(NamedTuple):
    """Subtract `mean`, multiply by `matrix`, scale to length 1."""

    mean: Float32[np.ndarray, "G"]
    matrix: Float32[np.ndarray, "G D"]

    @classmethod
    def fit(cls, small: Float32[np.ndarray, "N G"]) -> "Projection":
        """Whitened principal components; with fewer than 16 images, nothing is projected."""
        count = min(COMPONENTS, len(small) // IMAGES_PER_COMPONENT)
        if count < 2:
            return cls(np.zeros(small.shape[1], np.float32), np.eye(small.shape[1], dtype=np.float32))
        mean = small.mean(axis=0, dtype=np.float64)
        centred = small - mean.astype(np.float32)
        variances, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(small))
        variances, directions = variances[::-1][:count], directions[:, ::-1][:, :count]
        scale = np.sqrt(np.maximum(variances, 1e-4 * variances[0] + 1e-12))
        return cls(mean.astype(np.float32), (directions / scale).astype(np.float32))

    def __call__(self, small: Float32[np.ndarray, "N G"]) -> Float32[np.ndarray, "N D"]:
        """Descriptors, whose inner product is their similarity in [-1, 1]."""
        return _unit((small - self.mean) @ self.matrix)


def _sampling(start: float, end: float) -> Float32[np.ndarray, "g S"]:
    """Weights of a triangle filter that shrinks a stretch of a side to `GRID` values."""
    reach = max(1.0, (end - start) * SIDE / GRID)
    centres = (start + (np.arange(GRID) + 0.5) * (end - start) / GRID) * SIDE
    weights = np.clip(1 - np.abs(np.arange(SIDE) + 0.5 - centres[:, None]) / reach, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _unit(vectors: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N D"]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-6), dtype=np.float32)


def _index(stored: Float32[np.ndarray, "N D"]):
    import faiss  # brings an OpenMP of its own: load it only where it is used

    N, D = stored.shape
    if N <= EXACT_UP_TO:
        index = faiss.IndexFlatIP(D)
    else:
        cells = max(1, int(min(4 * N**0.5, N / TRAINING_PER_CELL)))
        index = faiss.index_factory(D, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(stored[:: max(1, N // (TRAINING_PER_CELL * cells))])
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", CELLS_PROBED)
    index.add(stored)
    return index


def _search(index, projection: Projection, pixels: UInt8[np.ndarray, "Q S S"], start: int) -> Pairs:
    """The best `NEIGHBOURS` of some images over all variants; `start` is the first one's number."""
    Q = len(pixels)
    most = min(PER_VARIANT + 1, index.ntotal)  # one of them is the image itself
    similarities = np.empty((Q, len(VARIANTS), most), dtype=np.float32)
    found = np.empty((Q, len(VARIANTS), most), dtype=np.int64)
    for number, variant in enumerate(VARIANTS):
        similarities[:, number], found[:, number] = index.search(projection(grids(pixels, variant)), most)
    first = np.broadcast_to(np.arange(start, start + Q)[:, None, None], found.shape)
    numbers = np.broadcast_to(np.arange(len(VARIANTS))[None, :, None], found.shape)
    good = (similarities >= MIN_SIMILARITY) & (found >= 0) & (found != first)
    pairs = Pairs(first[good], found[good], numbers[good], similarities[good])
    order = np.lexsort((-pairs.similarity, pairs.second, pairs.first))
    pairs = _take(pairs, order[_starts(pairs.first[order] * index.ntotal + pairs.second[order])])
    order = np.lexsort((-pairs.similarity, pairs.first))
    begins = np.flatnonzero(_starts(pairs.first[order]))
    place = np.arange(len(order)) - np.repeat(begins, np.diff([*begins, len(order)]))
    return _take(pairs, order[place < NEIGHBOURS])


def _each_once(pairs: Pairs) -> Pairs:
    """Of a pair that was found from both sides, the better way round."""
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    order = np.lexsort((-pairs.similarity, high, low))
    return _take(pairs, order[_starts(low[order] * (int(high.max(initial=0)) + 1) + high[order])])


def _starts(values: Int64[np.ndarray, "M"]) -> np.ndarray:
    """Whether a sorted value differs from the one before it."""
    return np.diff(values, prepend=values[:1] - 1) != 0


def _take(pairs: Pairs, rows: np.ndarray) -> Pairs:
    return Pairs(*(column[rows] for column in pairs))
