"""A random mix of all faults, by a fixed seed. Row 50; `./dev soak` is its long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import soak
from tests.support.tiers import Tier

pytestmark = pytest.mark.timeout(1800)


def test_row_50_whatever_fails_in_whatever_order_nothing_is_lost_or_doubled(tmp_path: Path, tier: Tier) -> None:
    outcome = soak.run(seed=20_261_121, runs=tier(60, 1000), faults=tier(6, 60), folder=tmp_path)
    assert outcome.accepted == outcome.ended
    assert outcome.accepted >= tier(60, 1000)
    assert outcome.effects > 0
