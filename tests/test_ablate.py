"""The switches that ablations need, and the script that runs them: each cell differs from its reference as named."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from data.cache import FeatureCache
from data.manifest import read_manifest
from data.predictions import write_predictions
from extract.heads import HeadConfig
from fusion.config import FusionConfig, GroupingConfig
from fusion.grouping import UNKNOWN, GroupSet, evaluation_views, make_groups, training_views
from fusion.inference import predict_groups
from fusion.model import FusionModel, ModelConfig
from tests.make_data import CLASSES, make_cache, make_manifest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
NUM_SLOTS = 7


@pytest.fixture
def groups(tmp_path) -> GroupSet:
    manifest = make_manifest(tmp_path, num_studies=23, max_views=6)
    return make_groups(manifest, make_cache(tmp_path / "cache", manifest), GroupingConfig())


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_training_draws_at_most_so_many_views_and_all_of_them_over_the_epochs(groups, limit):
    config = GroupingConfig(max_views=limit, view_dropout=0.0)
    for g in range(len(groups)):
        counts = dict.fromkeys(groups.ordinals[g].tolist(), 0)
        for epoch in range(40):
            views = training_views(groups, g, config, NUM_SLOTS, 0, epoch)
            assert len(set(views.ordinals.tolist())) == len(views.ordinals) == min(limit, len(counts))
            assert views.ordinals.tolist() == [n for n in groups.ordinals[g] if n in views.ordinals]
            for ordinal in views.ordinals.tolist():
                counts[ordinal] += 1
        expected = 40 * min(1, limit / len(counts))
        assert all(0.4 * expected < n < 1.7 * expected for n in counts.values())
        assert len(evaluation_views(groups, g, NUM_SLOTS).ordinals) == len(counts), "test takes all"


def test_a_limit_that_nobody_reaches_and_no_limit_draw_the_same(groups):
    for g in range(len(groups)):
        plain, limited = (
            training_views(groups, g, GroupingConfig(view_dropout=0.4, max_views=limit), NUM_SLOTS, 3, 2)
            for limit in (0, 99)
        )
        assert all(np.array_equal(a, b) for a, b in zip(plain, limited, strict=True))


def test_without_shuffling_training_uses_the_slots_of_test_time(groups):
    config, drawn = GroupingConfig(shuffle=False, view_dropout=0.0), 0
    for g in range(len(groups)):
        slots = training_views(groups, g, config, NUM_SLOTS, 0, 5).slots
        assert slots.tolist() == evaluation_views(groups, g, NUM_SLOTS).slots.tolist()
        drawn += training_views(groups, g, GroupingConfig(view_dropout=0.0), NUM_SLOTS, 0, 5).slots.tolist() != [*slots]
    assert drawn > len(groups) / 2


def test_hidden_types_never_reach_the_model_and_one_slot_is_no_segment_embedding(tmp_path, groups):
    config = GroupingConfig(hide_types=True)
    for g in range(len(groups)):
        assert set(training_views(groups, g, config, 1, 0, 0).view_types) == {UNKNOWN}
        assert set(training_views(groups, g, config, 1, 0, 0).slots) == {0}
        assert set(evaluation_views(groups, g, 1, draw=2).slots) == {0}
    cache = FeatureCache(tmp_path / "cache")
    settings = ModelConfig(width=24, depth=1, num_heads=3, head=HeadConfig(width=18, num_heads=2))
    model = FusionModel(settings, (3, 2, 5), len(CLASSES)).eval()
    logits = {}
    for hide in (False, True):
        told = FusionConfig(batch_size=4, model=settings, grouping=GroupingConfig(hide_types=hide))
        for types in ("own", "unknown"):
            known = [np.full_like(t, UNKNOWN) if types == "unknown" else t for t in groups.view_types]
            parts = GroupSet(**{**vars(groups), "view_types": known})
            logits[hide, types] = predict_groups(told, parts, cache, model, Accelerator(cpu=True))
    np.testing.assert_array_equal(logits[True, "own"], logits[False, "unknown"])
    assert not np.array_equal(logits[False, "own"], logits[False, "unknown"])


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match=r"grouping\.max_views must be at least 1, or 0 for all, got -1"):
        GroupingConfig(max_views=-1)
