"""Who is examined, what they have, which views are taken, what the labels say: the phantom's generative model.

A patient has one of four types; given the type, findings are independent. Chronic ones are drawn once per patient,
the others once per study. Labels are the findings of a study with `MISSED_SHARE` of the positives flipped to 0 and as
many negatives flipped to 1; "No Finding" is 1 where no label but Support Devices is.
"""

from dataclasses import dataclass, field
from functools import cache
from itertools import count

import numpy as np

from data.phantom.constants import (
    CHRONIC,
    DEVICES,
    MISSED_SHARE,
    MORE_STUDIES,
    RATES,
    TYPE_SHARES,
    VIEW_SETS,
    VISIBILITY,
    View,
)

CLASSES = tuple(sorted(VISIBILITY))  # the simulated classes that have bodies
SPLITS = ("train", "development", "test")


@dataclass(frozen=True)
class Study:
    """One examination: `findings` are the bodies present and their seeds, `labels` the noisy positives of CLASSES and
    No Finding, `views` the kinds of its images in the order taken."""

    seed: int
    findings: dict[str, int]
    labels: frozenset[str]
    views: tuple[View, ...]

    @property
    def truth(self) -> frozenset[str]:
        """The classes whose bodies are present."""
        names = {"Support Devices" if name in DEVICES else name for name in self.findings}
        return frozenset(names if names - {"Support Devices"} else names | {"No Finding"})


@dataclass(frozen=True)
class PatientStudies:
    """A patient's seed and studies in time order."""

    seed: int
    studies: list[Study] = field(default_factory=list)


@cache
def class_rates() -> dict[str, float]:
    """Share of studies in which each class's body is present."""
    shares = np.array(TYPE_SHARES)
    rates = {name: float(shares @ RATES[name]) for name in CLASSES if name != "Support Devices"}
    absent = np.prod([1 - np.array(RATES[name]) for name in DEVICES], axis=0)
    return rates | {"Support Devices": float(1 - shares @ absent)}


@cache
def false_positive_rate(name: str) -> float:
    """Share of a class's negatives flipped to 1: as many studies as `MISSED_SHARE` of its positives."""
    rate = class_rates()[name]
    return MISSED_SHARE * rate / (1 - rate)


def _draw_findings(random: np.random.Generator, kind: int, names: list[str]) -> dict[str, int]:
    present = random.random(len(names)) < [RATES[name][kind] for name in names]
    seeds = random.integers(0, 2**31, len(names))
    return {name: int(seed) for name, seed, yes in zip(names, seeds, present, strict=True) if yes}


def _draw_labels(random: np.random.Generator, truth: frozenset[str]) -> frozenset[str]:
    chance = [1 - MISSED_SHARE if name in truth else false_positive_rate(name) for name in CLASSES]
    drawn = random.random(len(CLASSES)) < chance
    labels = {name for name, yes in zip(CLASSES, drawn, strict=True) if yes}
    return frozenset(labels if labels - {"Support Devices"} else labels | {"No Finding"})


def sample_studies(seed: int) -> PatientStudies:
    """Draw one patient's studies from `seed`."""
    random = np.random.default_rng([seed, 3])
    kind = int(random.choice(len(TYPE_SHARES), p=TYPE_SHARES))
    chronic = _draw_findings(random, kind, [name for name in RATES if name in CHRONIC])
    patient = PatientStudies(seed)
    shares = np.array(list(VIEW_SETS.values()))
    while not patient.studies or random.random() < MORE_STUDIES:
        findings = chronic | _draw_findings(random, kind, [name for name in RATES if name not in CHRONIC])
        views = list(VIEW_SETS)[int(random.choice(len(shares), p=shares / shares.sum()))]
        bare = Study(int(random.integers(0, 2**31)), findings, frozenset(), views)
        labels = _draw_labels(random, bare.truth)
        patient.studies.append(Study(bare.seed, findings, labels, views))
    return patient


def sample_cohort(num_studies: tuple[int, int, int], seed: int = 0) -> dict[str, list[PatientStudies]]:
    """Draw patients until the three splits hold exactly `num_studies`, each class shared out in proportion.

    Patients with several studies are placed first, then each patient goes where his classes are most wanted, so that
    rare classes cannot cluster in one split by chance. A patient is never on two sides.
    """
    drawn = (sample_studies(int(np.random.SeedSequence([seed, n]).generate_state(1)[0])) for n in count())
    patients: list[PatientStudies] = []
    missing = sum(num_studies)
    while missing:
        patients.append(_first_studies(next(drawn), missing))
        missing -= len(patients[-1].studies)
    cohort, room = _share_out(patients, np.array(num_studies))
    while room.any():  # only in tiny cohorts: a patient with several studies fitted nowhere and was left out
        split = int(room.argmax())
        cohort[split].append(_first_studies(next(drawn), int(room[split])))
        room[split] -= len(cohort[split][-1].studies)
    return dict(zip(SPLITS, cohort, strict=True))


def _first_studies(patient: PatientStudies, most: int) -> PatientStudies:
    return PatientStudies(patient.seed, patient.studies[:most])


def _share_out(
    patients: list[PatientStudies], num_studies: np.ndarray
) -> tuple[list[list[PatientStudies]], np.ndarray]:
    """Greedy stratification of whole patients over the splits, rarest classes first; and the room that is left."""
    names = (*CLASSES, "No Finding")
    counts = np.array([[sum(n in s.labels for s in p.studies) for n in names] for p in patients], float)
    totals = np.maximum(counts.sum(0), 1)
    shares = num_studies / num_studies.sum()
    wanted, room = np.outer(shares, totals), num_studies.copy()
    rarest = np.where(counts > 0, totals, np.inf).min(1)
    places: dict[int, int] = {}
    for i in np.lexsort((rarest, [-len(p.studies) for p in patients])):
        size = len(patients[i].studies)
        if room.max() < size:
            continue
        appeal = (wanted / np.outer(shares, totals)) @ (counts[i] / totals) + 1e-3 * room / num_studies
        split = int(np.argmax(np.where(room >= size, appeal, -np.inf)))
        places[int(i)] = split
        room[split] -= size
        wanted[split] -= counts[i]
    return [[patients[i] for i in sorted(places) if places[i] == n] for n in range(len(SPLITS))], room
