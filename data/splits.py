"""Splits by patient that keep every class's share, the rare ones first.

Axes: **N** images, **P** patients, **L** quantities to balance: the classes and the number of images, **S** splits.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from data.errors import InputError


def split_patients(
    patient_ids: Sequence[str], labels: Float32[np.ndarray, "N C"], fractions: dict[str, float], seed: int = 0
) -> np.ndarray:
    """Give every image a split such that no patient is in two, and each split has its share of every class.

    Greedy: the patient who holds the largest part of any class goes first, to the split that is furthest behind its
    wanted shares in what this patient has: least sum over classes of (have + own / 2) * own / wanted, which keeps
    sum(have**2 / wanted) small. The number of images counts as one more class. With equal fractions this is iterative
    stratification (Sechidis et al., ECML 2011) with patients as units; dividing by the wanted share keeps the splits
    in proportion at every step, so that patients with many images do not all end up in the largest split.

    Args:
        patient_ids: One per image.
        labels: In [0, 1]; unknown (NaN) counts as absent.
        fractions: Relative size of each split, all positive, of any sum.
        seed: Breaks ties between patients; the order of the images plays no part.

    Returns:
        The split's name for each image, (N,) of `str`.
    """
    names = list(fractions)
    sizes = np.array([fractions[name] for name in names], dtype=np.float64)
    if not len(names) or not np.isfinite(sizes).all() or (sizes <= 0).any():
        raise InputError(f"fractions of a split must be positive, got {fractions}")
    assert len(patient_ids) == len(labels), (len(patient_ids), len(labels))
    if not len(patient_ids):
        return np.empty(0, dtype=str)
    _, patients = np.unique(np.asarray(patient_ids, dtype=object), return_inverse=True)
    shares = _patient_shares(patients, np.nan_to_num(labels).astype(np.float64))
    return np.array(names)[_assign(shares, sizes / sizes.sum(), seed)][patients]


def _patient_shares(patients: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(P, L): the part of all positives of a class, and of all images, that belongs to each patient."""
    amounts = np.column_stack([labels, np.ones(len(labels))])
    totals = np.stack([np.bincount(patients, weights=column) for column in amounts.T], axis=1)
    sums = totals.sum(axis=0)
    return totals / np.where(sums > 0, sums, 1)


def _assign(shares: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """(P,): index of the split each patient goes to."""
    P, L = shares.shape
    order = np.random.default_rng(seed).permutation(P)
    order = order[np.argsort(-shares[order].max(axis=1), kind="stable")]
    have = np.zeros((len(wanted), L))
    assigned = np.empty(P, dtype=np.int64)
    for patient in order:
        own = np.flatnonzero(shares[patient])
        amount = shares[patient, own]
        best = int(np.argmin((have[:, own] + amount / 2) @ amount / wanted))
        have[best, own] += amount
        assigned[patient] = best
    return assigned
