"""What a model says of one study, and why: probabilities, shares of the views, heat maps.

**V** views in the order in which they were given, **C** classes, **S** side of the network's input, **K** variants of
an image's map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from data.errors import InputError
from data.transforms import Preprocessing
from extract.engine import sigmoid
from fusion.explain import heat_maps, heat_methods, to_pixels, view_shares
from fusion.grouping import slots_in_order
from fusion.model_parts import ModelParts
from fusion.overlay import draw_overlays
from fusion.shapley import shapley_shares

ViewSource = Literal["header", "user", "unknown"]


@dataclass(frozen=True)
class View:
    """One image of a study."""

    name: str
    """The file as it was given."""
    view: str
    """One of `data.views.VIEWS`."""
    view_from: ViewSource
    """Who said so: the DICOM header, the user, or nobody."""


@dataclass(frozen=True, eq=False)
class StudyPrediction:
    """The prediction for one group of images; made by `fusion.predict`."""

    parts: ModelParts = field(repr=False)
    views: tuple[View, ...]
    logits: Float32[np.ndarray, "C"] = field(repr=False)
    images: Float32[np.ndarray, "V S S"] = field(repr=False)
    """Grey values in [0, 1] as the network sees them."""
    maps: Float[Tensor, "V H W D"] = field(repr=False)
    """Plain maps in canonical order, as the fusion model takes them."""
    order: Int[np.ndarray, "V"] = field(repr=False)
    """Number of the given view at each place of the canonical order."""
    view_types: Int[Tensor, "V"] = field(repr=False)
    """Of the views in canonical order, as the model hears them."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of all values."""
        return self.parts.classes

    @property
    def probabilities(self) -> Float32[np.ndarray, "C"]:
        """Sigmoid of the logits."""
        return sigmoid(self.logits[None])[0]

    @property
    def calibrated(self) -> Float32[np.ndarray, "C"] | None:
        """Calibrated probabilities; None for a model that was not calibrated."""
        return self.parts.fitted[0](self.logits[None])[0] if self.parts.fitted else None

    @property
    def thresholds(self) -> Float64[np.ndarray, "C"] | None:
        """Calibrated probabilities above which a class is called; None for a model that was not calibrated."""
        return self.parts.fitted[1].values if self.parts.fitted else None

    def table(self) -> pd.DataFrame:
        """One row per class: probabilities, threshold, call, frequency group, and the share of each view.

        Without calibration `calibrated`, `threshold` and `positive` are empty; so are shares where `shares` raises.
        """
        calibrated, thresholds = self.calibrated, self.thresholds
        frame = pd.DataFrame({"class": self.classes, "probability": self.probabilities})
        frame["calibrated"] = np.nan if calibrated is None else calibrated
        frame["threshold"] = np.nan if thresholds is None else thresholds
        frame["positive"] = None if calibrated is None else calibrated > self.thresholds
        frame["frequency"] = [self.parts.frequency.get(name, "") for name in self.classes]
        try:
            shares = self.shares()
        except InputError:
            shares = np.full((len(self.classes), len(self.views)), np.nan)
        for v, view in enumerate(self.views):
            frame[f"share {v + 1} {view.view}"] = shares[:, v]
        return frame

    def shares(self) -> Float64[np.ndarray, "C V"]:
        """What each view adds to each logit (Shapley, `fusion.shapley`), in log odds.

        Over the views they sum to the plain logit minus that of no view (`ModelParts.empty_logits`); averages over
        test-time passes and the normal gate are left out.

        Raises:
            InputError: The model folder has no validation logits to measure against.
        """
        empty, slots = self.parts.empty_logits(), self.parts.config.model.num_slots
        shares = shapley_shares(self.parts.fusion, self.maps, self.view_types, empty, slots)
        return np.ascontiguousarray(shares[np.argsort(self.order)].T)

    def plain_logits(self) -> Float32[np.ndarray, "C"]:
        """Those of one pass, without the normal gate; what `shares` explain."""
        with torch.inference_mode():
            return self.parts.fusion(*self._inputs())[0].float().cpu().numpy()

    def heat_maps(self, class_name: str) -> list[Float32[np.ndarray, "S S"]]:
        """Where the model looks for a class in each view, over `images`; larger is more.

        By the first method of `fusion.explain.heat_methods`: attention of an ML-Decoder, class maps of a linear or CSRA
        head (below 0: against the class), Grad-CAM for any other.

        Raises:
            InputError: No such class.
        """
        heat = self._heat(class_name)
        square = Preprocessing(size=self.parts.preprocessing.size)
        return list(to_pixels(heat, square, square.size, square.size).cpu().numpy())

    def save_heat_maps(self, folder: Path | str, class_names: Sequence[str]) -> list[Path]:
        """Write one picture per class, the views and below them the heat; their paths.

        Raises:
            InputError: No such class.
        """
        paths, table = [], {name: c for c, name in enumerate(self.classes)}
        for name in class_names:
            heat, (amounts,) = self.heat_maps(name), self._amounts(name)
            path = Path(folder) / f"{quote(name, safe=' ')}.png"
            draw_overlays(
                path,
                f"{name}, {heat_methods(self.parts.fusion)[0].replace('_', ' ')}",
                list(self.images),
                [f"{view.view} {v + 1}" for v, view in enumerate(self.views)],
                [heat],
                [f"{name}\np = {self.probabilities[table[name]]:.2f}"],
                [[f"{amount:.0%} of heat" for amount in amounts]],
            )
            paths.append(path)
        return paths

    def _heat(self, class_name: str) -> Float[Tensor, "V h w"]:
        """Heat per map position, in the given order."""
        if class_name not in self.classes:
            raise InputError(f"{class_name!r} is none of the classes {', '.join(self.classes)}")
        method, number = heat_methods(self.parts.fusion)[0], self.classes.index(class_name)
        heat = heat_maps(method, self.parts.fusion, *self._inputs(), [number])[0, 0]
        return heat[torch.from_numpy(np.argsort(self.order)).to(heat.device)]

    def _amounts(self, class_name: str) -> Float[Tensor, "1 V"]:
        """Share of the heat on each view; 0 where there is none at all."""
        amounts = view_shares(self._heat(class_name).clamp(min=0)[None, None])[0]
        return amounts / amounts.sum(dim=1, keepdim=True).clamp(min=1e-12)

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        slots = torch.from_numpy(slots_in_order(len(self.views), self.parts.config.model.num_slots))
        return self.maps[None], self.view_types[None], slots.to(self.maps.device)[None]
