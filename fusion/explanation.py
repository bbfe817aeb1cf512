"""The command `scripts/explain.py`: why a trained run says what it says of some groups.

Writes per group a picture of heat maps for each method, and for all groups one table of Shapley shares: what each view
added to each class. Predictions are plain ones: averages over test-time passes and the normal gate are left out.

V views, C classes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from jsonargparse import ArgumentParser

from data.errors import InputError
from data.images import read_image
from data.manifest import Manifest
from data.runs import run_command
from data.tables import write_table
from data.views import VIEWS
from extract.engine import sigmoid
from fusion.explain import heat_maps, heat_methods, to_pixels, view_shares
from fusion.grouping import GroupSet
from fusion.overlay import draw_overlays
from fusion.shapley import shapley_shares
from fusion.trained import TrainedFusion, load_trained

TITLES = {"attention": "attention of the ML-Decoder", "class_maps": "class maps", "grad_cam": "Grad-CAM"}
BASELINE_GROUPS = 256
"""Validation groups whose mean logits stand for no view at all."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(prog="explain.py", description="Heat maps, and what each view added to a prediction.")
    parser.add_argument("--run_dir", type=Path, required=True, help="a run with a trained stage two")
    parser.add_argument("--study", type=str, nargs="+", required=True, help="studies (patients where it fuses these)")
    parser.add_argument("--name", type=str, default="fusion", help="stage two's folder in the run")
    parser.add_argument("--classes", type=list[str], default=[], help="classes to draw (default: the most probable)")
    parser.add_argument("--top", type=int, default=3, help="how many classes to draw unless they are named")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="folder to write (default: RUN_DIR/NAME/explained)"
    )
    options = vars(parser.parse_args(argv))
    run_command(lambda: explain(**options))


def explain(
    run_dir: Path,
    study: Sequence[str],
    name: str = "fusion",
    classes: Sequence[str] = (),
    top: int = 3,
    out: Path | None = None,
) -> None:
    """Write `<id>_<method>.png` for every group and `shapley.csv`; run again, it writes the same.

    Raises:
        InputError: no trained run, an unknown study or class, or an image that cannot be read.
    """
    out_dir, trained = out or run_dir / name / "explained", load_trained(run_dir, name)
    names = list(trained.manifest.classes)
    if unknown := [wanted for wanted in classes if wanted not in names]:
        raise InputError(f"--classes: {unknown[0]!r} is none of the classes {', '.join(names)}")
    empty, tables = baseline_logits(trained), []
    for group_id in study:
        part, groups, number = find_group(trained, group_id)
        logits, shares = group_shares(trained, groups, number, empty)
        chosen = [names.index(one) for one in classes] or np.argsort(-logits, kind="stable")[:top].tolist()
        tables.append(share_table(group_id, part.images.iloc[groups.rows[number]], names, logits, empty, shares))
        for method in heat_methods(trained.model):
            path = out_dir / f"{quote(group_id, safe='')}_{method}.png"
            draw_group(path, trained, part, groups, number, method, chosen, logits, shares)
            print(path)
    write_table(out_dir / "shapley.csv", pd.concat(tables, ignore_index=True))
    print(out_dir / "shapley.csv")


def find_group(trained: TrainedFusion, group_id: str) -> tuple[Manifest, GroupSet, int]:
    """The images of the split that a group is in, the split's groups, and its number among them.

    Raises:
        InputError: no such group has a cached image.
    """
    key = f"{trained.config.grouping.by}_id"
    rows = trained.manifest.images[trained.manifest.images[key] == group_id]
    if rows.empty:
        raise InputError(f"--study {group_id}: no cached image has this {key}; wanted one of manifest.csv")
    part, groups = trained.groups_of_split(rows["split"].iat[0])
    return part, groups, groups.ids.index(group_id)


@torch.inference_mode()
def baseline_logits(trained: TrainedFusion) -> Float[np.ndarray, "C"]:
    """What the model says of nobody in particular: mean logits of up to `BASELINE_GROUPS` validation groups.

    Validation, since the model knows its training groups better than it will know anyone; evenly spaced, no draw.
    """
    _, groups = trained.groups_of_split("val")
    numbers = np.unique(np.linspace(0, len(groups) - 1, min(BASELINE_GROUPS, len(groups))).astype(int))
    logits = [trained.model(*trained.inputs(groups, int(number)))[0].double() for number in numbers]
    return torch.stack(logits).mean(dim=0).numpy()


def group_shares(
    trained: TrainedFusion, groups: GroupSet, number: int, empty: Float[np.ndarray, "C"]
) -> tuple[Float[np.ndarray, "C"], Float[np.ndarray, "V C"]]:
    """Logits of a group, and the Shapley share of each of its views in them."""
    maps, types, slots = trained.inputs(groups, number)
    with torch.inference_mode():
        logits = trained.model(maps, types, slots)[0].numpy()
    shares = shapley_shares(trained.model, maps[0], types[0], empty, trained.config.model.num_slots)
    return logits, shares


def share_table(
    group_id: str,
    images: pd.DataFrame,
    names: Sequence[str],
    logits: Float[np.ndarray, "C"],
    empty: Float[np.ndarray, "C"],
    shares: Float[np.ndarray, "V C"],
) -> pd.DataFrame:
    """A row per class and view; over the views of a class, `share` sums to `logit` minus `baseline_logit`."""
    probabilities = sigmoid(logits[None])[0]

    def rows() -> Iterator[dict[str, Any]]:
        for c, name in enumerate(names):
            for v, (image_id, view) in enumerate(zip(images["image_id"], images["view"], strict=True)):
                yield {
                    "group_id": group_id,
                    "class": name,
                    "image_id": image_id,
                    "view": view,
                    "share": f"{shares[v, c]:.6f}",
                    "logit": f"{logits[c]:.6f}",
                    "baseline_logit": f"{empty[c]:.6f}",
                    "probability": f"{probabilities[c]:.6f}",
                }

    return pd.DataFrame(list(rows()), dtype=str)


def draw_group(
    path: Path,
    trained: TrainedFusion,
    part: Manifest,
    groups: GroupSet,
    number: int,
    method: str,
    chosen: Sequence[int],
    logits: Float[np.ndarray, "C"],
    shares: Float[np.ndarray, "V C"],
) -> None:
    """One picture: the views of a group and, below, the heat of the chosen classes."""
    rows, types = groups.rows[number], groups.view_types[number]
    images = [read_image(part.image_path(int(row))) for row in rows]
    heat = heat_maps(method, trained.model, *trained.inputs(groups, number), chosen).clamp(min=0)
    amounts = view_shares(heat)[0]  # (K, V)
    amounts = amounts / amounts.sum(dim=1, keepdim=True).clamp(min=1e-12)
    pixels = [
        [to_pixels(heat[0, k, v], trained.preprocessing, *image.shape).numpy() for v, image in enumerate(images)]
        for k in range(len(chosen))
    ]
    names, probabilities = trained.manifest.classes, sigmoid(logits[None])[0]
    draw_overlays(
        path,
        f"{groups.ids[number]}, {TITLES[method]}",
        images,
        [f"{VIEWS[t]} {v + 1}" for v, t in enumerate(types)],
        pixels,
        [f"{names[c]}\np = {probabilities[c]:.2f}\n{known(float(groups.labels[number, c]))}" for c in chosen],
        [
            [f"adds {shares[v, c]:+.2f}, {amounts[k, v]:.0%} of heat" for v in range(len(rows))]
            for k, c in enumerate(chosen)
        ],
    )


def known(label: float) -> str:
    """A label in words."""
    return "not labelled" if np.isnan(label) else "label: yes" if label > 0.5 else "label: no"
