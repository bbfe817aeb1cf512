"""What the classes of each data set and challenge mean in those of every other one.

Each class of a label space stands for a finding (`FINDINGS`); classes of two spaces with the same finding are the same
class. Some findings are kinds of another (`KINDS`). From these, `data.relabel` takes labels from any space to any
other:

- the same finding: the label as it is
- the finding is 0: its kinds are 0 too
- a kind is 1: says nothing in most sets. They do not name all kinds, so they could never say 0, and a class that a set
  only says 1 of would be learned as the look of that set. But where a set lists whatever a report sees (`LISTS_ALL`),
  or where the kinds are all there is (`WHOLE`), the finding is 1 if a kind is 1, and 0 if all are 0
- anything else: unknown

docs/label_maps.md is made from this file (scripts/label_maps.py).
"""

from data import label_spaces as spaces
from data.sources.padchest_labels import PADCHEST_CLASSES

SPACES: dict[str, tuple[str, ...]] = {
    "cxr-lt-2023": spaces.CXR_LT_2023_CLASSES,
    "cxr-lt-2024": spaces.CXR_LT_2024_TASK_1_CLASSES,
    "cxr-lt-2024-task-2": spaces.CXR_LT_2024_TASK_2_CLASSES,
    "cxr-lt-2024-task-3": spaces.CXR_LT_2024_TASK_3_CLASSES,
    "cxr-lt-2026": spaces.CXR_LT_2026_CLASSES,
    "cxr-lt-2026-task-2": spaces.CXR_LT_2026_UNSEEN_CLASSES,
    "mimic-cxr": spaces.MIMIC_CXR_CLASSES,
    "chexpert": spaces.CHEXPERT_CLASSES,
    "brax": spaces.BRAX_CLASSES,
    "nih": spaces.NIH_CHEST_XRAY14_CLASSES,
    "nih-cxr-lt": spaces.NIH_CXR_LT_CLASSES,
    "rsna": spaces.RSNA_CLASSES,
    "vindr": spaces.VINDR_CLASSES,
    "vinbigdata": spaces.VINBIGDATA_CLASSES,
    "padchest": PADCHEST_CLASSES,
}

LISTS_ALL = ("padchest",)
"""Spaces whose labels are lists of what a report sees: what is not in the list is 0."""

# Names in small letters are findings; the rest of each space's classes stands for itself, in small letters.
_OTHER_NAMES: dict[str, dict[str, str]] = {
    "cxr-lt-2024": {"Normal": "no finding", "Round(ed) Atelectasis": "round atelectasis"},
    "cxr-lt-2024-task-2": {"Normal": "no finding"},
    "cxr-lt-2026": {
        "Normal": "no finding",
        "aortic elongation": "tortuous aorta",
        "aortic atheromatosis": "calcification of the aorta",
        "Support Devices": "support devices of cxr-lt 2026",
        "pneumoperitoneo": "pneumoperitoneum",
    },
    "nih": {"Effusion": "pleural effusion", "Pleural_Thickening": "pleural thickening"},
    "nih-cxr-lt": {"Effusion": "pleural effusion"},
    "rsna": {"Lung Opacity": "pneumonia", "Normal": "no finding"},
    "vindr": {
        "Calcification": "lung calcification",
        "Enlarged PA": "pulmonary artery enlargement",
        "ILD": "interstitial lung disease",
        "Lung cavity": "cavitation",
        "Nodule/Mass": "nodule or mass",
        "Pulmonary fibrosis": "fibrosis",
    },
    "vinbigdata": {
        "Calcification": "lung calcification",
        "ILD": "interstitial lung disease",
        "Nodule/Mass": "nodule or mass",
        "Other lesion": "other lesion of vinbigdata",
        "Pulmonary fibrosis": "fibrosis",
    },
    "padchest": {
        "normal": "no finding",
        "COPD signs": "copd",
        "aortic atheromatosis": "calcification of the aorta",
        "aortic elongation": "tortuous aorta",
        "bullas": "bulla",
        "infiltrates": "infiltration",
        "pneumoperitoneo": "pneumoperitoneum",
        "pulmonary edema": "edema",
        "pulmonary fibrosis": "fibrosis",
    },
}

FINDINGS: dict[str, dict[str, str]] = {
    space: {name: _OTHER_NAMES.get(space, {}).get(name, name.lower()) for name in classes}
    for space, classes in SPACES.items()
}
"""Space -> class -> finding."""

KINDS: dict[str, tuple[str, ...]] = {
    "atelectasis": (
        "lobar atelectasis",
        "round atelectasis",
        "laminar atelectasis",
        "segmental atelectasis",
        "total atelectasis",
        "atelectasis basal",
    ),
    "calcified densities": (
        "calcified granuloma",
        "calcified adenopathy",
        "calcified mediastinal adenopathy",
        "calcified pleural thickening",
        "calcified pleural plaques",
        "calcified fibroadenoma",
        "heart valve calcified",
    ),
    "central venous catheter": (
        "central venous catheter via jugular vein",
        "central venous catheter via subclavian vein",
        "central venous catheter via umbilical vein",
        "reservoir central venous catheter",
    ),
    "fracture": ("rib fracture", "clavicle fracture", "humeral fracture", "vertebral fracture"),
    "granuloma": ("calcified granuloma",),
    "hernia": ("hiatal hernia",),
    "hypoexpansion": ("hypoexpansion basal",),
    "interstitial pattern": (
        "reticular interstitial pattern",
        "reticulonodular interstitial pattern",
        "ground glass pattern",
    ),
    "mass": ("pulmonary mass",),
    "nodule": ("multiple nodules",),
    "nodule or mass": ("nodule", "mass"),
    "pleural effusion": ("loculated pleural effusion", "loculated fissural effusion", "hydropneumothorax"),
    "pleural thickening": ("apical pleural thickening", "calcified pleural thickening"),
    "pneumonia": ("atypical pneumonia",),
    "pneumothorax": ("hydropneumothorax",),
    "pulmonary hypertension": ("pulmonary artery hypertension", "pulmonary venous hypertension"),
    "rib fracture": ("callus rib fracture",),
    "support devices": (
        "support devices of cxr-lt 2026",
        "central venous catheter",
        "catheter",
        "pacemaker",
        "single chamber device",
        "dual chamber device",
        "dai",
        "electrical device",
        "artificial heart valve",
        "artificial mitral heart valve",
        "artificial aortic heart valve",
        "aortic endoprosthesis",
        "endoprosthesis",
        "endotracheal tube",
        "tracheostomy tube",
        "nsg tube",
        "chest drain tube",
        "ventriculoperitoneal drain tube",
        "gastrostomy tube",
        "nephrostomy tube",
        "double j stent",
        "osteosynthesis material",
        "prosthesis",
        "humeral prosthesis",
    ),
    "tortuous aorta": ("ascendent aortic elongation", "descendent aortic elongation"),
}
"""Finding -> findings that are kinds of it."""

WHOLE = ("nodule or mass",)
"""Findings that are nothing but their kinds, so that all kinds being 0 makes them 0."""

NOTES: dict[str, str] = {
    "no finding": (
        "Means none of the set's own findings, which are 14 for NIH and some 190 for PadChest; support devices do not"
        " count in CheXpert, MIMIC-CXR, BRAX and CXR-LT. RSNA's Normal was said by radiologists, NIH's by a program."
        " Published joins take them for one class, and so is it done here; findings are not set to 0 by it."
    ),
    "pleural effusion": "NIH says Effusion. Hydropneumothorax is one, with air.",
    "infiltration": "NIH's box list says Infiltrate, PadChest infiltrates: an old word for opacities of any cause.",
    "fibrosis": "Of the lung. PadChest's fibrotic band is a scar and does not count.",
    "pneumonia": (
        "RSNA's Lung Opacity is an opacity that radiologists took for pneumonia, without clinical data. It is no Lung"
        " Opacity in CheXpert's sense, which atelectasis and masses are too."
    ),
    "lung opacity": (
        "CheXpert's and MIMIC-CXR's programs look for the word, not for what is one: consolidation does not make it 1."
        " VinDr's readers draw it; the same name is taken for the same class."
    ),
    "nodule or mass": "VinDr's readers do not tell the two apart: 1 leaves both unknown, 0 makes both 0.",
    "tortuous aorta": (
        "Spanish reports say elongation of the aorta for what English ones call tortuous or unfolded. Supra-aortic"
        " vessels do not count."
    ),
    "calcification of the aorta": "On a radiograph atheromatosis is seen by its calcium.",
    "hernia": "Nearly always hiatal.",
    "support devices": (
        "CheXpert counts lines, tubes, pacemakers, valves, drains and metal implants. PadChest's mammary prostheses,"
        " sutures and unspecified metal do not count."
    ),
    "support devices of cxr-lt 2026": (
        "Which of PadChest's devices went into it is not published, and central venous catheter is a class beside it."
    ),
    "fracture": "VinDr's readers name two kinds alone, so that 0 in both does not exclude one elsewhere.",
    "calcified densities": "Kinds as in PadChest's own tree; how CXR-LT 2026 merged them is not published.",
    "interstitial pattern": "A pattern, not VinDr's ILD, which is a disease.",
    "tuberculosis": "PadChest's tuberculosis sequelae does not count.",
    "emphysema": "Of the lung; subcutaneous emphysema is another class.",
    "edema": "Of the lung.",
    "mass": "PadChest's masses of breast, pleura, mediastinum and soft tissue do not count.",
    "copd": "An impression by VinDr's readers, signs in PadChest.",
    "cardiomegaly": "Enlarged Cardiomediastinum is another class, and not set by it: the programs do not either.",
}
"""Finding -> where names differ in meaning, or might be taken to."""

APART: dict[str, str] = {
    "lung lesion": (
        "CheXpert's word for nodules and masses; in CXR-LT 2023 it has a third of Nodule's images, so that it is not"
        " their union."
    ),
    "pleural other": "Whatever of the pleura has no class of its own; other sets divide it otherwise.",
    "enlarged cardiomediastinum": "PadChest's mediastinal enlargement leaves the heart out.",
    "fissure": "Whether thickened, displaced or only mentioned is not said.",
    "hilum": "Not said what of the hilum; PadChest names enlargement and congestion.",
    "aortic enlargement": "A wide aorta, not a tortuous one.",
    "lung calcification": "In the lung; neither of the aorta nor PadChest's calcified densities anywhere.",
    "interstitial lung disease": "A disease, where others name a pattern.",
    "lung cyst": "PadChest's cyst and bullas are not restricted to it, or something else.",
    "lung tumor": "An impression; nodules and masses have classes.",
    "other lesion": "Whatever has no class of its own.",
    "other lesion of vinbigdata": "Whatever has no class of its own, and cavities, cysts, fractures, ... too.",
    "other diseases": "Whatever has no class of its own.",
    "alveolar pattern": "A pattern; consolidation, edema and infiltration are readings of it.",
    "vascular hilar enlargement": "Wider than VinDr's Enlarged PA.",
    "cardiomyopathy": "A disease; a large heart is one of its signs.",
}
"""Findings that one set alone has although another has something near, and the reason."""
