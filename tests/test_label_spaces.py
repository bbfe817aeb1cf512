"""Classes in official order and their groups, against the header lines and counts of the published tables."""

import pytest

from data import label_spaces as spaces
from tests.make_mimic import CHEXPERT_HEADER, CLASSES_5, CLASSES_26, CLASSES_40, CLASSES_2023

# header of labels.csv of CXR-LT 2024, all 45 classes
ALL_2024 = (
    "Adenopathy,Atelectasis,Azygos Lobe,Bulla,Calcification of the Aorta,Cardiomegaly,Cardiomyopathy,Clavicle Fracture,"
    "Consolidation,Edema,Emphysema,Enlarged Cardiomediastinum,Fibrosis,Fissure,Fracture,Granuloma,Hernia,Hilum,"
    "Hydropneumothorax,Infarction,Infiltration,Kyphosis,Lobar Atelectasis,Lung Lesion,Lung Opacity,Mass,Nodule,Normal,"
    "Osteopenia,Pleural Effusion,Pleural Other,Pleural Thickening,Pneumomediastinum,Pneumonia,Pneumoperitoneum,"
    "Pneumothorax,Pulmonary Embolism,Pulmonary Hypertension,Rib Fracture,Round(ed) Atelectasis,Scoliosis,"
    "Subcutaneous Emphysema,Support Devices,Tortuous Aorta,Tuberculosis"
)
CHEXPERT_FINDINGS = (
    "Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,"
    "Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
NIH_CXR_LT = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Effusion,Emphysema,Fibrosis,Hernia,Infiltration,Mass,Nodule,"
    "Pleural Thickening,Pneumonia,Pneumothorax,Pneumoperitoneum,Pneumomediastinum,Subcutaneous Emphysema,"
    "Tortuous Aorta,Calcification of the Aorta,No Finding"
)
TRAINING_2026 = (
    "Normal,aortic elongation,cardiomegaly,pleural effusion,Nodule,atelectasis,pleural thickening,aortic atheromatosis,"
    "Support Devices,alveolar pattern,fracture,Hernia,Emphysema,azygos lobe,Hydropneumothorax,Kyphosis,Mass,"
    "Pneumothorax,Subcutaneous Emphysema,pneumoperitoneo,vascular hilar enlargement,vertebral degenerative changes,"
    "hyperinflated lung,interstitial pattern,central venous catheter,hypoexpansion,bronchiectasis,"
    "hemidiaphragm elevation,sternotomy,calcified densities"
)


@pytest.mark.parametrize(
    ("classes", "header"),
    [
        (spaces.MIMIC_CXR_CLASSES, CHEXPERT_HEADER.removeprefix("subject_id,study_id,")),
        (spaces.CHEXPERT_CLASSES, f"No Finding,{CHEXPERT_FINDINGS}"),
        (spaces.NIH_CXR_LT_CLASSES, NIH_CXR_LT),
        (spaces.CXR_LT_2023_CLASSES, CLASSES_2023),
        (spaces.CXR_LT_2024_TASK_1_CLASSES, CLASSES_40),
        (spaces.CXR_LT_2024_TASK_2_CLASSES, CLASSES_26),
        (spaces.CXR_LT_2024_TASK_3_CLASSES, CLASSES_5),
        (spaces.CXR_LT_2026_CLASSES, TRAINING_2026),
        (spaces.CXR_LT_2026_UNSEEN_CLASSES, "Scoliosis,Osteopenia,Bulla,Infarction,Adenopathy,goiter"),
    ],
)
def test_classes_have_the_order_of_the_published_header(classes, header):
    assert ",".join(classes) == header


def test_the_years_fit_together():
    mimic, old = set(spaces.MIMIC_CXR_CLASSES), set(spaces.CXR_LT_2023_CLASSES)
    one, two = set(spaces.CXR_LT_2024_TASK_1_CLASSES), set(spaces.CXR_LT_2024_TASK_2_CLASSES)
    three = set(spaces.CXR_LT_2024_TASK_3_CLASSES)
    assert mimic < old
    assert len(old - mimic) == 12
    assert (old - two, two - old) == ({"No Finding"}, {"Normal"})
    assert two < one
    assert not one & three
    assert len(one | three) - len(two) == 19
    assert ALL_2024.split(",") == sorted(one | three)
    assert list(spaces.CXR_LT_2024_TASK_1_CLASSES) == sorted(one)
    place = spaces.CXR_LT_2024_TASK_2_CLASSES.index("Mass")
    assert spaces.CXR_LT_2024_TASK_2_CLASSES[place : place + 3] == ("Mass", "Normal", "Nodule")
    assert list(spaces.CXR_LT_2026_CLASSES) != sorted(spaces.CXR_LT_2026_CLASSES)


def test_the_older_sets_share_their_classes_with_the_challenges():
    """So that a model can be trained on one and go on with the other, by name."""
    assert set(spaces.CHEXPERT_CLASSES) == set(spaces.MIMIC_CXR_CLASSES)
    nih, long_tailed = set(spaces.NIH_CHEST_XRAY14_CLASSES), set(spaces.NIH_CXR_LT_CLASSES)
    assert nih - long_tailed == {"Pleural_Thickening"}
    assert len(long_tailed - nih) == 6
    assert long_tailed - set(spaces.CXR_LT_2023_CLASSES) == {"Effusion"}
    negatives_uncertain_and_blank = (201_033, 212_616, 196_414)  # of the first three of train.csv's classes
    for (_, positives), rest in zip(spaces.CHEXPERT_POSITIVES.items(), negatives_uncertain_and_blank, strict=False):
        assert positives + rest == spaces.CHEXPERT_TRAIN_IMAGES
    assert sum(spaces.NIH_CHEST_XRAY14_POSITIVES.values()) == 141_537  # 81,176 findings, 60,361 images without one


def test_published_splits_and_positives_add_up():
    from data.sources import cxr_lt_2024

    assert sum(spaces.CXR_LT_2024_POSITIVES.values()) == 633_025
    for task, test in ((1, 78_946), (3, 78_946)):
        images = cxr_lt_2024.challenge(task).images
        assert images == {"train": 258_871, "val": 39_293, "test": test}
        assert sum(images.values()) == 377_110
    assert cxr_lt_2024.challenge(2).images["test"] == 409
    assert spaces.CXR_LT_2024_POSITIVES["Normal"] == 34_292  # the winner's public code swaps these two
    assert spaces.CXR_LT_2024_POSITIVES["Nodule"] == 7_531


def test_groups_of_2024_follow_the_rule_and_those_of_2023_do_not():
    groups = spaces.CXR_LT_2024_TASK_1_GROUPS
    assert [list(groups.values()).count(part) for part in ("head", "medium", "tail")] == [9, 15, 16]
    head = {name for name, group in groups.items() if group == "head"}
    assert head == {
        *("Atelectasis", "Cardiomegaly", "Edema", "Enlarged Cardiomediastinum", "Lung Opacity", "Normal"),
        *("Pleural Effusion", "Pneumonia", "Support Devices"),
    }
    assert groups["Tortuous Aorta"] == "medium"  # 3,336 of 258,871
    assert groups["Lung Lesion"] == "tail"
    rule = spaces.frequency_groups(spaces.CXR_LT_2023_POSITIVES, spaces.CXR_LT_2023_TRAIN_IMAGES)
    differ = {name for name, group in rule.items() if group != spaces.CXR_LT_2023_GROUPS[name]}
    assert differ == {"Enlarged Cardiomediastinum", "Pleural Thickening", "Tortuous Aorta"}


def test_a_challenge_has_its_groups_whatever_the_order_of_its_classes_and_others_go_by_frequency():
    for groups in (spaces.CXR_LT_2023_GROUPS, spaces.CXR_LT_2024_TASK_1_GROUPS, spaces.CXR_LT_2024_TASK_2_GROUPS):
        assert spaces.class_groups(dict.fromkeys(reversed(groups), 5), 1000) == groups
    few = dict.fromkeys(spaces.MIMIC_CXR_CLASSES, 5)
    assert set(spaces.class_groups(few, 1000).values()) == {"tail"}
