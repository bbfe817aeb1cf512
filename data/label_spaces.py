"""The classes of each data set and challenge in their official order, and their head, medium and tail groups.

Tables are always read by class name, never by position: CXR-LT 2024 has two orders, 2026 is not sorted. Numbers are the
positive training images of the release, with which a table on disk is compared as it is read.
"""

HEAD_SHARE = 0.10
MEDIUM_SHARE = 0.01


def frequency_groups(train_positives: dict[str, int], num_images: int) -> dict[str, str]:
    """Head, medium or tail for class lists without published groups, by the CXR-LT 2024 rule.

    Args:
        train_positives: Positive training images of each class.
        num_images: Training images, at least 1.

    Returns:
        "head" from 10 % of the images on, "medium" from 1 % on, else "tail".
    """
    assert num_images > 0, num_images
    shares = {name: positives / num_images for name, positives in train_positives.items()}
    return {
        name: "head" if share >= HEAD_SHARE else "medium" if share >= MEDIUM_SHARE else "tail"
        for name, share in shares.items()
    }


# MIMIC-CXR-JPG 2.0.0, the order of mimic-cxr-2.0.0-chexpert.csv.gz and -negbio.csv.gz. No published groups.
MIMIC_CXR_CLASSES: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)

# CheXpert v1.0, the order of train.csv, valid.csv and the test tables, with the positive images of train.csv (the
# CheXpert labeler's). The tables of CheXbert and CheXpert Plus have "No Finding" last. No published groups.
CHEXPERT_TRAIN_IMAGES = 223_414
CHEXPERT_POSITIVES: dict[str, int] = {
    "No Finding": 22_381,
    "Enlarged Cardiomediastinum": 10_798,
    "Cardiomegaly": 27_000,
    "Lung Opacity": 105_581,
    "Lung Lesion": 9_186,
    "Edema": 52_246,
    "Consolidation": 14_783,
    "Pneumonia": 6_039,
    "Atelectasis": 33_376,
    "Pneumothorax": 19_448,
    "Pleural Effusion": 86_187,
    "Pleural Other": 3_523,
    "Fracture": 9_040,
    "Support Devices": 116_001,
}
CHEXPERT_CLASSES: tuple[str, ...] = tuple(CHEXPERT_POSITIVES)

# NIH ChestX-ray14, spelled as in its table, in the order of its authors (Wang et al., CVPR 2017, and its extension to
# 14), then "No Finding"; positive images of Data_Entry_2017_v2020.csv. No published groups.
NIH_CHEST_XRAY14_IMAGES = 112_120
NIH_CHEST_XRAY14_POSITIVES: dict[str, int] = {
    "Atelectasis": 11_559,
    "Cardiomegaly": 2_776,
    "Effusion": 13_317,
    "Infiltration": 19_894,
    "Mass": 5_782,
    "Nodule": 6_331,
    "Pneumonia": 1_431,
    "Pneumothorax": 5_302,
    "Consolidation": 4_667,
    "Edema": 2_303,
    "Emphysema": 2_516,
    "Fibrosis": 1_686,
    "Pleural_Thickening": 3_385,
    "Hernia": 227,
    "No Finding": 60_361,
}
NIH_CHEST_XRAY14_CLASSES: tuple[str, ...] = tuple(NIH_CHEST_XRAY14_POSITIVES)

# NIH-CXR-LT (Holste et al., MICCAI 2023): 20 classes in the order of its tables, "Pleural Thickening" with a blank.
NIH_CXR_LT_CLASSES: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural Thickening",
    "Pneumonia",
    "Pneumothorax",
    "Pneumoperitoneum",
    "Pneumomediastinum",
    "Subcutaneous Emphysema",
    "Tortuous Aorta",
    "Calcification of the Aorta",
    "No Finding",
)

# CXR-LT 2023, order of the CSV and of the submission; positives and groups as the winning entry counts and scores them
# (CheXFusion, arXiv 2308.03968, public code). The groups are not a plain rule of frequency: Enlarged Cardiomediastinum
# (11.4 %) is medium, Tortuous Aorta (1.32 %) is tail.
CXR_LT_2023_TRAIN_IMAGES = 264_849
_CXR_LT_2023: dict[str, tuple[int, str]] = {
    "Atelectasis": (67_597, "head"),
    "Calcification of the Aorta": (4_361, "medium"),
    "Cardiomegaly": (76_900, "head"),
    "Consolidation": (16_038, "medium"),
    "Edema": (38_574, "head"),
    "Emphysema": (4_255, "medium"),
    "Enlarged Cardiomediastinum": (30_119, "medium"),
    "Fibrosis": (1_158, "tail"),
    "Fracture": (11_883, "medium"),
    "Hernia": (4_049, "medium"),
    "Infiltration": (10_218, "medium"),
    "Lung Lesion": (2_533, "tail"),
    "Lung Opacity": (79_931, "head"),
    "Mass": (5_529, "medium"),
    "No Finding": (41_869, "head"),
    "Nodule": (7_663, "medium"),
    "Pleural Effusion": (69_240, "head"),
    "Pleural Other": (675, "tail"),
    "Pleural Thickening": (3_369, "tail"),
    "Pneumomediastinum": (788, "tail"),
    "Pneumonia": (48_093, "head"),
    "Pneumoperitoneum": (543, "tail"),
    "Pneumothorax": (14_983, "medium"),
    "Subcutaneous Emphysema": (2_453, "tail"),
    "Support Devices": (89_140, "head"),
    "Tortuous Aorta": (3_499, "tail"),
}
CXR_LT_2023_CLASSES: tuple[str, ...] = tuple(_CXR_LT_2023)
CXR_LT_2023_POSITIVES: dict[str, int] = {name: positives for name, (positives, _) in _CXR_LT_2023.items()}
CXR_LT_2023_GROUPS: dict[str, str] = {name: group for name, (_, group) in _CXR_LT_2023.items()}

# CXR-LT 2024 task 1: 40 classes in the order of train_labeled.csv, alphabetical. 2023's "No Finding" is "Normal" here.
CXR_LT_2024_TRAIN_IMAGES = 258_871
CXR_LT_2024_POSITIVES: dict[str, int] = {
    "Adenopathy": 3_409,
    "Atelectasis": 65_376,
    "Azygos Lobe": 199,
    "Calcification of the Aorta": 4_239,
    "Cardiomegaly": 74_738,
    "Clavicle Fracture": 168,
    "Consolidation": 15_371,
    "Edema": 37_256,
    "Emphysema": 3_661,
    "Enlarged Cardiomediastinum": 29_628,
    "Fibrosis": 1_169,
    "Fissure": 2_803,
    "Fracture": 11_568,
    "Granuloma": 2_965,
    "Hernia": 3_986,
    "Hydropneumothorax": 646,
    "Infarction": 727,
    "Infiltration": 10_087,
    "Kyphosis": 778,
    "Lobar Atelectasis": 129,
    "Lung Lesion": 2_338,
    "Lung Opacity": 77_482,
    "Mass": 5_288,
    "Nodule": 7_531,
    "Normal": 34_292,
    "Pleural Effusion": 66_401,
    "Pleural Other": 616,
    "Pleural Thickening": 3_272,
    "Pneumomediastinum": 704,
    "Pneumonia": 46_660,
    "Pneumoperitoneum": 516,
    "Pneumothorax": 13_858,
    "Pulmonary Embolism": 1_631,
    "Pulmonary Hypertension": 903,
    "Rib Fracture": 8_919,
    "Round(ed) Atelectasis": 172,
    "Subcutaneous Emphysema": 2_046,
    "Support Devices": 86_079,
    "Tortuous Aorta": 3_336,
    "Tuberculosis": 2_078,
}
CXR_LT_2024_TASK_1_CLASSES: tuple[str, ...] = tuple(CXR_LT_2024_POSITIVES)

# Task 2: 2023's 26 in 2023's order with "Normal" in the slot of "No Finding", so Mass, Normal, Nodule (not sorted).
CXR_LT_2024_TASK_2_CLASSES: tuple[str, ...] = tuple(
    "Normal" if name == "No Finding" else name for name in CXR_LT_2023_CLASSES
)

# Task 3: five classes that train_labeled.csv does not have (zero-shot).
CXR_LT_2024_TASK_3_CLASSES: tuple[str, ...] = ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis")

# Groups of both tasks by the rule, from task 1's training positives: 9 head, 15 medium, 16 tail. Task 2 trains on the
# same table. (The public code of task 1's winner groups differently, and swaps the counts of Nodule and Normal.)
CXR_LT_2024_TASK_1_GROUPS: dict[str, str] = frequency_groups(CXR_LT_2024_POSITIVES, CXR_LT_2024_TRAIN_IMAGES)
CXR_LT_2024_TASK_2_GROUPS: dict[str, str] = {
    name: CXR_LT_2024_TASK_1_GROUPS[name] for name in CXR_LT_2024_TASK_2_CLASSES
}

# CXR-LT 2026 (PadChest names, mixed case), the order of Train_CLASS.txt and of the submission. Groups and counts are
# not published; six more classes are task 2's, without training labels.
CXR_LT_2026_CLASSES: tuple[str, ...] = (
    "Normal",
    "aortic elongation",
    "cardiomegaly",
    "pleural effusion",
    "Nodule",
    "atelectasis",
    "pleural thickening",
    "aortic atheromatosis",
    "Support Devices",
    "alveolar pattern",
    "fracture",
    "Hernia",
    "Emphysema",
    "azygos lobe",
    "Hydropneumothorax",
    "Kyphosis",
    "Mass",
    "Pneumothorax",
    "Subcutaneous Emphysema",
    "pneumoperitoneo",
    "vascular hilar enlargement",
    "vertebral degenerative changes",
    "hyperinflated lung",
    "interstitial pattern",
    "central venous catheter",
    "hypoexpansion",
    "bronchiectasis",
    "hemidiaphragm elevation",
    "sternotomy",
    "calcified densities",
)
CXR_LT_2026_UNSEEN_CLASSES: tuple[str, ...] = (
    "Scoliosis",
    "Osteopenia",
    "Bulla",
    "Infarction",
    "Adenopathy",
    "goiter",
)

# BRAX 1.1.0, the order of its description and of public code: CheXpert's but for Lung Lesion before Lung Opacity.
BRAX_CLASSES: tuple[str, ...] = tuple(
    (
        "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Lesion,Lung Opacity,Edema,Consolidation,Pneumonia,"
        "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
    ).split(",")
)

# RSNA Pneumonia Detection 2018: `class` of stage_2_detailed_class_info.csv. Its third value, "No Lung Opacity / Not
# Normal", is 0 in both.
RSNA_CLASSES: tuple[str, ...] = ("Lung Opacity", "Normal")

# VinDr-CXR 1.0.0, the order of image_labels_train.csv: 22 findings that readers drew boxes for, 6 impressions. The test
# table says "Other disease".
VINDR_CLASSES: tuple[str, ...] = tuple(
    (
        "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
        "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,"
        "Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,"
        "Pneumonia,Tuberculosis,Other diseases,No finding"
    ).split(",")
)

# VinBigData (Kaggle 2021), by class_id 0 to 14: VinDr's training images with 14 of its findings.
VINBIGDATA_CLASSES: tuple[str, ...] = tuple(
    (
        "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Consolidation,ILD,Infiltration,Lung Opacity,"
        "Nodule/Mass,Other lesion,Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary fibrosis,No finding"
    ).split(",")
)

PUBLISHED_GROUPS = (CXR_LT_2023_GROUPS, CXR_LT_2024_TASK_1_GROUPS, CXR_LT_2024_TASK_2_GROUPS)


def class_groups(train_positives: dict[str, int], num_images: int) -> dict[str, str]:
    """Head, medium or tail of each class: a challenge's groups where the classes are its own, else by frequency.

    Args and result as in `frequency_groups`.
    """
    for groups in PUBLISHED_GROUPS:
        if set(groups) == set(train_positives):
            return {name: groups[name] for name in train_positives}
    return frequency_groups(train_positives, max(num_images, 1))
