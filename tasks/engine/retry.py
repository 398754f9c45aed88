"""When a failed attempt is tried again."""

from __future__ import annotations

import random

from tasks.registry import RetryPolicy

_LONGEST_EXPONENT = 64


def after(policy: RetryPolicy, error: type[BaseException], attempt: int, most: int) -> float | None:
    """Seconds until the next attempt after one that failed with such an error; None where there is none.

    Args:
        attempt: the attempt that failed, from 1.
        most: how often the run may be tried in all.
    """
    fitting = policy.for_error(error)
    if fitting is None or attempt >= min(fitting.attempts, most):
        return None
    return delay_seconds(fitting, attempt)


def delay_seconds(policy: RetryPolicy, attempt: int, chance: random.Random | None = None) -> float:
    """Seconds until the next attempt: exponential, with equal jitter, so that a herd of failures spreads.

    Args:
        attempt: the attempt that failed, from 1.
        chance: where the jitter comes from.

    Source: M. Brooker, "Exponential Backoff and Jitter" (2015), the "equal jitter" form.
    """
    exponent = min(attempt - 1, _LONGEST_EXPONENT)
    full = min(policy.cap_seconds, policy.base_seconds * policy.factor**exponent)
    return full / 2 + (chance or random).uniform(0, full / 2)
