"""Spellings and codes of views, and the class groups."""

import pytest
from pydicom.sr._snomed_dict import mapping as SNOMED
from pydicom.sr.codedict import codes

from data.errors import InputError
from data.label_spaces import CXR_LT_2023_CLASSES, CXR_LT_2023_GROUPS, class_groups, frequency_groups
from data.views import (
    DICOM_VIEW_CODES,
    DICOM_VIEW_POSITIONS,
    VIEWS,
    view_of_chexpert,
    view_of_mimic,
    view_of_mimic_meaning,
    view_of_nih,
    view_of_padchest,
)

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


def test_every_projection_of_padchest_is_known_and_no_other():
    projections = ["PA", "AP", "AP_horizontal", "L", "COSTAL", "EXCLUDE", "UNK"]
    views = ["PA", "AP", "AP", "LATERAL", "OTHER", "OTHER", "UNKNOWN"]
    assert [view_of_padchest(text) for text in projections] == views
    for text in ("", "LL", "pa"):
        with pytest.raises(InputError, match="unknown Projection"):
            view_of_padchest(text)


def test_every_view_of_chexpert_and_nih_is_known_and_no_other():
    rows = {("Frontal", "AP"): 161_590, ("Frontal", "PA"): 29_420, ("Frontal", "LL"): 16, ("Frontal", "RL"): 1,
            ("Lateral", ""): 32_387}  # fmt: skip
    totals = dict.fromkeys(VIEWS, 0)
    for pair, count in rows.items():
        totals[view_of_chexpert(*pair)] += count
    assert totals == {"PA": 29_420, "AP": 161_590, "LATERAL": 32_387, "OTHER": 0, "UNKNOWN": 17}
    assert sum(totals.values()) == 223_414
    assert view_of_chexpert("Frontal", "") == "UNKNOWN"  # the test tables do not say which
    for pair in (("Lateral", "PA"), ("frontal", "PA"), ("", "")):
        with pytest.raises(InputError, match="unknown pair"):
            view_of_chexpert(*pair)
    assert [view_of_nih(text) for text in ("PA", "AP")] == ["PA", "AP"]
    for text in ("", "LL", "pa"):
        with pytest.raises(InputError, match="unknown View Position"):
            view_of_nih(text)


def test_the_view_codes_of_dicom_mean_what_pydicom_says():
    table = {code.value: code.meaning for code in (getattr(codes.cid4010, name) for name in codes.cid4010.dir())}
    older = {modern: old for old, modern in SNOMED["SRT"].items()}
    for code, view in DICOM_VIEW_CODES.items():
        if code not in table:
            assert code in {older.get(modern) for modern in table} | {"R-10214"}, code  # an older postero-anterior
            continue
        exact = {"postero-anterior": "PA", "antero-posterior": "AP", "lateral": "LATERAL"}
        expected = exact.get(table[code].removeprefix("left ").removeprefix("right "), "OTHER")
        assert view == expected, table[code]
        assert DICOM_VIEW_CODES[older[code]] == view
    assert "399033003" not in DICOM_VIEW_CODES  # frontal
    assert set(DICOM_VIEW_CODES.values()) | set(DICOM_VIEW_POSITIONS.values()) <= set(VIEWS)


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
