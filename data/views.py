"""The five views, and how the spellings and codes of data sets and DICOM headers map onto them."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from data.errors import InputError

VIEWS = ("PA", "AP", "LATERAL", "OTHER", "UNKNOWN")

# All values that occur in MIMIC-CXR 2.0.0, (0018,5101) View Position; RPO and L5 S1 only in its authors' notebook, RL
# is DICOM's right lateral. As in that notebook, decubitus, axial and cross-table views are neither frontal nor lateral.
MIMIC_VIEW_POSITIONS = {
    "": "UNKNOWN",
    "PA": "PA",
    "AP": "AP",
    "LATERAL": "LATERAL",
    "LL": "LATERAL",
    "RL": "LATERAL",
    **dict.fromkeys(("PA LLD", "PA RLD", "AP LLD", "AP RLD", "AP AXIAL", "XTABLE LATERAL", "SWIMMERS"), "OTHER"),
    **dict.fromkeys(("LAO", "RAO", "LPO", "RPO", "L5 S1"), "OTHER"),
}

# (0054,0220) View Code Sequence, Code Meaning
MIMIC_VIEW_MEANINGS = {
    "": "UNKNOWN",
    "postero-anterior": "PA",
    "antero-posterior": "AP",
    "lateral": "LATERAL",
    "left lateral": "LATERAL",
    "right lateral": "LATERAL",
}

# `Projection` of the PadChest table, all seven values: PadChest's authors assigned it, by hand or by a network, because
# the header's View Position is free text there. AP_horizontal is lying, COSTAL shows ribs, EXCLUDE is no chest image.
PADCHEST_PROJECTIONS = {
    "PA": "PA",
    "AP": "AP",
    "AP_horizontal": "AP",
    "L": "LATERAL",
    "COSTAL": "OTHER",
    "EXCLUDE": "OTHER",
    "UNK": "UNKNOWN",
}

# `Frontal/Lateral` and `AP/PA` of the CheXpert tables, all pairs that occur. 17 rows say both Frontal and LL or RL
# (left, right lateral): one of the two is wrong. Test tables have neither column, only files named frontal or lateral.
CHEXPERT_VIEWS = {
    ("Frontal", "PA"): "PA",
    ("Frontal", "AP"): "AP",
    ("Frontal", "LL"): "UNKNOWN",
    ("Frontal", "RL"): "UNKNOWN",
    ("Frontal", ""): "UNKNOWN",
    ("Lateral", ""): "LATERAL",
}

# `View Position` of the NIH ChestX-ray14 table: it has no lateral views.
NIH_VIEW_POSITIONS = {"PA": "PA", "AP": "AP"}

# `ViewPosition` of the BRAX table: the values that occur (public code that lists them all), then those that its
# description names beside them. Decubitus and oblique views are neither frontal nor lateral.
BRAX_VIEW_POSITIONS = {
    "": "UNKNOWN",
    "PA": "PA",
    "AP": "AP",
    **dict.fromkeys(("L", "RL", "LL"), "LATERAL"),
    **dict.fromkeys(("AP LLD", "LT-DECUB", "RLO", "RLD", "LLD", "LLO"), "OTHER"),
}

# (0018,5101) View Position: the defined terms of DICOM PS3.3 C.8.1.2 (CR Series) and what equipment writes beside them.
DICOM_VIEW_POSITIONS = {
    "PA": "PA",
    "AP": "AP",
    **dict.fromkeys(("POSTEROANTERIOR", "POSTERO_ANTERIOR"), "PA"),
    **dict.fromkeys(("ANTEROPOSTERIOR", "ANTERO_POSTERIOR"), "AP"),
    **dict.fromkeys(("LL", "RL", "LATERAL", "LAT", "LLAT", "RLAT"), "LATERAL"),
    **dict.fromkeys(("LLD", "RLD", "LLO", "RLO", "LPO", "RPO", "LAO", "RAO"), "OTHER"),
}

# (0054,0220) View Code Sequence, Code Value: DICOM PS3.16 CID 4010 "DX View" in SNOMED CT, and in the SNOMED RT codes
# that older files use. "Frontal" (399033003, R-10202) leaves open which of the two it is, so it is not listed.
DICOM_VIEW_CODES = {
    **dict.fromkeys(("272479007", "R-40888", "R-10214"), "PA"),
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("399067008", "R-102CD", "399173006", "R-10236", "399198007", "R-10232"), "LATERAL"),
    # obliques: antero-posterior, postero-anterior, frontal, lateral, left, right, and of either side either way
    **dict.fromkeys(("399312000", "R-10208", "399059000", "R-10216", "399160007", "R-10204"), "OTHER"),
    **dict.fromkeys(("260427002", "R-40783", "399184004", "R-10238", "399236003", "R-10234"), "OTHER"),
    **dict.fromkeys(("399135007", "R-10220", "399006002", "R-10212"), "OTHER"),
    **dict.fromkeys(("399356000", "R-40985", "399038007", "R-10210", "399182000", "R-102C1"), "OTHER"),
    **dict.fromkeys(("399061009", "R-10241", "399110001", "R-102C2"), "OTHER"),  # axial (lordotic), tangential
}


def views_of(column: pd.Series, view_of: Callable[[str], str], where: str) -> pd.Series:
    """View of each text of a column, by one of the functions below.

    Args:
        where: The table, to name in an error.

    Raises:
        InputError: A text that the data set does not have, named with its row.
    """
    views = {}
    for text in column.unique():
        try:
            views[text] = view_of(text)
        except InputError as error:
            row = int(np.argmax(column == text))
            raise InputError(f"{where}, row {row + 2}, column '{column.name}': {error}") from None
    return column.map(views)


def view_of_mimic(view_position: str) -> str:
    """View of a MIMIC `ViewPosition`; blank is UNKNOWN.

    Raises:
        InputError: A spelling that MIMIC-CXR does not have.
    """
    view = MIMIC_VIEW_POSITIONS.get(view_position.strip().upper())
    if view is None:
        raise InputError(f"unknown ViewPosition '{view_position}'; known are {', '.join(MIMIC_VIEW_POSITIONS)[2:]}")
    return view


def view_of_mimic_meaning(code_meaning: str) -> str:
    """View of a MIMIC `ViewCodeSequence_CodeMeaning`; blank is UNKNOWN.

    Any other text names some view (an oblique, say), so it is OTHER: the list of these texts is not published.
    """
    return MIMIC_VIEW_MEANINGS.get(code_meaning.strip().lower(), "OTHER")


def view_of_padchest(projection: str) -> str:
    """View of a PadChest `Projection`.

    Raises:
        InputError: A value that PadChest does not have.
    """
    view = PADCHEST_PROJECTIONS.get(projection)
    if view is None:
        raise InputError(f"unknown Projection '{projection}'; known are {', '.join(PADCHEST_PROJECTIONS)}")
    return view


def view_of_chexpert(side: str, projection: str) -> str:
    """View of CheXpert's `Frontal/Lateral` and `AP/PA`.

    Raises:
        InputError: A pair that CheXpert does not have.
    """
    view = CHEXPERT_VIEWS.get((side, projection))
    if view is None:
        known = ", ".join(" ".join(pair).strip() for pair in CHEXPERT_VIEWS)
        raise InputError(f"unknown pair Frontal/Lateral '{side}' and AP/PA '{projection}'; known are {known}")
    return view


def view_of_nih(view_position: str) -> str:
    """View of an NIH ChestX-ray14 `View Position`.

    Raises:
        InputError: A value that the table does not have.
    """
    view = NIH_VIEW_POSITIONS.get(view_position)
    if view is None:
        raise InputError(f"unknown View Position '{view_position}'; known are {', '.join(NIH_VIEW_POSITIONS)}")
    return view


def view_of_brax(view_position: str) -> str:
    """View of a BRAX `ViewPosition`; blank is UNKNOWN.

    Raises:
        InputError: A value that BRAX is not known to have.
    """
    view = BRAX_VIEW_POSITIONS.get(view_position.strip())
    if view is None:
        raise InputError(f"unknown ViewPosition '{view_position}'; known are {', '.join(BRAX_VIEW_POSITIONS)[2:]}")
    return view


def view_of_dicom(position: str, code: str, meaning: str, orientation: str) -> str:
    """View of a DICOM radiograph from whatever its header says about it; UNKNOWN where it says nothing we know.

    In this order: what was written for people to see (View Position), the code, the code's meaning, and last where the
    rows and columns of the image point in the body.

    Args:
        position: (0018,5101) View Position.
        code: Code Value (0008,0100) of the first item of (0054,0220) View Code Sequence.
        meaning: Code Meaning (0008,0104) of that item.
        orientation: (0020,0020) Patient Orientation, its two values joined, as LF for left and feet.
    """
    told = DICOM_VIEW_POSITIONS.get(position.strip().upper()) or DICOM_VIEW_CODES.get(code.strip().upper())
    if told is None and meaning.strip():
        told = MIMIC_VIEW_MEANINGS.get(meaning.strip().lower())
    return told or _view_of_orientation(orientation)


def _view_of_orientation(letters: str) -> str:
    """DICOM PS3.3 C.7.6.1.1.1: A anterior, P posterior, L left, R right, H head, F feet; most prominent first."""
    directions = set(letters.upper())
    if not directions or not directions <= set("APLRHF"):
        return "UNKNOWN"
    depth, width = directions & set("AP"), directions & set("LR")
    if depth and width:
        return "OTHER"  # oblique, or seen from above
    return "LATERAL" if depth else "UNKNOWN"  # a frontal picture looks the same from the front and from the back
