"""The perception ceiling: P(label = 1 | everything the views present can show), exactly, from the generative model.

Given the patient's type all findings are independent, so the posterior is a sum over four types. The two ambiguous
frontal shadows enter as counts: a frontal shows how many discs (nodule + electrode) and how many mediastinal bands
(widening + aorta) there are, a lateral shows electrode and aorta themselves.
"""

from collections.abc import Iterable
from itertools import product

import numpy as np

from data.phantom.cohort import CLASSES, Study, false_positive_rate
from data.phantom.constants import FRONTAL, MISSED_SHARE, RATES, TYPE_SHARES, VISIBILITY

# hidden one, its mimic that a lateral unmasks
CONJUNCTIONS = (("Nodule", "electrode"), ("Enlarged Cardiomediastinum", "Tortuous Aorta"))
PAIRED = {name for pair in CONJUNCTIONS for name in pair}
OTHER_DEVICES = ("pacemaker", "tube")
SINGLE = tuple(n for n in RATES if n not in PAIRED)


def _shown(name: str, kinds: set[str]) -> bool:
    table = VISIBILITY["Support Devices" if name in OTHER_DEVICES else name]
    return any(table[kind] for kind in kinds)


def _pair_table(pair: tuple[str, str], study: Study, kinds: set[str]) -> np.ndarray:
    """P(hidden one, mimic, what is seen of them | type): array (types, 2, 2), zero where it contradicts the views."""
    hidden, mimic = (name in study.findings for name in pair)
    table = np.zeros((len(TYPE_SHARES), 2, 2))
    for a, b in product((0, 1), repeat=2):
        if "frontal" in kinds and a + b != hidden + mimic:
            continue
        if "lateral" in kinds and b != mimic:
            continue
        first, second = (np.array(RATES[name]) for name in pair)
        table[:, a, b] = (first if a else 1 - first) * (second if b else 1 - second)
    return table


def _label(name: str, present: np.ndarray | float) -> np.ndarray | float:
    """P(label = 1) from P(present)."""
    return present * (1 - MISSED_SHARE) + (1 - present) * false_positive_rate(name)


def study_posteriors(study: Study, views: Iterable[str] | None = None) -> dict[str, float]:
    """P(label = 1) of each class of CLASSES and No Finding, given what `views` (default: the study's) can show."""
    kinds = {"frontal" if view in FRONTAL else "lateral" for view in (study.views if views is None else views)}
    weight = np.array(TYPE_SHARES)
    present: dict[str, np.ndarray] = {}
    for name in SINGLE:
        rate = np.array(RATES[name])
        if _shown(name, kinds):
            yes = name in study.findings
            weight = weight * (rate if yes else 1 - rate)
            rate = np.full(len(weight), float(yes))
        present[name] = rate
    pairs = [_pair_table(pair, study, kinds) for pair in CONJUNCTIONS]
    for pair, table in zip(CONJUNCTIONS, pairs, strict=True):
        evidence = table.sum((1, 2))
        weight = weight * evidence
        table /= np.maximum(evidence, 1e-300)[:, None, None]
        present[pair[0]], present[pair[1]] = table[:, 1].sum(1), table[:, :, 1].sum(1)
    weight = weight / weight.sum()
    absent_device = np.prod([1 - present[name] for name in ("electrode", *OTHER_DEVICES)], axis=0)
    present["Support Devices"] = 1 - absent_device
    labels = {name: float(weight @ _label(name, present[name])) for name in CLASSES}
    return labels | {"No Finding": float(weight @ _nothing(present, pairs[1]))}


def _nothing(present: dict[str, np.ndarray], mediastinum: np.ndarray) -> np.ndarray:
    """P(no label but Support Devices | type): labels are independent but for the two that share a frontal band."""
    chance = np.ones(len(TYPE_SHARES))
    for name in CLASSES:
        if name not in ("Support Devices", *CONJUNCTIONS[1]):
            chance = chance * (1 - _label(name, present[name]))
    both = np.zeros(len(TYPE_SHARES))
    for a, b in product((0.0, 1.0), repeat=2):
        quiet = (1 - _label(CONJUNCTIONS[1][0], a)) * (1 - _label(CONJUNCTIONS[1][1], b))
        both += mediastinum[:, int(a), int(b)] * quiet
    return chance * both
