"""The page itself: every section's content, put into one template in which all text is escaped."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data.spans import number, span
from fusion.evaluate.svg import interval_bar
from fusion.report.card import certificate, circumstances, data_card, header, limits
from fusion.report.cases import cases
from fusion.report.classes import curves, frequency, reliability, together
from fusion.report.lateral import lateral, missing_views
from fusion.report.scrub import scrub
from fusion.report.source import Run
from fusion.report.table import comparison, score_bar, side_by_side
from fusion.report.training import training

FOLDER = Path(__file__).parent


def render(runs: Sequence[Run], num_cases: int) -> str:
    """The page of one run; with several, these side by side and then the first in detail.

    The same files make the same bytes: no date, no draw.
    """
    run = runs[0]
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"span": span, "number": number, "bar": interval_bar, "score_bar": score_bar}
    script = (FOLDER / "scrub.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        run=run,
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=digest,
        runs=side_by_side(runs) if len(runs) > 1 else None,
        top=header(run),
        comparison=comparison(run),
        frequency=frequency(run),
        curves=curves(run),
        reliability=reliability(run),
        together=together(run),
        lateral=lateral(run),
        missing_views=missing_views(run),
        cases=cases(run, num_cases),
        scrub=scrub(run),
        training=training(run),
        card=data_card(run),
        certificate=certificate(run),
        circumstances=circumstances(run),
        limits=limits(run),
    )
