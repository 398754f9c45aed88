"""1,000 runs in one `triggerBackgroundTasks`, beside as many mutations of one run each."""

from __future__ import annotations

from functools import partial

import orjson

from benchmarks import measure, stacks, trigger

_MUTATION = """mutation Trigger($inputs: [TriggerInput!]!) {
  triggerBackgroundTasks(inputs: $inputs) { success runs { id } }
}"""
_ROUNDS = 3
_SIZE = 1000
_BULKS = 5
_SINGLES = 2000
_CONNECTIONS = 16


async def run(scale: float) -> dict[str, float]:
    """Rounds of lists over one connection and of single mutations over sixteen."""
    with stacks.start() as stack, stack.still("worker", "operator", "beat"):
        made = _bulk(stack)
        load = partial(measure.load, f"{stack.url}/graphql", pid=stack.pid("api"), expect=b'"success":true')
        bulk = partial(load, lambda number: made, operations=_BULKS, connections=1)
        single = partial(load, trigger.mutation(stack), operations=int(_SINGLES * scale), connections=_CONNECTIONS)
        await bulk()
        await single()
        bulks, singles = await measure.interleaved(_ROUNDS, bulk, single)
    rate = measure.median(bulks, lambda sample: sample.per_second) * _SIZE
    single_rate = measure.median(singles, lambda sample: sample.per_second)
    return {
        "bulk runs/s": rate,
        "single runs/s": single_rate,
        "rate ratio": rate / single_rate,
        "bulk p50 ms": measure.median(bulks, lambda sample: sample.p50) * 1e3,
        "bulk API CPU µs a run": measure.median(bulks, lambda sample: sample.cpu_microseconds) / _SIZE,
        "single API CPU µs": measure.median(singles, lambda sample: sample.cpu_microseconds),
    }


def _bulk(stack: stacks.Stack) -> bytes:
    inputs = [{"taskName": "diagnostics.echo", "args": {"value": n}, "delaySeconds": 86400} for n in range(_SIZE)]
    body = orjson.dumps({"query": _MUTATION, "operationName": "Trigger", "variables": {"inputs": inputs}})
    return measure.request(f"{stack.url}/graphql", body, **stack.authorization)
