"""Every number of the phantom that a result depends on, frozen with PHANTOM_VERSION."""

from typing import Literal

PHANTOM_VERSION = "1.0"

# Effective linear attenuation at about 120 kV (1/cm): a polychromatic beam hardens, so these are below the NIST values.
MU_SOFT, MU_BONE, MU_LUNG, MU_AIR = 0.20, 0.45, 0.05, 0.0
LUNG_GAIN = MU_SOFT - MU_LUNG  # what soft tissue adds where it displaces lung

# Beam geometry (cm). PA and lateral stand at a wall stand, AP lies on the detector under a portable unit.
SOURCE_DISTANCE = {"PA": 180.0, "AP": 100.0, "LATERAL": 180.0}
DETECTOR_GAP = {"PA": 2.5, "AP": 3.0, "LATERAL": 5.0}  # from the chest wall, with room for breasts and shoulders
DETECTOR_SIZE = {"PA": 42.0, "AP": 43.0, "LATERAL": 43.0}

# Detector. Scatter is a blurred share of the (capped) primary beam: more where no grid is used, and through a thicker
# body. Quanta are per cm^2 in the unattenuated beam.
SCATTER_SHARE = {"PA": 0.45, "AP": 0.50, "LATERAL": 0.65}
SCATTER_SIGMA, SCATTER_CAP = 4.0, 0.06  # cm; share of the open beam
QUANTA = {"PA": 8.0e5, "AP": 8.0e5, "LATERAL": 3.2e6}

# Superposed normal structure (muscle, skin folds, small vessels): a smooth random field over the tissue, its standard
# deviation in log units and its grain in cm, about the size of a finding. The floor of every contrast-to-noise ratio.
ANATOMICAL_FLOOR, ANATOMICAL_GRAIN = 0.04, 0.9

View = Literal["PA", "AP", "LATERAL"]
FRONTAL = ("PA", "AP")

# Which view kind shows which class: contrast-to-noise >= VISIBLE_CNR where True, below where False.
VISIBLE_CNR = 3.5
VISIBILITY: dict[str, dict[str, bool]] = {
    "Atelectasis": {"frontal": True, "lateral": True},
    "Cardiomegaly": {"frontal": True, "lateral": True},
    "Consolidation": {"frontal": False, "lateral": True},
    "Edema": {"frontal": True, "lateral": True},
    "Emphysema": {"frontal": True, "lateral": True},
    "Enlarged Cardiomediastinum": {"frontal": True, "lateral": False},
    "Fracture": {"frontal": False, "lateral": True},
    "Hernia": {"frontal": True, "lateral": True},
    "Lung Lesion": {"frontal": False, "lateral": True},
    "Nodule": {"frontal": True, "lateral": False},
    "Pleural Effusion": {"frontal": True, "lateral": True},
    "Pleural Thickening": {"frontal": True, "lateral": False},
    "Pneumothorax": {"frontal": True, "lateral": False},
    "Support Devices": {"frontal": True, "lateral": True},
    "Tortuous Aorta": {"frontal": True, "lateral": True},
}
DEVICES = ("electrode", "pacemaker", "tube")  # the bodies behind "Support Devices"; an electrode mimics a nodule

# A study's findings are independent given the patient's type. Columns: healthy, heart failure, lung disease, acute.
TYPE_SHARES = (0.31, 0.24, 0.21, 0.24)
RATES: dict[str, tuple[float, float, float, float]] = {
    "Cardiomegaly": (0.01, 0.72, 0.10, 0.16),
    "Pleural Effusion": (0.01, 0.56, 0.14, 0.42),
    "Atelectasis": (0.02, 0.26, 0.20, 0.40),
    "Edema": (0.00, 0.56, 0.04, 0.14),
    "Nodule": (0.04, 0.13, 0.40, 0.18),
    "Enlarged Cardiomediastinum": (0.03, 0.24, 0.16, 0.28),
    "Tortuous Aorta": (0.05, 0.30, 0.22, 0.18),
    "Consolidation": (0.01, 0.12, 0.15, 0.36),
    "Lung Lesion": (0.02, 0.08, 0.32, 0.18),
    "Pneumothorax": (0.01, 0.06, 0.24, 0.26),
    "Emphysema": (0.01, 0.04, 0.52, 0.04),
    "Pleural Thickening": (0.02, 0.11, 0.26, 0.13),
    "Fracture": (0.02, 0.07, 0.10, 0.26),
    "Hernia": (0.02, 0.14, 0.13, 0.12),
    "pacemaker": (0.00, 0.24, 0.05, 0.06),
    "tube": (0.00, 0.06, 0.04, 0.18),
    "electrode": (0.30, 0.30, 0.30, 0.30),  # the same for all: an electrode says nothing about the patient
}
CHRONIC = (
    "Cardiomegaly",
    "Emphysema",
    "Enlarged Cardiomediastinum",
    "Hernia",
    "Lung Lesion",
    "Nodule",
    "Pleural Thickening",
    "Tortuous Aorta",
    "pacemaker",
)  # drawn once per patient; the others once per study
MISSED_SHARE = 0.03  # of positive labels flipped to 0; as many negatives of the class are flipped to 1

# Studies per patient: geometric. Views per study and their kinds follow CXR-LT's training table.
MORE_STUDIES = 0.29
VIEW_SETS: dict[tuple[View, ...], float] = {
    ("AP",): 0.372,
    ("PA",): 0.057,
    ("LATERAL",): 0.017,
    ("PA", "LATERAL"): 0.352,
    ("AP", "LATERAL"): 0.052,
    ("AP", "AP"): 0.054,
    ("PA", "LATERAL", "LATERAL"): 0.040,
    ("PA", "PA", "LATERAL"): 0.027,
    ("AP", "AP", "LATERAL"): 0.012,
    ("AP", "AP", "AP"): 0.008,
    ("PA", "PA", "LATERAL", "LATERAL"): 0.006,
    ("AP", "PA", "LATERAL", "LATERAL"): 0.0025,
    ("PA", "PA", "LATERAL", "LATERAL", "LATERAL"): 0.0005,
}
LATERAL_AS_LL, BLANK_VIEW = 0.295, 0.041  # recorded ViewPosition: lateral written LL; not written at all
