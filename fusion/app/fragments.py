"""The parts of the page as HTML, from templates beside this file; every text in them is escaped."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fusion.app.examples import Example
from fusion.app.findings import BANDS
from fusion.app.pictures import grey_picture, heat_pictures
from fusion.app.similar import Neighbour
from fusion.app.study import Explained, Reading
from fusion.app.uploads import MAX_FILE_MIB, MAX_FILES

FOLDER = Path(__file__).parent
VIEW_WORDS = {"PA": "PA", "AP": "AP", "LATERAL": "Lateral", "OTHER": "Other", "UNKNOWN": "Unknown"}
ORIGINS = {"header": "read from the file", "user": "as given", "unknown": "not in the file: please choose"}
CALIBRATED = "Calibrated: of findings shown with 30 %, about 3 in 10 were present in held-out studies."
RAW = "Raw scores, not calibrated: 30 % does not mean 3 in 10. Compare them with each other only."
WITH_THRESHOLDS = "Bold: above the finding's own threshold, the mark on its bar."


@cache
def environment() -> Environment:
    """Templates are parsed once."""
    loader = FileSystemLoader(FOLDER)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render(name: str, **values: object) -> str:
    """A template of this folder, filled in."""
    return environment().get_template(name).render(**values)


def header(facts: str) -> str:
    """Title, and what the model is."""
    return render("header.html", facts=facts)


def welcome() -> str:
    """What to do, before there is a study."""
    return render("welcome.html", max_files=MAX_FILES, max_mib=MAX_FILE_MIB)


def examples(studies: Sequence[Example]) -> str:
    """Simulated studies as cards to click."""
    return render("examples.html", examples=studies)


def views(reading: Reading, explained: Explained | None = None) -> str:
    """The views side by side, with the heat and the shares of a finding."""
    study = reading.prediction
    if study is None:
        return ""
    heat = heat_pictures(explained.heat) if explained else [None] * len(study.views)
    cards = [
        {
            "name": view.name,
            "type": view.view,
            "origin": ORIGINS[view.view_from],
            "doubt": view.view_from == "unknown",
            "picture": grey_picture(study.images[v]),
            "heat": heat[v],
            "amount": explained.amounts[v] if explained else None,
            "share": explained.shares[v] if explained and explained.shares is not None else None,
        }
        for v, view in enumerate(study.views)
    ]
    height, width, _ = study.parts.identity.map_shape
    return render(
        "views.html",
        views=cards,
        words=VIEW_WORDS,
        chosen=explained.finding if explained else None,
        grid=f"{height} by {width} cells",
        most=float(np.abs(explained.shares).max()) if explained and explained.shares is not None else 1.0,
    )


def findings(reading: Reading, chosen: object = None) -> str:
    """The ranked list."""
    if reading.prediction is None:
        return ""
    words = [RAW] if reading.prediction.calibrated is None else [CALIBRATED]
    if reading.prediction.thresholds is not None:
        words.append(WITH_THRESHOLDS)
    return render(
        "findings.html",
        findings=reading.findings,
        chosen=chosen,
        bands=BANDS,
        has_bands=any(finding.band for finding in reading.findings),
        explanation=" ".join(words),
    )


def messages(reading: Reading | None, error: str = "") -> str:
    """What could not be used, and what a simulated study truly holds."""
    rejected = () if reading is None else reading.rejected
    if reading is not None and reading.prediction is None and not error:
        error = "None of these files can be used."
    notes = []
    if reading is not None and reading.truth is not None:
        notes.append(f"A simulated study. Truly in it: {', '.join(reading.truth) or 'no finding'}.")
    return render("messages.html", error=error, rejected=rejected, notes=notes)


def similar(neighbours: Sequence[Neighbour], reading: Reading, count: int, by: str) -> str:
    """The nearest training studies."""
    return render(
        "similar.html",
        neighbours=neighbours,
        words=VIEW_WORDS,
        count=count,
        unit="patients" if by == "patient" else "studies",
        pictures=any(one.pictures for one in neighbours),
        called={finding.name for finding in reading.findings if finding.called},
    )
