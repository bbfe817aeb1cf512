"""What is known of the data sets behind a manifest: who may have them, how their labels were made.

A short account for a model card; the terms that come with the data are what counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from data.archives import archive_of

REPORTS = "found in radiology reports by a program, so wrong for some images"


@dataclass(frozen=True)
class DataSet:
    """Terms and labels of one data set."""

    title: str
    access: str
    labels: str
    free: bool = False
    """Whether what was learned from it may be given away without asking anybody."""


PHYSIONET = "credentialed PhysioNet users who signed its data use agreement"
OTHER = DataSet(
    "a data set that this software has no account of",
    "not recorded; ask those it comes from",
    "not recorded how they were made",
)
DATA_SETS = {  # names as in `data.archives`
    "phantom": DataSet(
        "a simulated chest phantom (no patient)", "everybody", "known from the simulation, with noise added", free=True
    ),
    "MIMIC-CXR": DataSet("MIMIC-CXR", PHYSIONET, REPORTS),
    "PadChest": DataSet(
        "PadChest",
        "users who signed BIMCV's agreement",
        "given by physicians to some reports, by a program to the rest",
    ),
    "CheXpert": DataSet("CheXpert", "users who signed Stanford's agreement", REPORTS),
    "VinDr-CXR": DataSet("VinDr-CXR", PHYSIONET, "drawn by radiologists on the images"),
    "BRAX": DataSet("BRAX", PHYSIONET, REPORTS),
    "ChestX-ray14": DataSet("NIH ChestX-ray14", "everybody", REPORTS, free=True),
    "rsna": DataSet(
        "RSNA Pneumonia Detection Challenge (images of NIH ChestX-ray14)",
        "everybody who accepts the challenge's rules, not for commerce",
        "drawn by radiologists on the images",
    ),
}


def data_sets_of(sources: Iterable[str]) -> list[DataSet]:
    """The data sets that the `source` column of a manifest speaks of, each once; of unknown ones no name is told."""
    names = ("rsna" if source == "rsna" else archive_of(source) for source in sorted(set(sources)))
    return list(dict.fromkeys(DATA_SETS.get(name, OTHER) for name in names))
