"""Samples of unequal length in one call, without padding: their tokens in a row, bucket after bucket.

A *bucket* is some samples with equally many tokens. What treats each token alike (norms, linear layers) takes the whole
row at once; what lets tokens meet (attention) takes it bucket by bucket.

Axes: **P** tokens of all samples, **B** samples of a bucket, **T** tokens of each, **D** features.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

Buckets = Sequence[tuple[int, int]]
"""(samples, tokens of each) of every bucket in turn."""


def unpacked(x: Float[Tensor, "P D"], buckets: Buckets) -> list[Float[Tensor, "_ _ D"]]:
    """Each bucket's part of the row as (B, T, D), in the same memory."""
    parts = x.split([samples * tokens for samples, tokens in buckets])
    return [part.unflatten(0, bucket) for part, bucket in zip(parts, buckets, strict=True)]
