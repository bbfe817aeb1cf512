"""Parts of the test set that are scored by themselves: number of views, view type, source, sex, age band.

Everything shown of a person is one of a few fixed words; an age is shown as a band of 20 years.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int

from data.errors import InputError
from data.tables import read_table

NUM_VIEWS, VIEW, SOURCE = "views in the group", "view", "source"
SEXES = {"f": "female", "female": "female", "m": "male", "male": "male"}
BANDS = ("0-19", "20-39", "40-59", "60-79", "80 or more")
OLDEST = 130
UNKNOWN, SEVERAL = "unknown", "several"


@dataclass(frozen=True)
class About:
    """Sex and age band by the id of an image, a study or a patient."""

    key: str
    """"image_id", "study_id" or "patient_id"."""
    values: dict[str, dict[str, str]]
    """"sex" and "age" (what the table has) to id to one of our words."""

    def of(self, images: pd.DataFrame, factor: str) -> np.ndarray:
        """Each image's value."""
        return np.array([self.values[factor].get(name, UNKNOWN) for name in images[self.key]], dtype=object)


def read_about(path: Path) -> About:
    """Read a table with one id column (of images, else studies, else patients) and `sex` or `age` (years), or both.

    The table that a manifest was prepared from will do: other columns are not looked at. Sex is F, M, female or male in
    any case; any other text, and an age that is no number, is "unknown".

    Raises:
        InputError: No id column, neither sex nor age, or one id with two values.
    """
    table = read_table(path)
    lower = {name.lower(): name for name in table.columns}
    key = next((name for name in ("image_id", "study_id", "patient_id") if name in table.columns), None)
    columns = [name for name in ("sex", "age") if name in lower]
    if key is None or not columns:
        raise InputError(
            f"{path}: wanted image_id, study_id or patient_id, and sex or age; found {list(table.columns)}"
        )
    values = {}
    for name in columns:
        words = table[lower[name]].map(sex_word if name == "sex" else age_band)
        pairs = pd.DataFrame({"id": table[key], "word": words}).drop_duplicates()
        twice = pairs["id"].duplicated()
        if twice.any():
            raise InputError(f"{path}: {key} {pairs['id'][twice].iloc[0]!r} has more than one {name}")
        values[name] = dict(zip(pairs["id"], pairs["word"], strict=True))
    return About(key, values)


def sex_word(text: str) -> str:
    """One of "female", "male", "unknown"."""
    return SEXES.get(text.strip().lower(), UNKNOWN)


def age_band(text: str) -> str:
    """The band of 20 years of an age in years, such as "64" or "064Y"."""
    try:
        years = float(text.strip().upper().removesuffix("Y"))
    except ValueError:
        return UNKNOWN
    return BANDS[min(int(years // 20), len(BANDS) - 1)] if 0 <= years <= OLDEST else UNKNOWN


def image_factors(images: pd.DataFrame, group_of: Int[np.ndarray, "N"], about: About | None) -> dict[str, np.ndarray]:
    """Each image's value of every factor.

    Args:
        group_of: Number of each image's group.
    """
    sizes = np.bincount(group_of)[group_of]
    factors = {
        NUM_VIEWS: np.array([str(n) if n < 4 else "4 or more" for n in sizes], dtype=object),
        VIEW: images["view"].to_numpy(dtype=object),
        SOURCE: images["source"].to_numpy(dtype=object),
    }
    if about is None:
        return factors
    return factors | {name: about.of(images, name) for name in about.values}


def group_factors(rows: list[np.ndarray], views: np.ndarray, factors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each group's value of every factor: what its images have in common, and which views it has.

    Args:
        rows: Images of each group.
        views: Of each image.
        factors: Of the images.
    """
    of_groups = {
        name: np.array([_common(column[members]) for members in rows], dtype=object)
        for name, column in factors.items()
        if name != VIEW
    }
    return of_groups | {VIEW: np.array([view_mix(set(views[members])) for members in rows], dtype=object)}


def view_mix(views: set[str]) -> str:
    """Which of the two directions a group shows."""
    frontal, lateral = bool(views & {"PA", "AP"}), "LATERAL" in views
    if frontal and lateral:
        return "frontal and lateral"
    return "frontal, no lateral" if frontal else "lateral, no frontal" if lateral else "neither known"


def _common(values: np.ndarray) -> str:
    return values[0] if (values == values[0]).all() else SEVERAL
