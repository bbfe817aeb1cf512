"""The pointing game where the truth is known: does the hottest cell of a heat map lie on the finding?

After Zhang et al. (arXiv 1608.00507, section 4.2). Every finding that is in a test image and visible in it is pointed
at, whatever the model predicts. A map's cell (16 pixels of a 128-pixel image) may be larger than the finding, so cells
point, not pixels: a hit is a hottest cell that touches the finding's footprint. Chance is the share of such cells among
those that show the body, the hit rate of a cell drawn at random there.

Axes: **N** findings (a class in an image), **M** methods, **G** groups, **V** views, **C** classes, **h w** cells,
**P** pixels of a square image's side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import nn

from data.phantom.listing import Picture
from data.phantom.location import locate, read_pictures
from data.runs import Log
from fusion.explain import MAPPED, heat_maps, heat_methods
from fusion.grouping import GroupSet
from fusion.stage_one import load_head
from fusion.trained import TrainedFusion, load_trained

STAGE_ONE = "stage-one class maps"


@dataclass(frozen=True)
class Finding:
    """One round: where the class can be hit in an image, and where each method points."""

    name: str
    patient_id: str
    chance: float
    hits: dict[str, bool]


def play(
    run_dir: Path, name: str = "fusion", split: str = "test", num_studies: int = 0, replicates: int = 1000
) -> dict[str, Any]:
    """Point at all visible findings of a phantom run's images.

    Args:
        name: Stage two's folder in the run.
        split: "test" to report, "val" to choose between methods.
        num_studies: Groups of the split, evenly spaced; 0: all.

    Returns:
        Per class and for the mean over classes: findings, chance, and each method's hit rate and gain over chance with
        95 % intervals by patient bootstrap.

    Raises:
        InputError: no trained run, or no phantom in it.
    """
    trained, log = load_trained(run_dir, name), Log(run_dir, speaks=True)
    pictures = read_pictures(run_dir / "phantom")
    part, groups = trained.groups_of_split(split)
    head = load_head(run_dir, trained.cache)
    numbers = np.unique(np.linspace(0, len(groups) - 1, num_studies or len(groups)).round().astype(int))
    found: list[Finding] = []
    for number in log.progress(numbers.tolist(), "pointing"):
        own = [pictures[image_id] for image_id in part.images["image_id"].iloc[groups.rows[number]]]
        found.extend(point(trained, head, groups, number, own))
    return report(found, replicates) | {"groups": len(numbers), "findings": len(found)}


def point(
    trained: TrainedFusion, head: nn.Module, groups: GroupSet, number: int, pictures: list[Picture]
) -> Iterator[Finding]:
    """The rounds of one group.

    Args:
        head: Of stage one; it points if it has class maps.
        pictures: How the group's views were made, in its order.
    """
    inputs, names = trained.inputs(groups, number), list(trained.manifest.classes)
    size, located = trained.preprocessing.size, []
    for picture in pictures:
        located.append(locate(picture, names, size))
    present = [c for c, name in enumerate(names) if any(name in footprints for _, footprints in located)]
    if not present:
        return
    heat = {method: heat_maps(method, trained.model, *inputs, present)[0] for method in heat_methods(trained.model)}
    if isinstance(head, MAPPED):
        maps = inputs[0][0]  # (V, H, W, D)
        with torch.inference_mode():
            of_views = head.class_maps(maps.flatten(1, 2)).unflatten(2, maps.shape[1:3])  # (V, C, H, W)
        heat[STAGE_ONE] = of_views[:, present].transpose(0, 1)
    for view, (body, footprints) in enumerate(located):
        for k, c in enumerate(present):
            if names[c] in footprints:
                one = {method: values[k, view].numpy() for method, values in heat.items()}
                yield round_of(names[c], groups.patient_ids[number], one, footprints[names[c]], body)


def round_of(
    name: str,
    patient_id: str,
    heat: dict[str, Float[np.ndarray, "_h _w"]],
    footprint: Bool[np.ndarray, "P P"],
    body: Bool[np.ndarray, "P P"],
) -> Finding:
    """Where each method points in one image, and what chance would hit."""
    hits = {}
    for method, values in heat.items():
        hits[method] = bool(touched(footprint, values.shape).flat[int(values.argmax())])
    cells = next(iter(heat.values())).shape
    in_body = shares(body, cells) >= 0.5
    can_hit = touched(footprint, cells)
    chance = can_hit[in_body].mean() if in_body.any() else can_hit.mean()
    return Finding(name, patient_id, float(chance), hits)


def touched(mask: Bool[np.ndarray, "P P"], cells: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """Cells that hold a pixel of a mask."""
    return shares(mask, cells) > 0


def shares(mask: Bool[np.ndarray, "P P"], cells: tuple[int, ...]) -> Float64[np.ndarray, "h w"]:
    """Share of each cell's pixels that are in a mask; a pixel belongs to the cell that its middle lies in."""
    row, column = (((np.arange(len(mask)) + 0.5) * n / len(mask)).astype(int) for n in cells)
    number = row[:, None] * cells[1] + column
    count = np.bincount(number.ravel(), minlength=cells[0] * cells[1])
    inside = np.bincount(number.ravel(), weights=mask.ravel().astype(float), minlength=cells[0] * cells[1])
    return (inside / np.maximum(count, 1)).reshape(cells)


def report(found: list[Finding], replicates: int, seed: int = 0) -> dict[str, Any]:
    """Hit rates per class and their mean, each with its interval; methods share the draws of patients."""
    names, methods = sorted({one.name for one in found}), list(found[0].hits) if found else []
    patients, patient = np.unique([one.patient_id for one in found], return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(
        len(patients), np.full(len(patients), 1 / len(patients)), replicates
    )
    weights = np.concatenate([np.ones((1, len(found))), draws[:, patient]])  # the first row: all findings as they are
    values = np.array([[one.chance, *(one.hits[method] for method in methods)] for one in found], dtype=float)
    rates = np.stack([rate(weights, values, np.array([one.name == name for one in found])) for name in names])
    table = {name: _row(rates[c], methods) for c, name in enumerate(names)}
    for name in names:
        table[name] = {"findings": sum(one.name == name for one in found)} | table[name]
    return {"classes": table, "mean over classes": _row(np.nanmean(rates, axis=0), methods)}


def rate(
    weights: Float64[np.ndarray, "R N"], values: Float64[np.ndarray, "N m"], of_class: Bool[np.ndarray, "N"]
) -> Float64[np.ndarray, "R m"]:
    """Mean of a class's rounds in each replicate; NaN in one without any."""
    total = weights[:, of_class].sum(axis=1, keepdims=True)
    summed = weights[:, of_class] @ values[of_class]
    return np.divide(summed, total, out=np.full_like(summed, np.nan), where=total > 0)


def _row(rates: Float64[np.ndarray, "R m"], methods: list[str]) -> dict[str, Any]:
    """Chance, and of each method the rate and what it gains over chance."""
    row: dict[str, Any] = {"chance": _interval(rates[:, 0])}
    for column, method in enumerate(methods, start=1):
        row[method] = {
            "hits": _interval(rates[:, column]),
            "gain": _interval(rates[:, column] - rates[:, 0]),
        }
    return row


def _interval(values: Float64[np.ndarray, "R"]) -> list[float]:
    """Value, and 2.5th and 97.5th percentile of its replicates."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return [round(float(value), 4) for value in (values[0], low, high)]


def table_lines(result: dict[str, Any]) -> list[str]:
    """The game as text: hit rates, and for the mean the gain with its interval."""
    mean = result["mean over classes"]
    methods = [key for key in mean if key != "chance"]
    lines = [f"{'class':<28}{'findings':>9}{'chance':>8}" + "".join(f"{method:>22}" for method in methods)]
    for name, row in [*result["classes"].items(), ("mean over classes", mean | {"findings": result["findings"]})]:
        cells = "".join("{:>7.2f} [{:.2f}, {:.2f}]".format(*row[method]["hits"]).rjust(22) for method in methods)
        lines.append(f"{name:<28}{row['findings']:>9}{row['chance'][0]:>8.2f}{cells}")
    gains = "".join("{:>+7.2f} [{:+.2f}, {:+.2f}]".format(*mean[method]["gain"]).rjust(22) for method in methods)
    return [*lines, f"{'gain over chance':<45}{gains}"]
