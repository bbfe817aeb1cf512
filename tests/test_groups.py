"""Groups hold every image once, and their labels follow the stated rule."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.errors import InputError
from data.groups import group_images
from data.manifest import Manifest

VALUES = (0.0, 1.0, float("nan"))


def random_manifest(seed: int, num_images: int = 60, num_classes: int = 4, soft: bool = False) -> Manifest:
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, 9, num_images)
    studies = patients * 3 + rng.integers(0, 3, num_images)
    images = pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(num_images)],
            "study_id": [f"s{i}" for i in studies],
            "patient_id": [f"p{i}" for i in patients],
            "view": "PA",
            "path": "x.jpg",
            "split": "train",
            "source": "x",
        },
        dtype="str",
    )
    labels = rng.choice([*VALUES, 0.3, 0.6] if soft else VALUES, (num_images, num_classes)).astype(np.float32)
    return Manifest(images, labels, tuple("ABCDEFG"[:num_classes]), Path())


def slow_label(values: list[float]) -> float:
    """1 if any is 1, 0 if all known ones are 0, unknown if none is known; a fraction counts as itself."""
    known = [value for value in values if value == value]
    if not known:
        return float("nan")
    if 1.0 in known:
        return 1.0
    return 0.0 if all(value == 0 for value in known) else max(known)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("group_by", ["study", "patient"])
def test_labels_rows_and_conflicts_equal_a_slow_loop(group_by, soft):
    for seed in range(5):
        manifest = random_manifest(seed, soft=soft)
        groups = group_images(manifest, group_by, "any")
        ids = manifest.images[f"{group_by}_id"].tolist()
        assert groups.ids == list(dict.fromkeys(ids))
        conflicts = 0
        for g, name in enumerate(groups.ids):
            rows = [row for row, other in enumerate(ids) if other == name]
            assert groups.rows[g].tolist() == rows
            assert groups.patient_ids[g] == manifest.images["patient_id"][rows[0]]
            for c in range(len(manifest.classes)):
                values = manifest.labels[rows, c].tolist()
                np.testing.assert_equal(groups.labels[g, c].item(), slow_label(values))
                conflicts += len({value for value in values if value == value}) > 1
        assert groups.conflicts == conflicts > 0
        assert sorted(np.concatenate(groups.rows).tolist()) == list(range(len(manifest)))
        assert groups.labels.dtype == np.float32


@pytest.mark.parametrize(
    ("first", "second", "named"), [(0, 1, "0 and 1"), (1, np.nan, "1 and unknown"), (0.5, 0, "0 and 0.5")]
)
def test_a_study_with_two_labels_is_refused_by_name(first, second, named):
    manifest = random_manifest(0)
    agreed = manifest.labels.copy()
    groups = group_images(manifest, "study", "any")
    for rows, label in zip(groups.rows, groups.labels, strict=True):
        agreed[rows] = label
    agreeing = Manifest(manifest.images, agreed, manifest.classes, Path())
    assert group_images(agreeing, "study").conflicts == 0
    g = next(g for g, rows in enumerate(groups.rows) if len(rows) == 3)
    agreed[groups.rows[g], 2] = [first, first, second]
    with pytest.raises(InputError, match=rf"1 studies .* study_id {groups.ids[g]} in 'C' \({named}\)"):
        group_images(agreeing, "study")
    group_images(agreeing, "patient")


def test_unknown_for_all_images_of_a_study_is_agreement():
    manifest = random_manifest(0)
    unknown = Manifest(manifest.images, np.full_like(manifest.labels, np.nan), manifest.classes, Path())
    assert np.isnan(group_images(unknown, "study").labels).all()


def test_an_empty_split_has_no_groups():
    groups = group_images(random_manifest(0).of_split("val"), "study")
    assert (groups.ids, groups.rows, groups.labels.shape, groups.patient_ids) == ([], [], (0, 4), [])
