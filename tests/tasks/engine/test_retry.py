"""Delays between attempts grow, spread and end at their cap."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.engine import retry
from tasks.registry import Input, RetryPolicy, TaskDefinition

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


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"attempts": 0}, "attempts must be 1 to 1000, not 0"),
        ({"attempts": 1001}, "attempts must be"),
        ({"base_seconds": -1}, "base_seconds must be 0 to"),
        ({"base_seconds": float("nan")}, "base_seconds must be 0 to"),
        ({"factor": 0.5}, "factor must be 1 to 100, not 0.5"),
        ({"factor": 1e300}, "factor must be"),
        ({"cap_seconds": float("inf")}, "cap_seconds must be 0 to"),
        ({"max_elapsed_seconds": -1}, "max_elapsed_seconds must be 0 to"),
        ({"attempts": "3"}, "attempts must be"),
        ({"by_error": {"ValueError": None}}, "by_error: 'ValueError' is no class of exceptions"),
        ({"by_error": {KeyboardInterrupt: None}}, "is no class of exceptions"),
        ({"by_error": {ValueError: RetryPolicy(max_elapsed_seconds=5)}}, "by_error: ValueError can't have"),
        ({"by_error": {ValueError: RetryPolicy(by_error={KeyError: None})}}, "by_error: ValueError can't have"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_when_it_is_made(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        RetryPolicy(**values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"priority": 10}, "f.t: priority must be 0 to 9, not 10"),
        ({"soft_seconds": 0}, "f.t: soft_seconds must be more than 0 and less than hard_seconds, 300, not 0"),
        ({"soft_seconds": 300}, "f.t: soft_seconds must be more than 0"),
        ({"soft_seconds": float("nan")}, "f.t: soft_seconds must be more than 0"),
        ({"hard_seconds": 10}, "f.t: soft_seconds must be more than 0 and less than hard_seconds, 10, not 240.0"),
        ({"hard_seconds": 90_000}, "f.t: hard_seconds must be 0 to 86400, not 90000"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused_when_it_is_defined(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        TaskDefinition("f.t", Input, "…", "q", **values)


def test_a_definition_can_be_a_key() -> None:
    policy = RetryPolicy(by_error={ValueError: None})
    assert {TaskDefinition("f.t", Input, "…", "q", retry=policy): 1}


def test_a_herd_of_failures_spreads() -> None:
    chance = random.Random(1)
    delays = [retry.delay_seconds(RetryPolicy(), 3, chance) for _ in range(1000)]
    assert 4 <= min(delays) < 4.1
    assert 7.9 < max(delays) <= 8
    assert len(set(delays)) == 1000
