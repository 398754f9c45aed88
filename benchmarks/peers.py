"""The peer that keeps its jobs in PostgreSQL too: procrastinate, with its own tables on the same server."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import quote

import procrastinate
from procrastinate.schema import SchemaManager

from benchmarks import stacks
from benchmarks.stacks import Stack

_SCHEMA = "procrastinate"
_WORKER = ("procrastinate", "--app", "benchmarks.peers.app", "worker", "--concurrency", "8")
_WORKERS = 2
_LEFT = "SELECT EXISTS (SELECT FROM procrastinate.procrastinate_jobs WHERE status IN ('todo', 'doing'))"
app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=os.environ.get("BENCHMARK_PEER_URL", ""), min_size=4, max_size=16)
)


@app.task(name="peer.echo")
async def echo(value: int | None = None) -> int | None:
    """Return the value."""
    return value


@contextmanager
def working(stack: Stack) -> Iterator[str]:
    """Two processes that work, in tables of their own; the address to send to."""
    address = f"{stack.state['database_owner_url']}?options={quote(f'-csearch_path={_SCHEMA}')}"
    tables = SchemaManager.get_schema().replace("%", "%%")
    stack.rows(f"CREATE SCHEMA {_SCHEMA}; SET search_path = {_SCHEMA}; {tables}")
    with ExitStack() as processes:
        for _ in range(_WORKERS):
            processes.enter_context(stacks.process(*_WORKER, **os.environ | {"BENCHMARK_PEER_URL": address}))
        yield address


async def loop(stack: Stack, address: str, jobs: int, connections: int) -> float:
    """Jobs a second, from the first one's sending to the last one's end."""
    connector = procrastinate.PsycopgConnector(conninfo=address, min_size=connections, max_size=connections)
    with app.replace_connector(connector) as sending:
        async with sending.open_async():
            numbers = iter(range(jobs))

            async def send() -> None:
                for number in numbers:
                    await echo.defer_async(value=number)

            started = time.perf_counter()
            await asyncio.gather(*(send() for _ in range(connections)))
            await asyncio.to_thread(stacks.await_, lambda: not stack.rows(_LEFT)[0][0])
            return jobs / (time.perf_counter() - started)
