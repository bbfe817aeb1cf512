"""The parts of the page as HTML, from templates beside this file; every text in them is escaped."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fusion.app.findings import BANDS, Finding
from fusion.app.pictures import grey_picture, heat_pictures
from fusion.app.similar import Neighbour
from fusion.app.study import Reading

FOLDER = Path(__file__).parent
VIEW_WORDS = {"PA": "PA", "AP": "AP", "LATERAL": "Lateral", "OTHER": "Other", "UNKNOWN": "Unknown"}
RESEARCH_ONLY = "For research. Not a medical device, not for diagnosis, not validated on patients."
CALIBRATED = "Calibrated probabilities: of the findings shown with 30 %, about 3 in 10 were there in held-out studies."
RAW = "Raw scores of the network, not calibrated: 30 % does not mean 3 in 10. Good for ranking, not as a risk."
WITH_THRESHOLDS = " A finding in bold is above its own threshold, the small mark on its bar."


@cache
def environment() -> Environment:
    """Templates are parsed once."""
    return Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def header(model_name: str, facts: str) -> str:
    """Title, model and the notice that stays in sight."""
    return environment().get_template("header.html").render(notice=RESEARCH_ONLY, model=model_name, facts=facts)


def views(reading: Reading, chosen: Finding | None) -> str:
    """The views side by side, with the heat and the shares of the chosen finding."""
    return ""
