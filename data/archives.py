"""Which data sets hold the same images: their ids mean the same, those of any two others do not.

"17" of one hospital is not "17" of another, but image 00000013_005.png is the same in ChestX-ray14, in the RSNA
challenge and in CXR-LT 2026, and patient 10000032 is the same in MIMIC-CXR and in CXR-LT 2023.
"""

import re

import pandas as pd

# Archive -> how the names of its sources begin, in small letters and digits; the longest beginning decides
ARCHIVES: dict[str, tuple[str, ...]] = {
    "MIMIC-CXR": ("mimic", "cxrlt2023", "cxrlt2024", "cxrlt2026mimic"),
    "PadChest": ("padchest", "bimcv", "cxrlt2026"),
    "ChestX-ray14": ("nih", "chestxray14", "chestxray8", "cxr14", "cxr8", "prunecxrnih", "rsna", "cxrlt2026nih"),
    "VinDr-CXR": ("vindr", "vinbig"),
    "CheXpert": ("chexpert",),
    "BRAX": ("brax",),
}


def archive_of(source: str) -> str:
    """The archive whose ids a source of a manifest uses: one of `ARCHIVES`, else the source itself."""
    plain = re.sub("[^a-z0-9]", "", source.lower())
    found = [(len(start), name) for name, starts in ARCHIVES.items() for start in starts if plain.startswith(start)]
    return max(found, default=(0, source))[1]


def archives_of(sources: pd.Series) -> pd.Series:
    """The archive of each row's source."""
    return sources.map({source: archive_of(source) for source in sources.unique()})


def patient_names(patients: pd.Series, archives: pd.Series) -> pd.Series:
    """Patient ids in one spelling: ChestX-ray14's table says 13 where its images say 00000013."""
    numbers = (archives == "ChestX-ray14") & patients.str.fullmatch("[0-9]{1,8}")
    return patients.where(~numbers, patients.str.zfill(8))
