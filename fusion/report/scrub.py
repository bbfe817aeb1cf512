"""A simulated body moving through a simulated chest, and what the run's models say of every step.

For runs on the phantom only. Each step is rendered from the front and from the side (`data.phantom`), goes through the
run's backbone as any image does, and the fusion model is asked three times: about both views, and about each alone.
Two journeys, each with a body that the phantom's classes know: one that only the lateral shows, and one that neither
view can name alone.

Axes: **K** steps, **N** images, **H W D** map, **S** subsets of the two views, **C** classes,
**P R** rows and columns of a picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor
from torch.nn import functional as F

from data.audit.pictures import data_uri
from data.errors import InputError
from data.phantom.anatomy import skin_front
from data.phantom.bodies import Body, ellipsoid
from data.phantom.constants import VISIBLE_CNR, View
from data.phantom.location import read_pictures
from data.phantom.patient import Patient, sample_patient
from data.phantom.radiograph import Taking, radiograph
from data.phantom.visibility import noise_free, ratio
from data.strict_json import read_json
from data.views import VIEWS
from extract.backbone import Backbone
from extract.engine import sigmoid
from extract.teacher import load_teacher
from fusion.grouping import UNKNOWN
from fusion.report.charts import Plot
from fusion.report.source import Run
from fusion.shapley import subset_logits
from fusion.trained import TrainedFusion

PATIENT = 12
"""Seed of the chest, of no cohort."""
STEPS = 21
SHOWN = 232  # pixels of a picture on the page
SIDES: tuple[View, View] = ("PA", "LATERAL")
MODELS = {"both": "frontal and lateral", "frontal": "frontal alone", "lateral": "lateral alone"}
SUBSETS = np.array([[True, True], [True, False], [False, True]])


@dataclass(frozen=True)
class Journey:
    """A body at each step from 0 to 1, and the classes that it is about."""

    key: str
    title: str
    words: str
    classes: tuple[str, ...]
    body: Callable[[Patient, float], Body]
    ends: tuple[str, str]


def behind_the_heart(patient: Patient, step: float) -> Body:
    """The phantom's flat lesion from the outer left lung to its place beside the spine, and on below the dome."""
    stops = np.array([[8.2, 3.0, 4.0], [7.4, -2.5, 1.0], [5.0, -6.0, -2.2], [2.5, -7.8, -4.2], [2.5, -7.8, -10.5]])
    at = step * (len(stops) - 1)
    center = [float(np.interp(at, np.arange(len(stops)), stops[:, axis])) for axis in range(3)]
    return Body(0.165, (ellipsoid(center, (4.2, 0.56, 2.8)),))


def into_the_lung(patient: Patient, step: float) -> Body:
    """A disc that casts one frontal shadow all the way: flat on the skin it is an electrode, in the lung a nodule."""
    x, z, radius, strength = 5.7, 7.8, 1.72, 1.06
    depth = 0.5 + 6.5 * step
    y = (1 - step) * (skin_front(patient, x, z) + 0.35) + step * -0.6
    return Body(strength / (2 * depth), (ellipsoid((x, y, z), (radius, depth, radius)),))


JOURNEYS = (
    Journey(
        "heart",
        "A lesion behind the heart",
        "A flat lesion (8 x 6 x 1 cm) travels from the front of the left lung to its place behind the heart, then below"
        " the diaphragm. From the front it is spread out thin and heart and spine cover it; from the side the beam runs"
        " along it.",
        ("Lung Lesion",),
        behind_the_heart,
        ("front of the lung", "below the diaphragm"),
    ),
    Journey(
        "disc",
        "Nodule or electrode?",
        "A disc sinks from the skin into the lung and grows in depth so that its frontal shadow stays the same: an"
        " electrode at first, a nodule at the end. The frontal cannot tell the two apart, the lateral shows only an"
        " electrode; only both together can say nodule.",
        ("Nodule", "Support Devices"),
        into_the_lung,
        ("on the skin", "in the lung"),
    ),
)


def scrub(run: Run) -> dict[str, Any]:
    """The journeys whose classes the run knows; `missing` is None, or the reason in a sentence."""
    if set(run.manifest.images["source"]) != {"phantom"}:
        return {
            "missing": "Only a run on the phantom has this section: its chests can be drawn anew with a finding moved."
        }
    trained = run.trained
    if isinstance(trained, str):
        return {"missing": f"The moving finding is not shown. {trained}"}
    try:
        backbone, size = own_backbone(run, trained), image_size(run)
    except InputError as error:
        return {"missing": f"The moving finding needs the run's backbone: {error}."}
    known = [one for one in JOURNEYS if set(one.classes) <= set(run.manifest.classes)]
    if not known:
        return {"missing": "This run does not have the classes of the findings that move."}
    shown = [film(one, trained, backbone, size) for one in known]
    return {"missing": None, "journeys": shown, "models": MODELS, "visible": VISIBLE_CNR, "size": size}


def own_backbone(run: Run, trained: TrainedFusion) -> Backbone:
    """The backbone behind the cache.

    Raises:
        InputError: Stage one's folder is damaged, or holds another one.
    """
    teacher = load_teacher(run.run_dir / "stage_one")
    if teacher.weights_sha256 != trained.cache.identity.weights_sha256:
        raise InputError(f"{run.run_dir / 'stage_one' / 'best'} is not the one that made {trained.cache.folder}")
    return teacher.model.backbone.eval()


def image_size(run: Run) -> int:
    """Side of the phantom's images in pixels.

    Raises:
        InputError: There is no phantom of this version beside the manifest.
    """
    folder = next((one for one in (run.run_dir / "phantom", run.manifest.root.parent) if one.is_dir()), run.run_dir)
    read_pictures(folder)
    return int(read_json(folder / "phantom.json", "prepare the phantom anew")["size"])


def film(journey: Journey, trained: TrainedFusion, backbone: Backbone, size: int) -> dict[str, Any]:
    """Pictures, contrast and probabilities of every step of a journey."""
    patient, taking = sample_patient(PATIENT), Taking(noise_seed=PATIENT)
    steps = np.linspace(0, 1, STEPS).tolist()
    empty = {view: noise_free(patient, {}, view, taking) for view in SIDES}
    frames, inputs = [], []
    for step in steps:
        bodies = [journey.body(patient, step)]
        frame: dict[str, Any] = {"step": step}
        for view in SIDES:
            inputs.append(radiograph(patient, {}, view, taking, size, bodies))
            picture = radiograph(patient, {}, view, taking, SHOWN, bodies)
            signal = noise_free(patient, {}, view, taking, bodies=bodies)
            change = np.log(empty[view] / signal)
            frame[view] = {
                "picture": data_uri(np.rint(255 * picture).astype(np.uint8)),
                "cnr": ratio(signal, change, view, taking),
                "at": middle_of(change),
            }
        frames.append(frame)
    clean = ask(trained, backbone, [radiograph(patient, {}, view, taking, size) for view in SIDES])[0]
    answers = ask(trained, backbone, inputs)
    columns = [trained.manifest.classes.index(name) for name in journey.classes]
    for frame, answer in zip(frames, answers, strict=True):
        frame["probabilities"] = answer[:, columns].round(4).tolist()
    charts = [
        chart(name, steps, answers[:, :, c], clean[:, c]) for name, c in zip(journey.classes, columns, strict=True)
    ]
    return {"journey": journey, "frames": frames, "charts": charts, "start": STEPS * 3 // 4}


@torch.inference_mode()
def ask(
    trained: TrainedFusion, backbone: Backbone, pictures: list[Float[np.ndarray, "_P _R"]]
) -> Float[np.ndarray, "K S C"]:
    """Probabilities of pairs of pictures, a frontal and a lateral by turns: by both views, by each alone."""
    eight_bit = [np.rint(255 * picture).astype(np.float32) / 255 for picture in pictures]  # as the files hold them
    images = torch.stack([trained.preprocessing(picture) for picture in eight_bit])
    maps = pooled(backbone(images), trained.cache.identity.pool).to(torch.get_default_dtype())
    types = torch.tensor([UNKNOWN if trained.config.grouping.hide_types else VIEWS.index(view) for view in SIDES])
    slots = trained.config.model.num_slots
    return np.stack([
        sigmoid(subset_logits(trained.model, pair, types, SUBSETS, slots)) for pair in maps.split(len(SIDES))
    ])  # fmt: skip


def pooled(maps: Float[Tensor, "N H W D"], pool: int) -> Float[Tensor, "N h w D"]:
    """Averaged as the cache did."""
    if pool == 1:
        return maps
    return F.avg_pool2d(maps.permute(0, 3, 1, 2), pool, ceil_mode=True).permute(0, 2, 3, 1)


def middle_of(change: Float[np.ndarray, "P P"]) -> tuple[float, float]:
    """Where a body's shadow lies, in percent from the left and from the top."""
    weight = np.abs(change) * (np.abs(change) > 0.5 * np.abs(change).max())
    rows, columns = (np.arange(len(change)) + 0.5) / len(change), (np.arange(change.shape[1]) + 0.5) / change.shape[1]
    total = max(float(weight.sum()), 1e-12)
    return round(100 * float(weight.sum(0) @ columns) / total, 1), round(100 * float(weight.sum(1) @ rows) / total, 1)


def chart(
    name: str, steps: list[float], values: Float[np.ndarray, "K S"], clean: Float[np.ndarray, "S"]
) -> dict[str, Any]:
    """Probability over the journey by each model; dots at the end: the same chest without the body."""
    plot = Plot(x=(0.0, 1.06), height=150.0, top=10.0, bottom=10.0)
    marks = plot.axes([], [0, 0.5, 1])
    for s, model in enumerate(MODELS):
        marks += plot.line(steps, values[:, s], f"model-{model}")
        marks += plot.dot(1.045, float(clean[s]), f"model-{model}", f"without it, {MODELS[model]}: {clean[s]:.3f}")
    marks += Markup('<line class="cursor" x1="0" x2="0" y1="{:g}" y2="{:g}"/>').format(plot.up(1), plot.up(0))
    start, end = plot.across(0), plot.across(1)
    return {"name": name, "picture": plot.draw(marks, "scrub", f"probability of {name}"), "start": start, "end": end}
