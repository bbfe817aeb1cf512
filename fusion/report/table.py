"""The comparison of methods: one run's table in both units, and several runs side by side."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from data.spans import number, span
from fusion.evaluate.page import widest
from fusion.evaluate.svg import drawing
from fusion.report.source import Run

UNITS = {"images": "Image rows, as challenges score", "groups": "Groups: {by}"}
METHODS = {
    "fusion": "the model: all views of a group at once",
    "single": "each image by itself; in groups, the first view",
    "mean": "mean of the single-image probabilities",
    "max": "largest of the single-image probabilities",
    "weighted": "weighted mean: frontal 7, lateral 3, other 5, as CheXFusion",
    "mlp": "a small network on pooled maps, no attention",
    "frozen": "fusion before the joint phase, from cached maps",
    "ceiling F": "phantom only: best rule on single-image logits that knows which view shows what",
    "ceiling P": "phantom only: the label's probability given all that the views can show",
}
WIDTH, HEIGHT = 150.0, 18.0


def comparison(run: Run) -> dict[str, Any]:
    """Rows of both tables, their scales, and what the methods are."""
    parts, present = {}, []
    for unit, title in UNITS.items():
        part = run.units[unit]
        rows = [method_row(name, part) for name in ordered(part["methods"])]
        present += [row["name"] for row in rows if row["name"] not in present]
        differences = [row["difference"] for row in rows if row["difference"]]
        intervals = [value for row in rows for value in (row["interval"]["low"], row["interval"]["high"]) if value]
        parts[unit] = {
            "title": title.format(by=run.group_name),
            "rows_judged": part["rows"],
            "rows": rows,
            "limit": widest(differences) if differences else 1.0,
            "scale": (min(intervals, default=0.0) - 0.02, max(intervals, default=1.0) + 0.02),
            "gap": part.get("gap_closed"),
        }
    absent = run.units["images"]["methods"]["fusion"].get("absent", [])
    methods = {name: METHODS.get(name, "") for name in present}
    return {"units": parts, "methods": methods, "absent": absent, "best": run.best_baseline}


def ordered(methods: dict[str, Any]) -> list[str]:
    """Fusion first, ceilings last, the others as they are."""
    last = [name for name in methods if name.startswith("ceiling")]
    return ["fusion", *(name for name in methods if name != "fusion" and name not in last), *last]


def method_row(name: str, part: dict[str, Any]) -> dict[str, Any]:
    """One method's numbers; `difference` is fusion minus it, None in fusion's own row."""
    values = part["methods"][name]
    kind = "fusion" if name == "fusion" else "ceiling" if name.startswith("ceiling") else "baseline"
    keys = ("mAP_head", "mAP_medium", "mAP_tail", "mAUROC")
    return {
        "name": name,
        "kind": kind,
        "interval": values["interval"],
        "numbers": [values[key] for key in keys],
        "difference": part["differences"].get(f"fusion - {name}"),
    }


def score_bar(value: dict[str, Any], scale: tuple[float, float], css: str) -> Markup:
    """A score and its interval on a scale that all rows share."""
    low, high = scale
    if value["estimate"] is None:
        return drawing(Markup(), WIDTH, HEIGHT, "bar", "undefined")
    x = [6 + (v - low) / max(high - low, 1e-9) * (WIDTH - 12) for v in (value["low"], value["estimate"], value["high"])]
    marks = Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="9" y2="9"/>').format(css, x[0], x[2])
    marks += Markup('<circle class="{}" cx="{:.1f}" cy="9" r="3.8"/>').format(css, x[1])
    return drawing(marks, WIDTH, HEIGHT, "bar", f"{span(value)} on a scale from {number(low)} to {number(high)}")


def side_by_side(runs: Sequence[Run]) -> dict[str, Any]:
    """Fusion's scores of several runs, and every class's AP in each."""
    rows = []
    for run in runs:
        best = run.best_baseline
        fusion = {unit: run.units[unit]["methods"]["fusion"] for unit in UNITS}
        gains = {unit: run.units[unit]["differences"].get(f"fusion - {best}") for unit in UNITS}
        rows.append({"run": run, "fusion": fusion, "gains": gains})
    classes = {name: None for run in runs for name in run.units["groups"]["methods"]["fusion"]["per_class"]}
    aps = {}
    for name in classes:
        found = [run.units["groups"]["methods"]["fusion"]["per_class"].get(name, {}).get("AP") for run in runs]
        if any(ap is not None for ap in found):
            aps[name] = [(ap, ap is not None and ap == max(a for a in found if a is not None)) for ap in found]
    tests = [set(run.scored.ids) for run in runs]
    same = all(test == tests[0] for test in tests) and len({run.by for run in runs}) == 1
    return {"rows": rows, "classes": aps, "same": same}
