"""Cases to look at: groups that fusion got most right and most wrong, where it looked, and their nearest neighbours.

Axes: **G** groups, **M** training groups, **V** views, **C** classes, **P R** rows and columns of an image.
"""

from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8

from data.audit.pictures import data_uri, grey_pixels
from data.errors import InputError
from data.groups import group_images
from data.images import ImageError, read_image
from data.manifest import Manifest
from data.metrics import POSITIVE_ABOVE, hard_labels
from data.views import VIEWS
from fusion.explain import heat_maps, heat_methods, to_pixels
from fusion.grouping import GroupSet, make_groups
from fusion.overlay import HOT
from fusion.report.lateral import sampled
from fusion.report.source import Run, Scored
from fusion.tail.features import pooled_groups, whitening
from fusion.tail.neighbours import nearest
from fusion.trained import TrainedFusion

MOST_VIEWS = 4
"""Views drawn of a group."""
HEIGHT = 260  # pixels of a picture
THUMB = 92
MOST_CLASSES = 6
MOST_TRAINING = 5000
"""Training groups among which neighbours are sought."""
COMPONENTS = 64
NEIGHBOURS = 3


def cases(run: Run, count: int) -> dict[str, Any]:
    """`count` best and `count` worst groups, ready to be shown; `missing` says why there are none."""
    if not count:
        return {"missing": "Left out on request (--cases 0): this page holds no image and no id of a patient."}
    trained = run.trained
    if isinstance(trained, str):
        return {"missing": f"Cases are not shown. {trained}"}
    try:
        scored = run.scored
    except InputError as error:
        return {"missing": f"Cases need the predictions: {error}."}
    part, groups = trained.groups_of_split("test")
    place = {group_id: g for g, group_id in enumerate(groups.ids)}
    views = np.array([len(groups.rows[place[i]]) if i in place else 0 for i in scored.ids], dtype=int)
    best, worst, all_right = choose(scored, views, count)
    finder = Neighbours(trained, groups)
    shown = {
        kind: [case(trained, part, groups, scored, row, place[scored.ids[row]], finder) for row in rows]
        for kind, rows in (("best", best), ("worst", worst))
    }
    return {"missing": None, "note": finder.note, "all_right": all_right, **shown}


def choose(scored: Scored, num_views: Int[np.ndarray, "G"], count: int) -> tuple[list[int], list[int], bool]:
    """Rows of the best and of the worst groups, and whether the best ones are right in every class.

    Among groups with a finding; with several views, where there are enough of these. Best: every known label on its
    side of 0.5, those with most findings first (groups without any are the easiest and teach little), or else of the
    smallest mean squared distance between probability and label. Worst: of the largest.
    """
    probabilities = scored.methods["fusion"]
    known, positive = hard_labels(scored.labels)
    errors = squared_errors(probabilities, scored.labels)
    right = (((probabilities > POSITIVE_ABOVE) == positive) | ~known).all(axis=1)
    seen = positive.any(axis=1) & (num_views > 0)
    several = seen & (num_views > 1)
    rows = np.flatnonzero(several if several.sum() >= 2 * count else seen)
    order = rows[np.argsort(errors[rows], kind="stable")]
    half = min(count, len(order) // 2)
    worst = order[::-1][:half].tolist()
    whole = order[right[order]]
    if len(whole) < half:
        return order[:half].tolist(), worst, False
    return whole[np.argsort(-positive[whole].sum(axis=1), kind="stable")][:half].tolist(), worst, True


def squared_errors(probabilities: Float[np.ndarray, "G C"], labels: Float[np.ndarray, "G C"]) -> Float[np.ndarray, "G"]:
    """Mean over the known labels of a group of the squared distance of their probability."""
    known, positive = hard_labels(labels)
    return np.where(known, (probabilities - positive) ** 2, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def case(
    trained: TrainedFusion,
    part: Manifest,
    groups: GroupSet,
    scored: Scored,
    row: int,
    number: int,
    finder: "Neighbours",
) -> dict[str, Any]:
    """Everything the page says of one group."""
    probabilities, labels = scored.methods["fusion"][row], scored.labels[row]
    names = trained.manifest.classes
    known, positive = hard_labels(labels)
    wrong = np.where(known, np.abs(probabilities - positive), -1.0)
    target = int(np.argmax(wrong)) if wrong.max() >= 0.5 else int(np.argmax(np.where(positive, probabilities, -1.0)))
    interest = np.where(positive, 2.0, 0.0) + probabilities
    listed = np.argsort(-interest, kind="stable")[: max(MOST_CLASSES, int(positive.sum()))]
    return {
        "id": groups.ids[number],
        "views": len(groups.rows[number]),
        "error": float(squared_errors(probabilities[None], labels[None])[0]),
        "classes": [class_line(names[c], float(probabilities[c]), float(labels[c])) for c in listed.tolist()],
        "heat_class": names[target],
        "pictures": pictures(trained, part, groups, number, target),
        "similar": finder(number),
        "labels": [names[c] for c in np.flatnonzero(positive)],
    }


def class_line(name: str, probability: float, label: float) -> dict[str, Any]:
    """A class, its probability, and whether it is there."""
    truth = "unknown" if np.isnan(label) else "present" if label > 0.5 else "absent"
    wrong = truth != "unknown" and (probability > POSITIVE_ABOVE) != (truth == "present")
    return {"name": name, "probability": probability, "truth": truth, "wrong": wrong}


def pictures(
    trained: TrainedFusion, part: Manifest, groups: GroupSet, number: int, target: int
) -> list[dict[str, str]]:
    """The views of a group, plain and with the heat of one class; colours share one scale over the views."""
    heat = heat_maps(heat_methods(trained.model)[-1], trained.model, *trained.inputs(groups, number), [target])
    heat = heat[0, 0].clamp(min=0)
    most, drawn = max(float(heat.max()), 1e-12), []
    for v, row in enumerate(groups.rows[number][:MOST_VIEWS].tolist()):
        view = VIEWS[groups.view_types[number][v]]
        try:
            image = read_image(part.image_path(row), at_least=HEIGHT)
        except (ImageError, OSError):
            drawn.append({"view": view, "plain": "", "heat": ""})
            continue
        plain = grey_pixels(image, HEIGHT)
        strength = to_pixels(heat[v] / most, trained.preprocessing, *image.shape)
        small = to_height(strength.clamp(0, 1).numpy(), plain.shape)
        drawn.append({"view": view, "plain": data_uri(plain), "heat": data_uri(overlaid(plain, small))})
    return drawn


def to_height(strength: Float[np.ndarray, "P R"], shape: tuple[int, ...]) -> Float[np.ndarray, "p r"]:
    """Heat at a picture's size: the nearest value is enough for something this smooth."""
    rows = (np.arange(shape[0]) * strength.shape[0] // shape[0]).clip(max=strength.shape[0] - 1)
    columns = (np.arange(shape[1]) * strength.shape[1] // shape[1]).clip(max=strength.shape[1] - 1)
    return strength[np.ix_(rows, columns)]


def overlaid(grey: UInt8[np.ndarray, "p r"], strength: Float[np.ndarray, "p r"]) -> UInt8[np.ndarray, "p r rgb"]:
    """Heat laid over a grey picture with the colours and opacity of `fusion.overlay`."""
    colours = matplotlib.colormaps[HOT](strength)[..., :3]
    opacity = (0.75 * np.sqrt(strength))[..., None]
    return np.rint(255 * (opacity * colours + (1 - opacity) * grey[..., None] / 255)).astype(np.uint8)


class Neighbours:
    """The nearest training groups of a group, by pooled and whitened features of the cache.

    Whitened as the nearest-neighbour classifier of the tail is: without it a few directions decide who is near.
    """

    def __init__(self, trained: TrainedFusion, groups: GroupSet) -> None:
        self.trained, self.groups, self.note = trained, groups, ""
        self.part = trained.manifest.of_split("train")
        everyone = make_groups(self.part, trained.cache, trained.config.grouping)
        self.chosen = sampled(np.arange(len(everyone)), MOST_TRAINING)
        rows = np.concatenate([everyone.rows[g] for g in self.chosen])
        self.part = self.part.select(rows)
        self.training = make_groups(self.part, trained.cache, trained.config.grouping)
        self.findings = hard_labels(group_images(self.part, trained.config.grouping.by, "any").labels)[1]
        try:
            features = pooled_groups(trained.cache, self.training)
        except InputError as error:
            self.note = f"Similar {trained.config.grouping.by} groups are left out: {error}."
            return
        self.projection = whitening(features, COMPONENTS)
        self.features = self.projection(features)
        said = f"{len(self.training)} of {len(everyone)}" if len(self.training) < len(everyone) else "all"
        self.note = f"Neighbours are sought among {said} training groups."

    def __call__(self, number: int) -> list[dict[str, Any]]:
        """The `NEIGHBOURS` nearest: id, similarity, labels, a thumbnail of the first view."""
        if not hasattr(self, "features"):
            return []
        groups = self.groups
        own = pooled_groups(self.trained.cache, one_group(groups, number))
        similarities, numbers = nearest(self.features, self.projection(own), NEIGHBOURS)
        return [
            {
                "id": self.training.ids[n],
                "similarity": float(s),
                "labels": [self.part.classes[c] for c in np.flatnonzero(self.findings[n])],
                "thumb": thumbnail(self.part, int(self.training.rows[n][0])),
            }
            for s, n in zip(similarities[0].tolist(), numbers[0].tolist(), strict=True)
        ]


def one_group(groups: GroupSet, number: int) -> GroupSet:
    """A set of one group."""
    one = slice(number, number + 1)
    return GroupSet(
        groups.ids[one],
        groups.patient_ids[one],
        groups.labels[one],
        groups.rows[one],
        groups.ordinals[one],
        groups.view_types[one],
        groups.sources[one],
    )


def thumbnail(part: Manifest, row: int) -> str:
    """A small picture, "" if it cannot be read."""
    try:
        return data_uri(grey_pixels(read_image(part.image_path(row), at_least=THUMB), THUMB))
    except (ImageError, OSError):
        return ""
