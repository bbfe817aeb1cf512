"""Predictions joined to the manifest they were made from: by image_id, never by position.

Axes: **K** predicted images.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int

from data.errors import InputError
from data.manifest import Manifest


def rows_in_manifest(ids: pd.DataFrame, manifest: Manifest, predictions: Path) -> Int[np.ndarray, "K"]:
    """Row of the manifest of each predicted image.

    Args:
        ids: As `read_predictions` gives them.
        predictions: Their file, for messages.

    Raises:
        InputError: An image that the manifest does not have, or that belongs to another study or patient there.
    """
    known = {image_id: row for row, image_id in enumerate(manifest.images["image_id"])}
    places = np.array([known.get(image_id, -1) for image_id in ids["image_id"]])
    if (places < 0).any():
        row = int(np.argmax(places < 0))
        raise InputError(
            f"{predictions}, row {row + 2}: image_id {ids['image_id'].iloc[row]!r} is not in the manifest"
            f" ({(places < 0).sum()} such images); name the manifest that these predictions were made from"
        )
    for name in ("study_id", "patient_id"):
        wrong = ids[name].to_numpy() != manifest.images[name].iloc[places].to_numpy()
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{predictions}, row {row + 2}: {name} of image {ids['image_id'].iloc[row]!r} is"
                f" {ids[name].iloc[row]!r}, in the manifest {manifest.images[name].iloc[places[row]]!r}"
            )
    return places
