"""Label maps: every name exists, nothing is invented, and the rules against cases written by hand."""

from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.label_map_page import page
from data.label_maps import _OTHER_NAMES, APART, FINDINGS, KINDS, LISTS_ALL, NOTES, SPACES, WHOLE
from data.relabel import counterparts, relabel, space_of

NAN = float("nan")


def take(space: str, target: str, **labels: float) -> dict[str, float]:
    """One image with the labels given and 0 else, in the target's classes: those known."""
    classes = SPACES[space]
    row = np.array([[labels.get(name.replace(" ", "_").replace("/", "_"), 0.0) for name in classes]], dtype=np.float32)
    assert len(set(labels) - {name.replace(" ", "_").replace("/", "_") for name in classes}) == 0
    values = relabel(row, classes, space, target)[0]
    return {name: float(v) for name, v in zip(SPACES[target], values, strict=True) if not np.isnan(v)}


def test_every_name_used_exists_in_its_space():
    for space, names in _OTHER_NAMES.items():
        assert set(names) <= set(SPACES[space]), space
    findings = {finding for names in FINDINGS.values() for finding in names.values()}
    for finding, kinds in KINDS.items():
        assert {finding, *kinds} <= findings, finding
    assert set(NOTES) | set(APART) | set(WHOLE) <= findings
    assert not set(NOTES) & set(APART)
    assert set(LISTS_ALL) <= set(SPACES)
    for space, classes in SPACES.items():
        assert len(set(classes)) == len(classes)
        assert len(set(FINDINGS[space].values())) == len(classes), space  # two classes of a space are never the same


def test_names_that_are_alike_but_for_their_case_are_one_finding_unless_said_otherwise():
    apart = {("rsna", "Lung Opacity"), ("vinbigdata", "Other lesion"), ("cxr-lt-2026", "Support Devices")}
    alike: dict[str, set[str]] = {}
    for space, names in FINDINGS.items():
        for name, finding in names.items():
            if (space, name) not in apart:
                alike.setdefault(name.lower(), set()).add(finding)
    assert {name: found for name, found in alike.items() if len(found) > 1} == {}


def test_a_space_in_its_own_classes_is_itself():
    rng = np.random.default_rng(0)
    for space, classes in SPACES.items():
        labels = rng.choice([0, 1, 0.5, NAN], (4, len(classes))).astype(np.float32)
        order = rng.permutation(len(classes))
        turned = relabel(labels[:, order], [classes[n] for n in order], space, space)
        np.testing.assert_array_equal(turned, labels)


def test_published_maps_are_kept():
    """Those of CheXFusion's re-implementation for CheXpert, NIH and VinBigData (the latter's Nodule/Mass but for 1)."""
    nih = counterparts("nih", "cxr-lt-2023")
    assert nih["Pleural Effusion"] == (("Effusion",), ("Effusion",))
    assert nih["Pleural Thickening"] == (("Pleural_Thickening",), ("Pleural_Thickening",))
    assert {name for name, both in nih.items() if both.makes_1 == (name,)} == {
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Hernia", "Infiltration",
        "Mass", "No Finding", "Nodule", "Pneumonia", "Pneumothorax",
    }  # fmt: skip
    assert len(nih) == 15
    chexpert = counterparts("chexpert", "cxr-lt-2024")
    both_ways = {name: both.makes_1 for name, both in chexpert.items() if both.makes_1}
    assert both_ways == {("Normal" if name == "No Finding" else name): (name,) for name in SPACES["chexpert"]}
    vinbig = counterparts("vinbigdata", "cxr-lt-2023")
    assert {name: both.makes_1 for name, both in vinbig.items() if both.makes_1 != (name,)} == {
        "Fibrosis": ("Pulmonary fibrosis",),
        "No Finding": ("No finding",),
        "Pleural Effusion": ("Pleural effusion",),
        "Pleural Thickening": ("Pleural thickening",),
        "Nodule": (),
        "Mass": (),
    }
    used = {name for both in vinbig.values() for name in both.makes_0}
    assert set(SPACES["vinbigdata"]) - used == {"Aortic enlargement", "Calcification", "ILD", "Other lesion"}


def test_no_finding_is_normal_and_sets_no_finding_to_0():
    for space, name in (("nih", "No_Finding"), ("padchest", "normal"), ("vindr", "No_finding"), ("rsna", "Normal")):
        assert take(space, "cxr-lt-2023", **{name: 1})["No Finding"] == 1
        assert take(space, "cxr-lt-2024", **{name: 1})["Normal"] == 1
    assert take("rsna", "nih", Normal=1) == {"No Finding": 1, "Pneumonia": 0}


def test_a_joint_label_says_nothing_of_its_parts_but_that_both_are_absent():
    assert {"Nodule", "Mass"} & set(take("vindr", "nih", Nodule_Mass=1)) == set()
    absent = take("vindr", "nih")
    assert absent["Nodule"] == absent["Mass"] == 0
    assert take("nih", "vindr", Mass=1)["Nodule/Mass"] == take("nih", "vindr", Nodule=1)["Nodule/Mass"] == 1
    assert take("nih", "vindr")["Nodule/Mass"] == 0
    assert "Nodule/Mass" not in take("nih", "vindr", Mass=NAN)
    assert take("nih", "vindr", Mass=NAN, Nodule=1)["Nodule/Mass"] == 1


def test_a_kind_makes_its_finding_1_only_where_all_that_is_seen_is_listed():
    assert take("padchest", "cxr-lt-2023", rib_fracture=1)["Fracture"] == 1
    assert take("padchest", "cxr-lt-2023", callus_rib_fracture=1)["Fracture"] == 1  # a kind of a kind
    assert take("padchest", "cxr-lt-2023")["Fracture"] == 0
    assert take("padchest", "cxr-lt-2024", callus_rib_fracture=1)["Rib Fracture"] == 1
    assert take("padchest", "cxr-lt-2023", NSG_tube=1)["Support Devices"] == 1
    assert "Fracture" not in take("vindr", "cxr-lt-2023", Rib_fracture=1)
    assert "Fracture" not in take("vindr", "cxr-lt-2023")
    hydro = take("padchest", "nih", hydropneumothorax=1)
    assert hydro["Effusion"] == hydro["Pneumothorax"] == 1
    assert hydro["Pneumonia"] == 0


def test_the_absence_of_a_finding_is_the_absence_of_its_kinds():
    assert take("cxr-lt-2023", "vindr")["Rib fracture"] == 0
    assert "Rib fracture" not in take("cxr-lt-2023", "vindr", Fracture=1)
    assert "Rib fracture" not in take("cxr-lt-2023", "vindr", Fracture=NAN)
    assert take("cxr-lt-2024", "vindr", Fracture=0, Rib_Fracture=1)["Rib fracture"] == 1  # what a set says itself stays


def test_an_unknown_study_stays_unknown():
    for space, classes in SPACES.items():
        labels = np.full((2, len(classes)), np.nan, dtype=np.float32)
        for target in SPACES:
            assert np.isnan(relabel(labels, classes, space, target)).all()


def test_soft_labels_stay_soft():
    assert take("vindr", "nih", Pleural_effusion=0.25)["Effusion"] == 0.25
    assert "Nodule" not in take("vindr", "nih", Nodule_Mass=0.25)


def test_names_that_differ_in_meaning_are_unknown():
    assert "Lung Opacity" not in take("rsna", "chexpert", Lung_Opacity=1)
    assert take("rsna", "chexpert", Lung_Opacity=1)["Pneumonia"] == 1
    for target in SPACES:
        found = counterparts("vindr", target)
        for name in ("Aortic enlargement", "Calcification", "ILD", "Lung tumor", "Other diseases"):
            if target not in ("vindr", "vinbigdata"):
                assert all(name not in both.makes_0 for both in found.values()), (name, target)


def test_the_space_of_a_manifest_is_the_smallest_that_has_its_classes():
    for space, classes in SPACES.items():
        found = space_of(classes, "x")
        assert FINDINGS[found] == FINDINGS[space] or set(SPACES[found]) == set(classes), space
    assert space_of(("Normal", "Lung Opacity"), "x") == "rsna"
    assert space_of(("Edema", "Hernia"), "x") == "nih"
    with pytest.raises(InputError, match=r"x: its classes .* may be those of cxr-lt-2026 or of padchest"):
        space_of(("atelectasis", "cardiomegaly"), "x")
    with pytest.raises(InputError, match=r"x: its classes are from no label space .* the nearest, .*, lacks 'Edemas'"):
        space_of(("Edemas", "Hernia", "Mass"), "x")


def test_the_page_is_the_one_in_docs():
    path = Path(__file__).resolve().parents[1] / "docs" / "label_maps.md"
    assert path.read_text() == page(), "write it again: python scripts/label_maps.py"
