"""`triggerBackgroundTask` with key, idempotency, insert, event and bell, beside a bare insert over Starlette."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial

import orjson

from api.embedded import free_port
from benchmarks import measure, stacks
from benchmarks.measure import Sample

_MUTATION = """mutation Trigger($key: String!, $value: JSON, $delay: Float) {
  triggerBackgroundTask(taskName: "diagnostics.echo", args: $value, idempotencyKey: $key, delaySeconds: $delay) {
    success taskId message
  }
}"""
_LATER_SECONDS = 86400.0
_ROUNDS = 3
_OPERATIONS = {16: 3000, 1: 600}


async def run(scale: float) -> dict[str, float]:
    """Rounds at 16 connections and at one; the figures and their ratios."""
    figures: dict[str, float] = {}
    with stacks.start() as stack:
        port = free_port()
        floor_url = f"http://127.0.0.1:{port}/"
        floor = ("uvicorn", "--factory", "benchmarks.floors:create", "--port", str(port), "--no-access-log")
        with stack.still("worker", "operator", "beat"), stack.floor(*floor, url=floor_url) as floor_pid:
            for connections in (16, 1):
                amount = {"connections": connections, "operations": int(_OPERATIONS[connections] * scale)}
                ours = partial(
                    measure.load,
                    f"{stack.url}/graphql",
                    mutation(stack),
                    pid=stack.pid("api"),
                    expect=b'"success":true',
                    **amount,
                )
                theirs = partial(measure.load, floor_url, _insert(floor_url), pid=floor_pid, expect=b"true", **amount)
                await ours()
                await theirs()
                triggered, inserted = await measure.interleaved(_ROUNDS, ours, theirs)
                figures |= _figures(connections, triggered, inserted)
    return figures


def mutation(stack: stacks.Stack, delay_seconds: float = _LATER_SECONDS) -> Callable[[int], bytes]:
    """Makes mutations that each trigger a run, which does not start while it is measured."""

    def make(number: int) -> bytes:
        variables = {"key": uuid.uuid4().hex, "value": {"value": number}, "delay": delay_seconds}
        body = orjson.dumps({"query": _MUTATION, "operationName": "Trigger", "variables": variables})
        return measure.request(f"{stack.url}/graphql", body, **stack.authorization)

    return make


def _insert(url: str) -> Callable[[int], bytes]:
    def make(number: int) -> bytes:
        body = {"tenant": str(uuid.UUID(int=1)), "id": str(uuid.uuid4()), "value": number}
        return measure.request(url, orjson.dumps(body))

    return make


def _figures(connections: int, ours: list[Sample], floor: list[Sample]) -> dict[str, float]:
    rate = measure.median(ours, lambda sample: sample.per_second)
    floor_rate = measure.median(floor, lambda sample: sample.per_second)
    p50 = measure.median(ours, lambda sample: sample.p50)
    floor_p50 = measure.median(floor, lambda sample: sample.p50)
    return {
        f"c{connections} mutations/s": rate,
        f"c{connections} floor inserts/s": floor_rate,
        f"c{connections} rate ratio": rate / floor_rate,
        f"c{connections} p50 ms": p50 * 1e3,
        f"c{connections} floor p50 ms": floor_p50 * 1e3,
        f"c{connections} p50 ratio": p50 / floor_p50,
        f"c{connections} p99 ms": measure.median(ours, lambda sample: sample.p99) * 1e3,
        f"c{connections} API CPU µs": measure.median(ours, lambda sample: sample.cpu_microseconds),
        f"c{connections} floor CPU µs": measure.median(floor, lambda sample: sample.cpu_microseconds),
    }
