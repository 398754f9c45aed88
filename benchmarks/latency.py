"""Idle latency: from the mutation to the task's start and to its sight in a subscription, beside bare Celery."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any
from uuid import UUID

import httpx2
import orjson
import psycopg2
from celery import Celery
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from benchmarks import stacks
from tenants import ids

_RUNS = 150
_WARM = 20
_MUTATION = 'mutation { triggerBackgroundTask(taskName: "diagnostics.echo") { taskId } }'
_SUBSCRIPTION = "subscription { runUpdates { runId state } }"
_REST_SECONDS = 0.01


class Sights:
    """When each run was seen to succeed."""

    def __init__(self) -> None:
        self.moments: dict[str, float] = {}
        self._waiting: dict[str, asyncio.Event] = {}

    def note(self, run: str) -> None:
        """The run was seen now."""
        self.moments[run] = time.time()
        self._waiting.setdefault(run, asyncio.Event()).set()

    async def seen(self, run: str) -> None:
        """Wait until the run has been seen."""
        await self._waiting.setdefault(run, asyncio.Event()).wait()


async def run() -> dict[str, float]:
    """One run at a time, ours and Celery's in turn; medians in milliseconds and their ratios."""
    with stacks.start() as stack:
        worker = ("celery", "-A", "benchmarks.floors:celery", "worker", "-c", "2", "-Q", "floor", "-l", "WARNING")
        with stack.floor(*worker):
            return await _measure(stack)


async def _measure(stack: stacks.Stack) -> dict[str, float]:
    client = Celery("floor", broker=stack.state["redis_url"], backend=stack.state["redis_url"])
    sights = Sights()
    sent: dict[str, float] = {}
    floor: list[float] = []
    async with _subscribed(stack, sights), httpx2.AsyncClient(headers=stack.authorization) as http:
        for number in range(_WARM + _RUNS):
            run, moment = await _trigger(stack, http)
            await asyncio.wait_for(sights.seen(run), 30)
            stamp = await asyncio.to_thread(_celery, client)
            if number >= _WARM:
                sent[run] = moment
                floor.append(stamp)
            await asyncio.sleep(_REST_SECONDS)
    started = await asyncio.to_thread(_started, stack, list(sent))
    starts = [started[run] - moment for run, moment in sent.items()]
    seen = [sights.moments[run] - moment for run, moment in sent.items()]
    figures = {"start": starts, "seen": seen, "celery": floor}
    result = {}
    for name, values in figures.items():
        result[f"{name} p50 ms"] = statistics.median(values) * 1e3
        result[f"{name} p99 ms"] = statistics.quantiles(values, n=100)[98] * 1e3
    result["start ratio"] = result["start p50 ms"] / result["celery p50 ms"]
    result["seen ratio"] = result["seen p50 ms"] / result["celery p50 ms"]
    return result


async def _trigger(stack: stacks.Stack, http: httpx2.AsyncClient) -> tuple[str, float]:
    moment = time.time()
    answer = await http.post(f"{stack.url}/graphql", json={"query": _MUTATION})
    return str(answer.json()["data"]["triggerBackgroundTask"]["taskId"]), moment


@asynccontextmanager
async def _subscribed(stack: stacks.Stack, sights: Sights) -> AsyncIterator[None]:
    """A subscription that notes when each run was seen to succeed."""
    url = stack.url.replace("http", "ws", 1) + "/graphql"
    async with connect(url, subprotocols=[Subprotocol("graphql-transport-ws")]) as socket:
        await _send(socket, type="connection_init", payload={"authorization": f"Bearer {stack.key}"})
        await socket.recv()
        await _send(socket, id="1", type="subscribe", payload={"query": _SUBSCRIPTION})
        reading = asyncio.create_task(_note(socket, sights))
        yield
        reading.cancel()


async def _note(socket: ClientConnection, sights: Sights) -> None:
    async for frame in socket:
        message = orjson.loads(frame)
        if message["type"] == "next":
            update = message["payload"]["data"]["runUpdates"]
            if update["state"] == "SUCCEEDED":
                sights.note(update["runId"])


async def _send(socket: ClientConnection, **message: Any) -> None:
    await socket.send(orjson.dumps(message).decode())


def _celery(client: Celery) -> float:
    return float(client.send_task("floor.stamp", [time.time()], queue="floor").get(timeout=30))


def _started(stack: stacks.Stack, runs: list[str]) -> dict[str, float]:
    with closing(psycopg2.connect(stack.state["database_owner_url"])) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT id::text, extract(epoch FROM started_at)::float8 FROM runs WHERE id = ANY (%s::uuid[])",
            ([str(ids.read("run", run)) for run in runs],),
        )
        return {ids.show("run", UUID(run)): moment for run, moment in cursor.fetchall()}
