"""What each kind of view added: Shapley shares over groups that have both kinds, and what missing views cost.

Axes: **G** groups, **V** views, **C** classes.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from data.order import derive_seed
from data.strict_json import read_json
from data.views import VIEWS
from fusion.evaluate.svg import drawing, text
from fusion.explanation import baseline_logits, group_shares
from fusion.grouping import GroupSet
from fusion.report.charts import Plot, ticks
from fusion.report.source import Run
from fusion.trained import TrainedFusion

MOST_GROUPS = 150
"""Groups asked about: a few hundredths of a second each."""

KINDS = {"frontal": ("PA", "AP"), "lateral": ("LATERAL",), "other": ("OTHER", "UNKNOWN")}
WIDTH, HEIGHT = 230.0, 26.0


def lateral(run: Run, most: int = MOST_GROUPS) -> dict[str, Any]:
    """Mean share of each kind of view in each class's logit, where the finding is present and where it is absent."""
    trained = run.trained
    if isinstance(trained, str):
        return {"missing": f"View shares are not shown. {trained}"}
    _, groups = trained.groups_of_split("test")
    both = [
        g for g, types in enumerate(groups.view_types) if {"frontal", "lateral"} <= set(map(kind_of, types.tolist()))
    ]
    if not both:
        return {"missing": "No test group has both a frontal and a lateral view, so there is nothing to share out."}
    chosen = sampled(np.array(both), most)
    shares, labels = shares_of(trained, groups, chosen), groups.labels[chosen]
    rows = []
    for c, name in enumerate(trained.manifest.classes):
        row = class_row(name, shares[:, :, c], labels[:, c])
        if row:
            rows.append(row)
    ends = [value for row in rows for side in ("present", "absent") for value in row[side].values()]
    low, high = 1.06 * min(0.0, *ends), 1.06 * max(0.5, *ends)
    plot = Plot(x=(low, high), width=WIDTH, height=HEIGHT, left=4, right=4, bottom=0, top=0)
    for row in rows:
        row["picture"] = picture(row, plot)
    rows.sort(key=lambda row: -(row["present"]["lateral"]))
    others = any(row["present"]["other"] for row in rows)
    counts = {"rows": rows, "asked": len(chosen), "both": len(both), "all": len(groups), "others": others}
    return {"missing": None, "scale": scale(plot), **counts}


def kind_of(view_type: int) -> str:
    """frontal, lateral or other."""
    return next(kind for kind, views in KINDS.items() if VIEWS[view_type] in views)


def sampled(numbers: Int[np.ndarray, "G"], most: int) -> Int[np.ndarray, "k"]:
    """At most `most` of the groups, the same ones every time, in their order."""
    if len(numbers) <= most:
        return numbers
    random = np.random.default_rng(derive_seed("report", len(numbers), most))
    return np.sort(random.choice(numbers, most, replace=False))


def shares_of(trained: TrainedFusion, groups: GroupSet, chosen: Int[np.ndarray, "G"]) -> Float[np.ndarray, "G 3 C"]:
    """Shapley shares of each group, added up over the views of a kind (0 for a kind that it has not)."""
    empty, found = baseline_logits(trained), []
    for number in chosen.tolist():
        _, shares = group_shares(trained, groups, number, empty)
        kinds = np.array([kind_of(int(one)) for one in groups.view_types[number]])
        found.append(np.stack([shares[kinds == kind].sum(axis=0) for kind in KINDS]))
    return np.stack(found)


def class_row(name: str, shares: Float[np.ndarray, "G 3"], labels: Float[np.ndarray, "G"]) -> dict[str, Any] | None:
    """Mean shares of one class; None without a group in which it is present."""
    present, absent = labels > 0.5, labels <= 0.5  # NaN is neither
    if not present.any():
        return None
    means = {
        side: dict(zip(KINDS, shares[chosen].mean(axis=0).tolist() if chosen.any() else [0.0] * 3, strict=True))
        for side, chosen in (("present", present), ("absent", absent))
    }
    return {"name": name, "positives": int(present.sum()), **means}


def picture(row: dict[str, Any], plot: Plot) -> Markup:
    """Shares around 0: bars where the finding is present, ticks where it is absent; frontal above lateral."""
    zero = plot.across(0)
    marks = Markup('<line class="zero" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1:g}"/>').format(zero, HEIGHT)
    for y, kind in ((3.0, "frontal"), (14.0, "lateral")):
        end, away = plot.across(row["present"][kind]), plot.across(row["absent"][kind])
        marks += Markup('<rect class="{}" x="{:.1f}" y="{:g}" width="{:.1f}" height="9" rx="1.5"/>').format(
            kind, min(zero, end), y, abs(end - zero)
        )
        marks += Markup('<line class="{} away" x1="{:.1f}" x2="{:.1f}" y1="{:g}" y2="{:g}"/>').format(
            kind, away, away, y - 0.5, y + 9.5
        )
    said = f"present: frontal {row['present']['frontal']:+.2f}, lateral {row['present']['lateral']:+.2f}"
    return drawing(marks, WIDTH, HEIGHT, "bar shares", said)


def scale(plot: Plot) -> Markup:
    """The numbers above the bars."""
    marks = Markup()
    for value in ticks(*plot.x, most=6):
        marks += text(plot.across(value), 11.0, f"{value:+g}" if value else "0", "middle")
    return drawing(marks, WIDTH, 14.0, "bar shares", "scale in logits")


def missing_views(run: Run) -> dict[str, Any]:
    """The table that `scripts/compare_missing_views.py` left, or how to get it."""
    path = run.run_dir / "missing_views" / "missing_views.json"
    if not path.is_file():
        command = f"python scripts/compare_missing_views.py --run_dir {run.run_dir}"
        extra = "" if run.folder.name == "fusion" else f" --name {run.folder.name}"
        return {"missing": "What a missing view costs has not been measured.", "command": command + extra}
    report = read_json(path, "run scripts/compare_missing_views.py again")
    methods = list(next(iter(report["conditions"].values()))["methods"]) if report["conditions"] else []
    return {"missing": None, "report": report, "methods": [m for m in ("fusion", "mean", "max", "mlp") if m in methods]}
