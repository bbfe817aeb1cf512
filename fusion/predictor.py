"""Studies that no manifest and no cache knows, predicted as val and test were: same files, same numbers.

Every step is the one that stage one and stage two take: the decoder, the preprocessing, the backbone under its
precision, the map rounded to the form in which the cache holds it, the canonical order of views, the slots, the passes
of the evaluation. A study is a forward pass of its own, so its numbers do not depend on what is predicted beside it.

**V** views, **C** classes, **S** side of the network's input, **K** pictures of an image (1 and the augmented ones).
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from data.errors import InputError
from data.images import ImageError, refuse
from data.storage import decode_maps, is_finite
from data.study_files import Rejected, StudyImage, find_images
from data.transforms import Preprocessing
from data.views import VIEWS
from extract.extraction import decoding_threads, stored_maps
from fusion.device import precision_on
from fusion.evaluation import average_logits, evaluation_passes, gate_logits
from fusion.grouping import UNKNOWN, fixed_slots
from fusion.joint_model import live_maps
from fusion.model_parts import ModelParts
from fusion.opened_image import Opened, open_image
from fusion.study_prediction import StudyPrediction

BATCH = 64  # images in one forward pass of the backbone
NUM_THREADS = 2
AHEAD = 3  # studies that are decoded while one is predicted


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a study."""

    group_id: str
    images: list[StudyImage]
    """All that were found, unreadable ones too."""
    prediction: StudyPrediction | None
    """Without a readable image there is none."""
    rejected: Rejected


class Predictor:
    """A trained model that takes image files; made by `fusion.predict.load_model`."""

    def __init__(self, parts: ModelParts, device: torch.device) -> None:
        self.parts, self.device = parts, device
        parts.fusion.to(device)
        parts.backbone.to(device)
        if not parts.joint or parts.stage_one.channels_last:
            parts.backbone.to(memory_format=torch.channels_last)
        self._backbone_precision, self._fusion_precision = precision_on(parts, device)

    @property
    def classes(self) -> tuple[str, ...]:
        """What it predicts."""
        return self.parts.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """From a decoded image to the network's input."""
        return self.parts.preprocessing

    def predict_study(self, files: Sequence[str | Path], views: Sequence[str | None] | None = None) -> StudyPrediction:
        """The prediction for files that are one examination (or one patient, where the model fuses these).

        Args:
            views: Of each file, one of `data.views.VIEWS`, or None where the DICOM header tells it or nobody knows.

        Raises:
            InputError: No file, a file that cannot be used, an unknown view, not one view per file.
        """
        assert not isinstance(files, str), "a list of files, not one name"
        told = [None] * len(files) if views is None else list(views)
        if not files:
            raise InputError("a study needs at least one image, got none")
        if len(told) != len(files):
            raise InputError(f"views: wanted one per file ({len(files)}), found {len(told)}")
        for view in told:
            if view is not None and view not in VIEWS:
                raise InputError(f"views: {view!r} is none of {', '.join(VIEWS)}")
        pairs = zip(files, told, strict=True)
        return self.fuse([open_image(self.parts, Path(file), str(file), view) for file, view in pairs])

    def predict(self, inputs: str | Path | Sequence[str | Path], key: Path | None = None) -> pd.DataFrame:
        """A row per study: study_id, patient_id, num_images (used), then the probability of each class.

        Files that cannot be used are left out; `table.attrs["rejected"]` names them with the reason. A model that fuses
        patients gives a row per patient, whose study_id is empty.

        Args:
            inputs: Files or folders, grouped into studies by `data.study_files`.
            key: Of the pseudonyms of DICOM identifiers.

        Raises:
            InputError: An input does not exist, or none of its files can be used.
        """
        given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
        images, rejected = find_images([Path(one) for one in given], key)
        by, rows = self.parts.config.grouping.by, []
        for one in self.outcomes(self.groups(images)):
            rejected += one.rejected
            if one.prediction is not None:
                first = one.images[0]
                ids = {"study_id": first.study_id if by == "study" else "", "patient_id": first.patient_id}
                values = dict(zip(self.classes, one.prediction.probabilities.tolist(), strict=True))
                rows.append(ids | {"num_images": len(one.prediction.views)} | values)
        if not rows:
            raise InputError(f"{given[0]}: {none_usable(rejected)}")
        table = pd.DataFrame(rows)
        table.attrs["rejected"] = sorted(rejected)
        return table

    def groups(self, images: Sequence[StudyImage]) -> dict[str, list[StudyImage]]:
        """Images by what the model fuses, a study or a patient, in the order given."""
        groups: dict[str, list[StudyImage]] = {}
        for image in images:
            group = image.study_id if self.parts.config.grouping.by == "study" else image.patient_id
            groups.setdefault(group, []).append(image)
        return groups

    def outcomes(self, groups: Mapping[str, list[StudyImage]], num_threads: int = NUM_THREADS) -> Iterator[Outcome]:
        """Every group in turn; while one is predicted, the next ones are decoded by `num_threads` threads."""
        todo, ahead = deque(groups.items()), deque[tuple[str, list[StudyImage], list[Future]]]()
        with decoding_threads(num_threads) as pool:
            while todo or ahead:
                while todo and len(ahead) < AHEAD:
                    group_id, images = todo.popleft()
                    ahead.append((group_id, images, self._submit(pool, images)))
                yield self._outcome(*ahead.popleft())

    def _submit(self, pool: ThreadPoolExecutor, images: list[StudyImage]) -> list[Future]:
        return [pool.submit(open_image, self.parts, image.path, image.name, image.view) for image in images]

    def _outcome(self, group_id: str, images: list[StudyImage], jobs: list[Future]) -> Outcome:
        opened, rejected = [], []
        for image, job in zip(images, jobs, strict=True):
            try:
                opened.append(job.result())
            except ImageError as error:
                rejected.append((image.name, error.reason))
        try:
            prediction = self.fuse(opened) if opened else None
        except ImageError as error:  # a map that no cache could hold
            return Outcome(group_id, images, None, [*rejected, *((one.view.name, error.reason) for one in opened)])
        return Outcome(group_id, images, prediction, rejected)

    @torch.inference_mode()
    def fuse(self, opened: Sequence[Opened]) -> StudyPrediction:
        """The prediction for decoded images.

        Raises:
            ImageError: An image whose map is not finite in the form of the cache.
        """
        types = np.array([VIEWS.index(one.view.view) for one in opened])
        order = np.lexsort([np.array([one.content for one in opened]), types])
        types = np.full_like(types, UNKNOWN) if self.parts.config.grouping.hide_types else types[order]
        pictures = torch.stack([opened[n].pictures for n in order])
        maps = [self._maps(pictures, variant, [opened[n].view.name for n in order]) for variant in self.parts.variants]
        passes = evaluation_passes(self.parts.evaluation, len(maps))
        view_types = torch.from_numpy(types).to(self.device)
        logits = average_logits([self._pass(maps[variant], view_types, draw) for variant, draw in passes])
        return StudyPrediction(
            parts=self.parts,
            views=tuple(one.view for one in opened),
            logits=gate_logits(logits, self.classes, self.parts.evaluation)[0],
            images=np.stack([one.pictures[0, 0].numpy() for one in opened]),
            maps=maps[0],
            order=order,
            view_types=view_types,
        )

    def _maps(
        self, pictures: Float[Tensor, "V K 1 S S"], variant: str, names: Sequence[str]
    ) -> Float[Tensor, "V H W D"]:
        """Maps as the fusion model gets them in training."""
        dtype = self.parts.fusion.slot_embedding.dtype
        if self.parts.joint:
            return torch.cat([self._live(part[:, 0], dtype) for part in pictures.split(BATCH)])
        parts, identity = self.parts, self.parts.identity
        stored = torch.cat(
            [
                stored_maps(
                    part.to(self.device),
                    variant,
                    parts.backbone,
                    parts.preprocessing,
                    identity,
                    self._backbone_precision,
                )
                for part in pictures.split(BATCH)
            ]
        )
        for name, payload in zip(names, stored.cpu().numpy(), strict=True):
            if not is_finite(payload, identity.dtype):
                refuse(name, "gives a feature map beyond float16's range, or NaN")
        return decode_maps(stored, identity.dtype, identity.map_shape).to(dtype)

    def _live(self, pictures: Float[Tensor, "V 1 S S"], dtype: torch.dtype) -> Float[Tensor, "V H W D"]:
        """Maps of a backbone that learned together with the fusion model."""
        layout = torch.channels_last if self.parts.stage_one.channels_last else torch.preserve_format
        pixels = self.preprocessing.normalised(pictures).to(self.device, dtype, memory_format=layout)
        with self._backbone_precision():
            return live_maps(self.parts.backbone, pixels, self.parts.identity.pool, dtype)

    def _pass(
        self, maps: Float[Tensor, "V H W D"], view_types: Int[Tensor, "V"], draw: int
    ) -> Float32[np.ndarray, "1 C"]:
        slots = torch.from_numpy(fixed_slots(len(maps), self.parts.config.model.num_slots, draw)).to(self.device)
        with self._fusion_precision():
            return self.parts.fusion(maps[None], view_types[None], slots[None]).float().cpu().numpy()


def none_usable(rejected: Rejected) -> str:
    """Why nothing can be predicted."""
    first = "; ".join(f"{name}: {reason}" for name, reason in rejected[:3])
    return f"no usable image: {first}" if first else "there are no files in it"
