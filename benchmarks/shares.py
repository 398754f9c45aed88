"""Worker-seconds that tenants get by their weights, whatever their jobs' lengths and however many their keys."""

from __future__ import annotations

import asyncio
import time

from benchmarks import backlog, stacks
from benchmarks.stacks import Stack

_SECONDS = 60.0
_SETTLING_SECONDS = 5.0
_SLOTS = 2
_WEIGHTS = {"one": (1, 0.040), "two": (2, 0.010), "four": (4, 0.020)}
"""Tenant → its weight, and how long each of its jobs takes."""
_LENGTH = 0.010
_KEYS = 1000
_SHARES = """
SELECT t.slug, sum(r.worker_seconds)
FROM runs r JOIN tenants t ON t.id = r.tenant_id
WHERE r.state = 'SUCCEEDED' AND r.actor = %s AND r.finished_at BETWEEN to_timestamp(%s) AND to_timestamp(%s)
GROUP BY t.slug
"""


async def run(scale: float) -> dict[str, float]:
    """By how much tenants' shares of the workers' time differ from what is theirs, at most."""
    with stacks.start() as stack:
        keys = await asyncio.to_thread(_keys, stack, _SECONDS * scale)
        return keys | await asyncio.to_thread(_weights, stack, _SECONDS * scale)


def _keys(stack: Stack, seconds: float) -> dict[str, float]:
    """Two tenants of equal weight, of which one has a thousand keys."""
    plain, keyed = backlog.tenants(stack, "equal-", 2)
    amount = _enough(seconds, _LENGTH)
    for slug, keys in ((plain, 0), (keyed, _KEYS)):
        backlog.queue(stack, [slug], amount, "diagnostics.sleep", {"seconds": _LENGTH}, keys=keys, label="keys")
    shares = _shares(stack, "keys", seconds)
    return {"gain by 1,000 keys %": 100 * (shares[keyed] / 0.5 - 1)}


def _weights(stack: Stack, seconds: float) -> dict[str, float]:
    """Three tenants of different weights and lengths."""
    for slug, (weight, length) in _WEIGHTS.items():
        stack.command("tenant", "create", slug, "--family", "diagnostics")
        stack.command("limits", "set", "--tenant", slug, "--name", "share", "--weight", str(weight))
        args = {"seconds": length}
        backlog.queue(stack, [slug], _enough(seconds, length), "diagnostics.sleep", args, label="weights")
    shares = _shares(stack, "weights", seconds)
    whole = sum(weight for weight, _ in _WEIGHTS.values())
    off = {slug: 100 * (shares[slug] * whole / weight - 1) for slug, (weight, _) in _WEIGHTS.items()}
    return {
        **{
            f"weight {weight}, {length * 1e3:.0f} ms: off by %": off[slug]
            for slug, (weight, length) in _WEIGHTS.items()
        },
        "off by at most %": max(map(abs, off.values())),
    }


def _shares(stack: Stack, label: str, seconds: float) -> dict[str, float]:
    """Each tenant's part of the worker-seconds in a stretch of time in which all have work."""
    time.sleep(_SETTLING_SECONDS)
    [(began,)] = stack.rows("SELECT extract(epoch FROM clock_timestamp())::float8")
    time.sleep(seconds)
    found = dict(stack.rows(_SHARES, label, began, began + seconds))
    backlog.clear(stack)
    return {slug: taken / sum(found.values()) for slug, taken in found.items()}


def _enough(seconds: float, length: float) -> int:
    """As many jobs as all slots together could do, so that nobody runs out."""
    return int(_SLOTS * (seconds + _SETTLING_SECONDS) / length)
