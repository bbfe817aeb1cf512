"""Training curves of both stages from their `metrics.jsonl`."""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from data.runs import read_metrics
from fusion.report.charts import Plot, ticks
from fusion.report.source import Run


def training(run: Run) -> dict[str, Any]:
    """Loss and validation mAP over epochs, per stage that left them."""
    folders = {
        "Stage one: the backbone on single images": run.run_dir / "stage_one",
        "Stage two: fusion of the views": run.folder,
    }
    stages = [stage(title, folder) for title, folder in folders.items()]
    found = [one for one in stages if one]
    lacking = [title.split(":")[0].lower() for title, one in zip(folders, stages, strict=True) if not one]
    return {"stages": found, "lacking": lacking}


def stage(title: str, folder: Path) -> dict[str, Any] | None:
    """One stage's two plots and its best epoch; None without rows."""
    rows = read_metrics(folder)
    if not rows:
        return None
    epochs = [row["epoch"] for row in rows]
    losses = defined([row.get("train_loss") for row in rows])
    scores = defined([row.get("mAP") for row in rows])
    best = int(np.nanargmax(scores)) if np.isfinite(scores).any() else None
    seconds = sum(row.get("seconds") or 0.0 for row in rows)
    return {
        "title": title,
        "epochs": len(rows),
        "seconds": seconds,
        "best": None if best is None else {"epoch": epochs[best], "mAP": float(scores[best])},
        "loss": curve(epochs, losses, None, "training loss", (0.0, top_of(losses))),
        "score": curve(epochs, scores, best, "validation mAP", (0.0, 1.0)),
    }


def defined(values: list[float | None]) -> np.ndarray:
    """Numbers, NaN for what is undefined."""
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def top_of(values: np.ndarray) -> float:
    """A little above the largest defined value."""
    known = values[np.isfinite(values)]
    return float(known.max()) * 1.05 if known.size and known.max() > 0 else 1.0


def curve(epochs: list[int], values: np.ndarray, best: int | None, label: str, y: tuple[float, float]) -> Markup:
    """A line over epochs; the best one marked."""
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)
    plot = Plot(x=(float(first), float(last)), y=y, height=180.0, top=18.0)
    whole = [tick for tick in ticks(first, last, 6) if tick == int(tick)]
    marks = plot.axes(whole, ticks(*y, 4), "epoch", label) + plot.line(epochs, values, "fusion")
    if len(epochs) <= 60:
        for epoch, value in zip(epochs, values.tolist(), strict=True):
            if np.isfinite(value):
                marks += plot.dot(epoch, value, "fusion", f"epoch {epoch}: {value:.4f}", 2.2)
    if best is not None:
        marks += plot.dot(epochs[best], float(values[best]), "best", f"best epoch {epochs[best]}", 5.0)
    return plot.draw(marks, "training", label)
