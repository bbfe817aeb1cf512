"""The five views, and how MIMIC-CXR's spellings map onto them."""

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
