"""What a worker does with a run: claim, fence, task, settle, result and stream event, beside a bare Celery worker."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from benchmarks import backlog, floors, stacks
from benchmarks.stacks import Stack

_ROUNDS = 3
_RUNS = 3000
_COUNTED = 200
_QUEUE = "maintenance"
_SIMPLE_QUERY = b"Q"
"""The type of the message by which psycopg2 asks."""


async def run(scale: float) -> dict[str, float]:
    """Backlogs of no-ops in turn, ours and Celery's with results on, two processes each; and the trips of a run."""
    with stacks.start() as stack:
        figures = await asyncio.to_thread(_drains, stack, int(_RUNS * scale))
        return figures | {"PostgreSQL round trips a run": await _count(stack)}


def _drains(stack: Stack, runs: int) -> dict[str, float]:
    ours, floor = [], []
    with stack.floor(*floors.WORKER) as pid:
        for _ in range(_ROUNDS):
            ours.append(backlog.drain(stack, stack.pid("worker"), [stack.tenant], runs, "diagnostics.echo", {}))
            with stack.still("worker", "operator", "beat"):
                floor.append(backlog.drain_floor(stack, pid, runs, "floor.echo"))
    rate = statistics.median(one.per_second for one in ours)
    floor_rate = statistics.median(one.per_second for one in floor)
    return {
        "runs/s": rate,
        "Celery tasks/s": floor_rate,
        "rate ratio": rate / floor_rate,
        "worker CPU µs": statistics.median(one.cpu_microseconds for one in ours),
        "Celery worker CPU µs": statistics.median(one.cpu_microseconds for one in floor),
    }


async def _count(stack: Stack) -> float:
    """How often a run makes its worker wait for PostgreSQL: queries on the wire, of those connections that claim."""
    parts = urlsplit(stack.state["database_url"])
    async with _counting(str(parts.hostname), int(parts.port or 5432)) as (port, queries):
        address = stack.state["database_url"].replace(f":{parts.port}/", f":{port}/")
        await asyncio.to_thread(_work, stack, address)
    claiming = [sent for sent in queries if any(b"claim_run" in query for query in sent)]
    return sum(map(len, claiming)) / _COUNTED


def _work(stack: Stack, address: str) -> None:
    """Work off a few runs by another worker, which reaches the database at this address."""
    with stack.still("worker"), stack.worker(_QUEUE, DATABASE_URL=address) as pid:
        backlog.drain(stack, pid, [stack.tenant], _COUNTED, "diagnostics.echo", {}, queue=_QUEUE)


@asynccontextmanager
async def _counting(host: str, port: int) -> AsyncIterator[tuple[int, list[list[bytes]]]]:
    """A way to a PostgreSQL server; what each of its connections sends that begins with a query."""
    queries: list[list[bytes]] = []

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(host, port)
        mine: list[bytes] = []
        queries.append(mine)

        def note(data: bytes) -> None:
            if data.startswith(_SIMPLE_QUERY):
                mine.append(data)

        await asyncio.gather(_pass(reader, here, note), _pass(there, writer, lambda data: None))

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], queries


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: Callable[[bytes], None]) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            note(data)
            writer.write(data)
    writer.close()
