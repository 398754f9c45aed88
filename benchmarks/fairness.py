"""How long a quiet tenant waits behind others' backlogs, deep and broad, and what fairness costs in throughput."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from typing import Any

import httpx2

from benchmarks import backlog, floors, latency, stacks
from benchmarks.backlog import Drain
from benchmarks.stacks import Stack

_SECONDS = 0.005
_KEYS = 1000
_DEPTHS = (10_000, 100_000)
_BREADTHS = (1, 100, 10_000)
_SPREAD = 20_000
"""Runs that wait while the number of tenants is varied."""
_SAMPLES = 100
_EVERY_SECONDS = 0.1
_FLOWING = 100
_ROUNDS = 3
_CONTENDERS = 100
_COSTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "5 ms": ("sleep", {"seconds": _SECONDS}, 1000),
    "no-op": ("echo", {}, 2000),
}
_ENDED = "SELECT count(*) FROM runs WHERE state = 'SUCCEEDED'"


async def run(scale: float) -> dict[str, float]:
    """The waits, from acceptance to start, and the throughputs under contention and without."""
    with stacks.start() as stack, stack.floor(*floors.WORKER) as floor:
        many = backlog.tenants(stack, "tenant-", max(_BREADTHS))
        figures = await _wait(stack, "idle", scale)
        for depth in _DEPTHS:
            figures |= await _behind(stack, f"behind {depth:,} runs", many[:1], depth, _KEYS, scale)
        for breadth in _BREADTHS:
            figures |= await _behind(stack, f"beside {breadth:,} tenants", many[:breadth], _SPREAD, 0, scale)
        cost = await asyncio.to_thread(_cost, stack, floor, many[:_CONTENDERS], scale)
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


async def _behind(stack: Stack, name: str, of: Sequence[str], depth: int, keys: int, scale: float) -> dict[str, float]:
    """The quiet tenant's waits while so many runs of others wait."""
    each = max(1, int(depth * scale) // len(of))
    [(before,)] = stack.rows(_ENDED)
    backlog.queue(stack, of, each, "diagnostics.sleep", {"seconds": _SECONDS}, keys=keys)
    await asyncio.to_thread(stacks.await_, lambda: stack.rows(_ENDED)[0][0] > before + _FLOWING)
    figures = await _wait(stack, name, scale)
    await asyncio.to_thread(backlog.clear, stack)
    return figures


async def _wait(stack: Stack, name: str, scale: float) -> dict[str, float]:
    """Runs of the quiet tenant, a few a second."""
    sent: dict[str, float] = {}
    async with httpx2.AsyncClient(headers=stack.authorization) as http:
        for _ in range(max(10, int(_SAMPLES * scale))):
            found, moment = await latency.trigger(stack, http)
            sent[found] = moment
            await asyncio.sleep(_EVERY_SECONDS)
    await asyncio.to_thread(stacks.await_, lambda: len(stack.started(list(sent))) == len(sent))
    starts = stack.started(list(sent))
    waits = [start - accepted for accepted, start in starts.values()]
    return {
        f"{name}: p50 ms": statistics.median(waits) * 1e3,
        f"{name}: p95 ms": statistics.quantiles(waits, n=20)[18] * 1e3,
        f"{name}: sent to start p50 ms": statistics.median(starts[one][1] - sent[one] for one in sent) * 1e3,
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
