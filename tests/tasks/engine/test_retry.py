"""Delays between attempts grow, spread and end at their cap."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tasks.engine import retry
from tasks.registry import RetryPolicy

POLICIES = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 100),
    base_seconds=st.floats(0.01, 3600),
    factor=st.floats(1, 10),
    cap_seconds=st.floats(0.01, 86_400),
)


@given(POLICIES, st.integers(1, 10_000), st.integers())
def test_a_delay_is_at_least_half_of_the_full_one_and_never_over_the_cap(
    policy: RetryPolicy, attempt: int, seed: int
) -> None:
    full = min(policy.cap_seconds, policy.base_seconds * policy.factor ** min(attempt - 1, 64))
    delay = retry.delay_seconds(policy, attempt, random.Random(seed))
    assert full / 2 <= delay <= full <= policy.cap_seconds


@given(POLICIES, st.integers(1, 100))
def test_without_chance_a_later_attempt_never_waits_less(policy: RetryPolicy, attempt: int) -> None:
    class Even(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    first, second = (retry.delay_seconds(policy, number, Even()) for number in (attempt, attempt + 1))
    assert first <= second


def test_a_herd_of_failures_spreads() -> None:
    chance = random.Random(1)
    delays = [retry.delay_seconds(RetryPolicy(), 3, chance) for _ in range(1000)]
    assert 4 <= min(delays) < 4.1
    assert 7.9 < max(delays) <= 8
    assert len(set(delays)) == 1000
