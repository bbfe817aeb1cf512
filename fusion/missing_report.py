"""The command `scripts/compare_missing_views.py`: what missing views cost, as JSON, text and picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from matplotlib.figure import Figure

from data.files import atomic_write
from data.plots import BLUE, GREY, ORANGE, save_figure
from data.runs import run_command
from fusion.missing_views import compare_missing, load_run
from fusion.scoring import span

STYLES = {  # colour and marker of each method, filled where it has learned from groups
    "fusion": {"color": BLUE, "marker": "o"},
    "mlp": {"color": ORANGE, "marker": "s"},
    "mean": {"color": GREY, "marker": "^", "markerfacecolor": "white"},
    "max": {"color": GREY, "marker": "v", "markerfacecolor": "white"},
    "weighted": {"color": GREY, "marker": "D", "markerfacecolor": "white"},
    "single": {"color": GREY, "marker": "x"},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(
        prog="compare_missing_views.py",
        description="mAP when views are missing at test time: fusion and every baseline on the same groups and views.",
    )
    parser.add_argument("--run_dir", type=Path, nargs="+", required=True, help="finished runs: one, or its seeds")
    parser.add_argument("--name", type=str, default="fusion", help="stage two's folder in each run")
    parser.add_argument(
        "--cache_dir", type=Path | None, default=None, help="feature cache (default: as it was trained)"
    )
    parser.add_argument("--out", type=Path | None, default=None, help="folder (default: first RUN_DIR/missing_views)")
    parser.add_argument("--replicates", type=int, default=1000, help="patient bootstrap replicates behind intervals")
    options = vars(parser.parse_args(argv))
    run_command(lambda: compare_missing_views(**options))


def compare_missing_views(
    run_dir: list[Path],
    name: str = "fusion",
    cache_dir: Path | None = None,
    out: Path | None = None,
    replicates: int = 1000,
) -> None:
    """Write `missing_views.json`, `.txt` and `.png`, and print the table; errors as in `load_run`."""
    folder = out or run_dir[0] / "missing_views"
    report = compare_missing([load_run(path, name, cache_dir) for path in run_dir], replicates)
    lines = table_lines(report)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "missing_views.json", json.dumps(report, indent=1))
    atomic_write(folder / "missing_views.txt", "\n".join(lines) + "\n")
    plot(report, folder / "missing_views.png")
    for line in [*lines, f"next: look at {folder / 'missing_views.png'}"]:
        print(line)


def table_lines(report: dict[str, Any]) -> list[str]:
    """The comparison as text, one table per condition."""
    lines = [
        f"Test groups ({report['by']}), mAP [95 % interval by patient bootstrap], mean over {report['runs']} run(s) and"
        f" {report['draws']} fixed draws where views are drawn; within a table the same groups and views."
    ]
    for name, part in report["conditions"].items():
        lines += ["", f"{name}: {part['groups']} groups, {part['views']:.2f} views each"]
        lines.append(
            f"  {'method':<10}{'mAP':>24}   {'minus itself with all views':<30}{'fusion minus it':<26}".rstrip()
        )
        for method, own in part["methods"].items():
            lost = span(own["minus_all_views"], "+") if "minus_all_views" in own else ""
            lead = span(part["fusion_minus"][method], "+") if method in part["fusion_minus"] else ""
            lines.append(f"  {method:<10}{span(own['mAP']):>24}   {lost:<30}{lead}".rstrip())
    return lines


def plot(report: dict[str, Any], path: Path) -> None:
    """Two panels over the same conditions: what each method loses, and what fusion is ahead by."""
    parts = report["conditions"]
    lost = {name: {m: own["minus_all_views"] for m, own in part["methods"].items()} for name, part in parts.items()
            if "minus_all_views" in part["methods"]["fusion"]}  # fmt: skip
    lead = {name: part["fusion_minus"] for name, part in parts.items()}
    figure = Figure(figsize=(12, 1.6 + 0.62 * len(lead)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1])
    panel(left, lost, "mAP minus the same method's with all views", parts)
    panel(right, lead, "fusion's mAP minus the method's", parts)
    methods = [m for m in STYLES if m in next(iter(parts.values()))["methods"]]
    handles = [left.plot([], [], linestyle="none", label=method, **STYLES[method])[0] for method in methods]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(methods), frameon=False)
    save_figure(figure, path, dpi=110)


def panel(axis: Any, values: dict[str, dict[str, Any]], label: str, parts: dict[str, Any]) -> None:
    """Estimates and intervals, a row per condition, its methods below one another."""
    for row, methods in enumerate(values.values()):
        shown = [m for m in STYLES if m in methods and methods[m]["estimate"] is not None]
        for place, method in enumerate(shown):
            value, y = methods[method], row + 0.7 * ((place + 0.5) / len(shown) - 0.5)
            axis.plot([value["low"], value["high"]], [y, y], color=STYLES[method]["color"], linewidth=1)
            axis.plot(value["estimate"], y, linestyle="none", markersize=4.5, **STYLES[method])
        if row % 2:
            axis.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", zorder=-1)
    axis.axvline(0, color="black", linewidth=0.7)
    axis.set_yticks(range(len(values)), [f"{name}\n{parts[name]['groups']} groups" for name in values], fontsize=8)
    axis.set(xlabel=label, ylim=(max(1, len(values)) - 0.5, -0.5))
