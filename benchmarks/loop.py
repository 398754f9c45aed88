"""From trigger to SUCCEEDED with everything on this machine, beside the whole loop of procrastinate."""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks import backlog, measure, peers, stacks, trigger
from benchmarks.stacks import Stack

_ROUNDS = 3
_RUNS = 2000
_CONNECTIONS = 16


async def run(scale: float) -> dict[str, float]:
    """Rounds in turn: as many as can be, over sixteen connections, worked off by two processes meanwhile."""
    jobs = int(_RUNS * scale)
    with stacks.start() as stack, peers.working(stack) as address:
        await peers.loop(stack, address, jobs // 10, _CONNECTIONS)
        await _loop(stack, jobs // 10)
        ours, theirs = [], []
        for _ in range(_ROUNDS):
            ours.append(await _loop(stack, jobs))
            with stack.still("api", "worker", "operator", "beat"):
                theirs.append(await peers.loop(stack, address, jobs, _CONNECTIONS))
    return {
        "runs/s": statistics.median(ours),
        "procrastinate jobs/s": statistics.median(theirs),
        "rate ratio": statistics.median(ours) / statistics.median(theirs),
    }


async def _loop(stack: Stack, jobs: int) -> float:
    """Runs a second, from the first mutation to the last run's end."""
    started = time.perf_counter()
    await measure.load(
        f"{stack.url}/graphql",
        trigger.mutation(stack, delay_seconds=0),
        pid=stack.pid("api"),
        operations=jobs,
        connections=_CONNECTIONS,
        expect=b'"success":true',
    )
    await asyncio.to_thread(backlog.finish, stack)
    return jobs / (time.perf_counter() - started)
