"""Nearest training groups as a classifier: the similarity-weighted share of positives among the known labels.

The weighted vote is that of Wu et al. (arXiv 1805.01978, section 3.4), for each class by itself: a neighbour whose
label is unknown does not vote on that class. The index is exact. Training and asked-about patients differ, because a
manifest with a patient on two sides is refused.

The backbone knows its own training images: their features lie nearer to the ideal of their labels than those of new
images do, so neighbours look more certain than they are. `k` and `temperature` are therefore chosen on validation,
which the backbone has not seen, and never by leaving one training group out.

Axes: **M** training groups, **G** groups asked about, **D** features, **K** neighbours, **C** classes.
"""

import numpy as np
from jaxtyping import Float, Float32, Int

from data.metrics import hard_labels
from fusion.tail.classifiers import positive_share

BATCH = 256
"""Groups whose votes are counted at a time."""


def nearest(
    train: Float[np.ndarray, "M D"], queries: Float[np.ndarray, "G D"], most: int
) -> tuple[Float32[np.ndarray, "G K"], Int[np.ndarray, "G K"]]:
    """Cosine similarity and number of the nearest training groups, nearest first; K = min(most, M)."""
    import faiss  # brings an OpenMP of its own: load it only where it is used

    train, queries = unit_length(train), unit_length(queries)
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(train)
    similarities, numbers = index.search(queries, min(most, len(train)))
    return similarities, numbers


def vote(
    similarities: Float32[np.ndarray, "G K"],
    numbers: Int[np.ndarray, "G K"],
    labels: Float[np.ndarray, "M C"],
    k: int,
    temperature: float,
) -> Float32[np.ndarray, "G C"]:
    """Share of positives among the k nearest with a known label, each weighted exp(similarity / temperature).

    A class that none of the k knows gets its share of positives among all training groups.

    Args:
        labels: Of the training groups.
        k: Neighbours, at least 1; all K if there are fewer.
    """
    known, positive = hard_labels(labels)
    share = positive_share(labels)
    scores = np.empty((len(numbers), labels.shape[1]), dtype=np.float32)
    for start in range(0, len(numbers), BATCH):
        near = numbers[start : start + BATCH, :k]
        closeness = similarities[start : start + BATCH, :k].astype(np.float64)
        weights = np.exp((closeness - closeness[:, :1]) / temperature)
        votes = np.einsum("gk,gkc->gc", weights, known[near].astype(np.float64))
        found = np.einsum("gk,gkc->gc", weights, positive[near].astype(np.float64))
        scores[start : start + BATCH] = np.divide(found, votes, out=np.tile(share, (len(near), 1)), where=votes > 0)
    return scores


def unit_length(features: Float[np.ndarray, "G D"]) -> Float32[np.ndarray, "G D"]:
    """Rows of length 1, as faiss takes them."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.maximum(lengths, 1e-12), dtype=np.float32)
