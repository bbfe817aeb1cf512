"""Every damaged byte of a cache or a checkpoint is found and its file named."""

import pytest

from tests.faults.damage import WHOLE, damage_everything


@pytest.mark.parametrize("kind", WHOLE)
def test_every_flip_cut_and_zeroed_page_is_named_with_its_file(tmp_path, kind):
    counts = damage_everything(kind, tmp_path, flips=100, page=4096)  # every page: python scripts/prove.py
    assert counts["flip"] >= 95
    assert counts["cut"] >= 10  # at the start of each of five files, and behind their first byte
