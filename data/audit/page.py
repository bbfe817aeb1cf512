"""The audit as a page: `audit.html` with pictures, all in one file, and `audit.md` without."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.audit.counts import Counts, absent_classes, pairs_of_classes
from data.audit.duplicates import Copy
from data.audit.pictures import picture
from data.audit.result import Audit, counted
from data.manifest import SPLITS
from data.views import VIEWS

TEMPLATES = Path(__file__).parent
MOST_PAIRS, MOST_FLAGS, MOST_ROWS, MOST_IDS = 40, 40, 50, 5
MOST_CLASSES = 30  # in a table of co-occurrence


def html_page(audit: Audit, certificate: dict[str, Any]) -> str:
    """The page with pictures of the first `MOST_PAIRS` pairs, leaking ones first, and of flagged images."""
    return _render("page.html", audit, certificate, autoescape=True, pictures=True)


def markdown_page(audit: Audit, certificate: dict[str, Any]) -> str:
    """The same findings as text."""
    return _render("page.md", audit, certificate, autoescape=False, pictures=False)


def _render(name: str, audit: Audit, certificate: dict[str, Any], autoescape: bool, pictures: bool) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    environment.filters["counted"] = counted
    return environment.get_template(name).render(
        audit=audit,
        certificate=certificate,
        leaks=[overlap for overlap in (*audit.patients, *audit.images) if overlap.leaks],
        shared_by_sets=[overlap for overlap in audit.patients if not overlap.leaks and _sets(overlap.places) > 1],
        tiles=_tiles(audit),
        pairs=[_pair(audit, copy, pictures) for copy in _leaking_first(audit)[:MOST_PAIRS]],
        flags=[_image(audit, flag.row, pictures) | flag._asdict() for flag in audit.flags[:MOST_FLAGS]],
        sets=[shown_counts(name, counts) for name, counts in audit.counts.items()],
        splits=SPLITS,
        views=VIEWS,
        most_rows=MOST_ROWS,
        most_ids=MOST_IDS,
    )


def _tiles(audit: Audit) -> list[tuple[str, int, bool]]:
    """What the page shows first: a name, a number, and whether the number is a leak."""
    leaks = (
        ("patients on two sides", audit.leaking_patients),
        ("image ids on two sides", audit.leaking_images),
        ("pictures on two sides", audit.leaking_pictures),
    )
    rest = (("near-duplicate pairs", len(audit.copies)), ("images to look at", len(audit.flags)))
    return [*((name, number, number > 0) for name, number in leaks), *((name, number, False) for name, number in rest)]


def _sets(places: dict[str, int]) -> int:
    return len({place.rpartition(": ")[0] for place in places})


def _leaking_first(audit: Audit) -> list[Copy]:
    leaking = set(audit.leaking_copies)
    return [*audit.leaking_copies, *(copy for copy in audit.copies if copy not in leaking)]


def _pair(audit: Audit, copy: Copy, pictures: bool) -> dict[str, Any]:
    return {
        "first": _image(audit, copy.first, pictures),
        "second": _image(audit, copy.second, pictures),
        "score": copy.score,
        "how": copy.how,
        "leaks": copy in audit.leaking_copies,
        "same_patient": _who(audit, copy.first) == _who(audit, copy.second),
    }


def _who(audit: Audit, row: int) -> tuple[str, str]:
    return audit.table["archive"].iat[row], audit.table["patient_id"].iat[row]


def _image(audit: Audit, row: int, pictures: bool) -> dict[str, Any]:
    line = audit.table.iloc[row]
    names = {key: str(line[key]) for key in ("image_id", "patient_id", "place", "view")}
    return names | {"picture": picture(Path(line["file"])) if pictures else ""}


def shown_counts(name: str, counts: Counts) -> dict[str, Any]:
    """What the page shows of one manifest's counts; co-occurrence only of the classes that occur most."""
    totals = counts.together.diagonal()
    shown = sorted(range(len(totals)), key=lambda n: -totals[n])[:MOST_CLASSES]
    rows = [
        (counts.classes[a], [(int(counts.together[a, b]), _shade(counts, a, b)) for b in shown])
        for a in shown
        if totals[a]
    ]
    return {
        "name": name,
        "counts": counts,
        "absent": absent_classes(counts),
        "pairs": pairs_of_classes(counts),
        "heads": [counts.classes[b] for b in shown],
        "together": rows,
    }


def _shade(counts: Counts, a: int, b: int) -> float:
    """Part of class a's positives that are positive in b."""
    return float(counts.together[a, b] / max(1, counts.together[a, a]))


def cell(text: object) -> str:
    """Text for a cell of a Markdown table."""
    return str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
