"""The fairness code alone, without a database: runs released a second among up to a million tenants."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from uuid import UUID

from tasks.engine.fairness import FairOrder
from tasks.engine.lines import Candidate, Line
from tasks.engine.windows import Room, Space

_TENANTS = (1_000, 10_000, 100_000, 1_000_000)
_WAITING = 2
"""Runs of each tenant that are known to wait."""
_BATCH = 64
_BATCHES = 500
_ROUNDS = 3
_SECONDS = 0.005
_NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Open:
    """A gate that holds nothing back."""

    def task(self, tenant: UUID, queue: str, task: str) -> bool:
        """Always."""
        return True

    def key(self, line: Line) -> bool:
        """Always."""
        return True

    def take(self, candidate: Candidate) -> None:
        """Nothing is counted."""


async def run(scale: float) -> dict[str, float]:
    """Each number of tenants in turn: picks alone, and whole releases, which are offered, picked and charged."""
    figures: dict[str, float] = {}
    for tenants in (int(amount * scale) for amount in _TENANTS):
        picks, releases = _measure(tenants)
        figures |= {f"{tenants:,} tenants: picks/s": picks, f"{tenants:,} tenants: releases/s": releases}
    _, few, *_, many = figures.values()
    return figures | {"slower by": few / many}


def _measure(tenants: int) -> tuple[float, float]:
    order = FairOrder({})
    numbers = count()
    gc.disable()
    for tenant in range(tenants):
        line = Line(UUID(int=tenant), "mail", "x.one", None)
        order.offer(_candidates(line, numbers, _WAITING))
    gc.freeze()
    gc.enable()
    rounds = [_round(order, numbers) for _ in range(_ROUNDS)]
    gc.unfreeze()
    picking, whole = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    return _BATCHES * _BATCH / picking, _BATCHES * _BATCH / whole


def _round(order: FairOrder, numbers: Iterator[int]) -> tuple[float, float]:
    """Processor seconds of the picks, and of all that a release needs: what ended is charged, and more arrives."""
    picking = whole = 0.0
    gate = Open()
    for _ in range(_BATCHES):
        started = time.process_time()
        picked = order.pick(Room(Space(_BATCH), {"mail": Space(_BATCH)}), _BATCH, lambda line: _SECONDS, gate)
        picking += time.process_time() - started
        arriving = [candidate for one in picked for candidate in _candidates(one.line, numbers, 1)]
        started = time.process_time()
        order.offer(arriving)
        for one in picked:
            order.charge(one.line.tenant, one.line.key, _SECONDS / 100)
        whole += time.process_time() - started
    return picking, picking + whole


def _candidates(line: Line, numbers: Iterator[int], amount: int) -> list[Candidate]:
    return [Candidate(_NOW, UUID(int=next(numbers)), line) for _ in range(amount)]
