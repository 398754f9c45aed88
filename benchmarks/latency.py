"""Idle latency: from the mutation to the task's start and to its sight in a subscription, beside bare Celery."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import orjson
from celery import Celery
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from benchmarks import floors, stacks

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


async def run(scale: float) -> dict[str, float]:
    """One run at a time, ours and Celery's in turn; medians in milliseconds and their ratios."""
    with stacks.start() as stack, stack.floor(*floors.WORKER):
        return await _measure(stack, int(_RUNS * scale))


async def _measure(stack: stacks.Stack, runs: int) -> dict[str, float]:
    client = Celery("floor", broker=stack.state["redis_url"], backend=stack.state["redis_url"])
    sights = Sights()
    sent: dict[str, float] = {}
    floor: list[float] = []
    async with _subscribed(stack, sights), httpx2.AsyncClient(headers=stack.authorization) as http:
        for number in range(_WARM + runs):
            run, moment = await trigger(stack, http)
            await asyncio.wait_for(sights.seen(run), 30)
            stamp = await asyncio.to_thread(_celery, client)
            if number >= _WARM:
                sent[run] = moment
                floor.append(stamp)
            await asyncio.sleep(_REST_SECONDS)
    started = await asyncio.to_thread(stack.started, list(sent))
    starts = [started[run][1] - moment for run, moment in sent.items()]
    seen = [sights.moments[run] - moment for run, moment in sent.items()]
    figures = {"start": starts, "seen": seen, "celery": floor}
    result = {}
    for name, values in figures.items():
        result[f"{name} p50 ms"] = statistics.median(values) * 1e3
        result[f"{name} p99 ms"] = statistics.quantiles(values, n=100)[98] * 1e3
    result["start ratio"] = result["start p50 ms"] / result["celery p50 ms"]
    result["seen ratio"] = result["seen p50 ms"] / result["celery p50 ms"]
    return result


async def trigger(stack: stacks.Stack, http: httpx2.AsyncClient) -> tuple[str, float]:
    """Trigger a run; its id, and when the mutation was sent."""
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
