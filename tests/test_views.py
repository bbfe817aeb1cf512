"""MIMIC's spellings of views, and the class groups."""

import pytest

from data.errors import InputError
from data.label_spaces import CXR_LT_2023_CLASSES, CXR_LT_2023_GROUPS, class_groups, frequency_groups
from data.views import VIEWS, view_of_mimic, view_of_mimic_meaning

# Every value of MIMIC-CXR 2.0.0 with the number of its images; they sum to all images.
COUNTS = {
    "AP": 147_173, "PA": 96_161, "LATERAL": 82_853, "LL": 35_133, "": 15_769, "PA LLD": 4, "LAO": 3, "RAO": 3,
    "AP AXIAL": 2, "AP LLD": 2, "XTABLE LATERAL": 2, "AP RLD": 2, "SWIMMERS": 1, "PA RLD": 1, "LPO": 1,
}  # fmt: skip


def test_every_published_view_position_is_known():
    totals = dict.fromkeys(VIEWS, 0)
    for text, count in COUNTS.items():
        totals[view_of_mimic(text)] += count
    assert totals == {"PA": 96_161, "AP": 147_173, "LATERAL": 117_986, "OTHER": 21, "UNKNOWN": 15_769}
    assert sum(totals.values()) == 377_110


def test_case_and_spaces_of_a_view_do_not_matter_but_spellings_do():
    assert view_of_mimic(" ll ") == "LATERAL"
    for text in ("P A", "frontal", "NA", "AP,PA"):
        with pytest.raises(InputError, match=f"unknown ViewPosition '{text}'"):
            view_of_mimic(text)


def test_code_meanings():
    meanings = ["postero-anterior", "antero-posterior", "Lateral", "left lateral", "", "left anterior oblique"]
    assert [view_of_mimic_meaning(text) for text in meanings] == ["PA", "AP", "LATERAL", "LATERAL", "UNKNOWN", "OTHER"]


def test_the_26_classes_are_alphabetical_in_groups_of_8_10_and_8():
    assert list(CXR_LT_2023_CLASSES) == sorted(CXR_LT_2023_CLASSES)
    groups = list(CXR_LT_2023_GROUPS.values())
    assert [groups.count(name) for name in ("head", "medium", "tail")] == [8, 10, 8]


def test_frequency_groups_at_their_edges():
    positives = {"a": 100, "b": 99, "c": 10, "d": 9, "e": 0}
    expected = {"a": "head", "b": "medium", "c": "medium", "d": "tail", "e": "tail"}
    assert frequency_groups(positives, 1000) == expected
    assert class_groups(positives, 1000) == expected
    assert class_groups(dict.fromkeys(CXR_LT_2023_CLASSES, 5), 1000) == CXR_LT_2023_GROUPS
