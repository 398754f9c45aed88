"""How long quiet tenants wait behind others' backlogs, deep and broad, and what fairness costs in throughput."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import backlog, floors, stacks
from benchmarks.backlog import Drain
from benchmarks.stacks import Stack

_SECONDS = 0.005
_JOB: tuple[str, dict[str, Any]] = ("diagnostics.sleep", {"seconds": _SECONDS})
_KEYS = 1000
_DEPTHS = (10_000, 100_000)
_BREADTHS = (1, 100, 10_000)
_SPREAD = 20_000
"""Runs that wait while the number of tenants is varied."""
_QUIET = 100
_FEWEST = 20
_EVERY_SECONDS = 0.1
_FLOWING = 100
_FLOWING_SECONDS = 600.0
_ROUNDS = 3
_CONTENDERS = 100
_COSTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "5 ms": ("sleep", {"seconds": _SECONDS}, 1000),
    "no-op": ("echo", {}, 2000),
}
_WAITS = """
SELECT extract(epoch FROM r.started_at - r.created_at)::float8 FROM runs r JOIN tenants t ON t.id = r.tenant_id
WHERE t.slug = ANY (%s) AND r.actor = %s AND r.started_at IS NOT NULL
"""
_ENDED = "SELECT count(*) FROM runs WHERE state = 'SUCCEEDED'"


async def run(scale: float) -> dict[str, float]:
    """The waits, from acceptance to start, and the throughputs under contention and without."""
    with stacks.start() as stack, stack.floor(*floors.WORKER) as floor:
        return await asyncio.to_thread(_measure, stack, floor, scale)


def _measure(stack: Stack, floor: int, scale: float) -> dict[str, float]:
    many = backlog.tenants(stack, "tenant-", max(_BREADTHS))
    quiet = backlog.tenants(stack, "quiet-", max(_FEWEST, int(_QUIET * scale)))
    figures = _wait(stack, "idle", quiet)
    for depth in _DEPTHS:
        backlog.queue(stack, many[:1], int(depth * scale), *_JOB, keys=_KEYS)
        figures |= _behind(stack, f"behind {depth:,} runs", quiet, _FLOWING)
    for breadth in _BREADTHS:
        backlog.queue(stack, many[:breadth], max(2, int(_SPREAD * scale) // breadth), *_JOB)
        figures |= _behind(stack, f"beside {breadth:,} tenants", quiet, max(breadth, _FLOWING))
    cost = _cost(stack, floor, many[:_CONTENDERS], scale)
    shallow, deep = (figures[f"behind {depth:,} runs: p50 ms"] for depth in _DEPTHS)
    few, *_, lots = (figures[f"beside {breadth:,} tenants: p50 ms"] for breadth in _BREADTHS)
    fifo = _DEPTHS[0] / cost["5 ms: Celery tasks/s"]
    return {
        **figures,
        "ten times as deep": deep / shallow,
        "10,000 tenants for one": lots / few,
        "behind 10,000 in Celery's queue s (by its rate)": fifo,
        "shorter than there": fifo / shallow * 1e3,
        **cost,
    }


def _behind(stack: Stack, name: str, quiet: Sequence[str], flowing: int) -> dict[str, float]:
    """The quiet tenants' waits while what has just been queued is worked off.

    Args:
        flowing: how many runs end before: one of each tenant, or those who all came at once would have turns to come.
    """
    [(before,)] = stack.rows(_ENDED)
    stacks.await_(lambda: stack.rows(_ENDED)[0][0] > before + flowing, _FLOWING_SECONDS)
    figures = _wait(stack, name, quiet)
    backlog.clear(stack)
    return figures


def _wait(stack: Stack, name: str, quiet: Sequence[str]) -> dict[str, float]:
    """How long a run of each quiet tenant waits, a few a second."""
    with backlog.caller(stack) as call:
        for slug in quiet:
            call(slug, "diagnostics.echo", name)
            time.sleep(_EVERY_SECONDS)
    stacks.await_(lambda: len(stack.rows(_WAITS, list(quiet), name)) == len(quiet))
    waits = [wait for (wait,) in stack.rows(_WAITS, list(quiet), name)]
    return {
        f"{name}: p50 ms": statistics.median(waits) * 1e3,
        f"{name}: p95 ms": statistics.quantiles(waits, n=20)[18] * 1e3,
    }


def _cost(stack: Stack, floor: int, contenders: Sequence[str], scale: float) -> dict[str, float]:
    """How fast one tenant's runs are worked off, and as many runs of many tenants, and as many messages by Celery."""
    figures: dict[str, float] = {}
    for name, (task, args, amount) in _COSTS.items():
        amount = max(len(contenders), int(amount * scale))
        rounds = [_drains(stack, floor, contenders, task, args, amount) for _ in range(_ROUNDS)]
        alone, contended, bare = (statistics.median(one.per_second for one in way) for way in zip(*rounds, strict=True))
        figures |= {
            f"{name}: one tenant runs/s": alone,
            f"{name}: {len(contenders)} tenants runs/s": contended,
            f"{name}: cost %": 100 * (1 - contended / alone),
            f"{name}: Celery tasks/s": bare,
        }
    return figures


def _drains(
    stack: Stack, floor: int, contenders: Sequence[str], task: str, args: dict[str, Any], amount: int
) -> tuple[Drain, Drain, Drain]:
    worker = stack.pid("worker")
    alone = backlog.drain(stack, worker, contenders[:1], amount, f"diagnostics.{task}", args)
    contended = backlog.drain(stack, worker, contenders, amount // len(contenders), f"diagnostics.{task}", args)
    with stack.still("worker", "operator", "beat"):
        return alone, contended, backlog.drain_floor(stack, floor, amount, f"floor.{task}", *args.values())
