"""What the app does with a study, without a browser: read, correct a view, explain a finding.

A `StudyReader` is shared by everybody and keeps nothing of anybody; a `Reading` belongs to one session and lives in its
memory alone.

**V** views, **S** side of the network's input, **C** classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data.errors import InputError
from data.images import ImageError
from data.views import VIEWS
from fusion.app.findings import Finding, rank_findings
from fusion.app.uploads import Upload
from fusion.opened_image import Opened, open_image
from fusion.predict import Predictor, StudyPrediction

UNEXPECTED = "could not be read"
Rejected = tuple[tuple[str, str], ...]
"""Name on the page, and reason."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A study as far as it could be read."""

    opened: tuple[Opened, ...]
    """Decoded images in the order of the page; none if no file could be used."""
    prediction: StudyPrediction | None
    findings: tuple[Finding, ...]
    rejected: Rejected
    truth: tuple[str, ...] | None = None
    """What is truly there; only a simulated study tells."""

    def finding(self, number: object) -> Finding:
        """The finding of a class.

        Raises:
            InputError: No such class; what a browser sends is checked like any input.
        """
        found = [finding for finding in self.findings if finding.number == number and not isinstance(number, bool)]
        if not found:
            raise InputError("There is no such finding.")
        return found[0]


class Explained(NamedTuple):
    """Why a finding has its number."""

    finding: Finding
    heat: list[Float[np.ndarray, "S S"]]
    amounts: Float[np.ndarray, "V"]
    """Share of the heat on each view; 0 where there is no heat at all."""
    shares: Float[np.ndarray, "V"] | None
    """What each view adds to the finding's log odds; None where the model folder does not tell."""


class StudyReader:
    """A model, asked by one session at a time: explaining it hangs hooks into the network."""

    def __init__(self, model: Predictor, untested: frozenset[str] = frozenset()) -> None:
        self.model, self.untested = model, untested
        self._lock = Lock()

    def read(
        self,
        uploads: Sequence[Upload],
        views: Sequence[str | None] | None = None,
        truth: tuple[str, ...] | None = None,
    ) -> Reading:
        """Open every file and fuse those that can be used; the others are named with their reason."""
        opened, rejected = [], []
        for upload, view in zip(uploads, views or [None] * len(uploads), strict=True):
            try:
                opened.append(self._open(upload, view))
            except InputError as error:
                rejected.append((upload.name, getattr(error, "reason", UNEXPECTED)))
        return self._fused(tuple(opened), tuple(rejected), truth)

    def corrected(self, reading: Reading, number: object, view: object) -> Reading:
        """The same images after the user said what a view is.

        Raises:
            InputError: No such image or view.
        """
        if view not in VIEWS or not isinstance(number, int) or not 0 <= number < len(reading.opened):
            raise InputError("There is no such view.")
        opened = list(reading.opened)
        told = replace(opened[number].view, view=str(view), view_from="user")
        opened[number] = replace(opened[number], view=told)
        return self._fused(tuple(opened), reading.rejected, reading.truth)

    def explain(self, reading: Reading, number: object) -> Explained:
        """Heat and shares of a finding; errors as `Reading.finding`."""
        finding, study = reading.finding(number), reading.prediction
        assert study is not None, "a reading with findings has a prediction"
        with self._lock:
            heat = study.heat_maps(finding.name)
            try:
                shares = study.shares()[finding.number]
            except InputError:
                shares = None
        sums = np.array([np.clip(values, 0, None).sum() for values in heat], dtype=np.float64)
        return Explained(finding, heat, sums / max(float(sums.sum()), 1e-12), shares)

    def _open(self, upload: Upload, view: str | None) -> Opened:
        try:
            return open_image(self.model.parts, upload.path, upload.name, view)
        except InputError:
            raise
        except Exception as error:  # a server outlives whatever is dropped on it; the text may quote the file
            logging.getLogger(__name__).warning("a file could not be read: %s", type(error).__name__)
            raise ImageError(upload.name, UNEXPECTED) from None

    def _fused(self, opened: tuple[Opened, ...], rejected: Rejected, truth: tuple[str, ...] | None) -> Reading:
        if not opened:
            return Reading((), None, (), rejected)
        try:
            with self._lock:
                study = self.model.fuse(opened)
        except ImageError as error:  # one map overflows: say which, and go on without it
            name = str(error).removesuffix(f": {error.reason}")
            kept = tuple(one for one in opened if one.view.name != name)
            if len(kept) == len(opened):
                raise
            return self._fused(kept, (*rejected, (name, error.reason)), truth)
        findings = rank_findings(
            study.classes,
            study.probabilities if study.calibrated is None else study.calibrated,
            study.thresholds,
            study.parts.frequency,
            self.untested,
        )
        return Reading(opened, study, tuple(findings), rejected, truth)
