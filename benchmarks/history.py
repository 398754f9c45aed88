"""A page of runs and a run by its id over GraphQL, in a ledger of a million runs beside one of ten thousand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from functools import partial
from typing import Any
from uuid import UUID

import orjson

from benchmarks import backlog, measure, stacks
from benchmarks.measure import Sample
from benchmarks.stacks import Stack
from tenants import ids

_SIZES = (10_000, 1_000_000)
_TENANTS = 9
"""Others, with as many runs each as the tenant that asks."""
_WEEKS = 4
_ROUNDS = 5
_OPERATIONS = 200
_PAGE = "{ runs(first: 50) { edges { node { id taskName state createdAt } } pageInfo { endCursor hasNextPage } } }"
_RUN = "query Run($id: ID!) { run(id: $id) { id taskName state attempt result } }"
_WEEK = """
DO $$
DECLARE
  v_week timestamptz := date_trunc('week', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - %(back)s * interval '7 days';
  v_name text := 'runs' || to_char(v_week AT TIME ZONE 'UTC', '"_p"YYYYMMDD');
BEGIN
  IF to_regclass(v_name) IS NULL THEN
    EXECUTE format('CREATE TABLE %%I PARTITION OF runs FOR VALUES FROM (%%L) TO (%%L)', v_name,
                   first_id(v_week), first_id(v_week + interval '7 days'));
  END IF;
END $$
"""
"""The partition of a week that the dispatcher no longer makes."""
_FILL = """
INSERT INTO runs (tenant_id, id, task, queue, args, priority, rank, state, sequence, attempt, max_attempts, fence,
                  actor_kind, actor, result, worker_seconds, created_at, available_at, started_at, finished_at)
SELECT t.id, (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
              || substr(md5(random()::text), 1, 3) || '8' || substr(md5(random()::text), 1, 15))::uuid,
       (ARRAY['diagnostics.echo', 'diagnostics.sleep', 'diagnostics.spin'])[1 + n %% 3], 'diagnostics',
       '{"value": 1}', 5, at, CASE WHEN n %% 20 = 0 THEN 'FAILED' ELSE 'SUCCEEDED' END, 4, 1, 4, 1, 'API_KEY',
       'key_benchmark', '1', 0.01, at, at, at, at
FROM tenants t CROSS JOIN generate_series(1, %(each)s) n
CROSS JOIN LATERAL (SELECT now() - n * (%(weeks)s * interval '7 days' / %(each)s) AS at) moment
WHERE t.slug = ANY (%(tenants)s)
"""
_SOME = """
SELECT r.id::text FROM runs r JOIN tenants t ON t.id = r.tenant_id WHERE t.slug = %s ORDER BY random() LIMIT %s
"""


async def run(scale: float) -> dict[str, float]:
    """Two stacks, asked in turn; medians and their ratios."""
    with ExitStack() as opened:
        both = [opened.enter_context(stacks.start()) for _ in _SIZES]
        asked = []
        for stack, size in zip(both, _SIZES, strict=True):
            opened.enter_context(stack.still("worker", "operator", "beat"))
            found = await asyncio.to_thread(_fill, stack, int(size * scale))
            asked += [_asking(stack, [_page()]), _asking(stack, [_by_id(one) for one in found])]
        for ask in asked:
            await ask()
        few_page, few_one, many_page, many_one = await measure.interleaved(_ROUNDS, *asked)
    return _figures("page of 50", few_page, many_page) | _figures("run by id", few_one, many_one)


def _fill(stack: Stack, size: int) -> list[str]:
    """Fill the ledger over some weeks and tenants; some of the asking tenant's runs."""
    for back in range(_WEEKS + 1):
        stack.rows(_WEEK, back=back)
    slugs = [stack.tenant, *backlog.tenants(stack, "other-", _TENANTS)]
    stack.rows(_FILL, each=size // len(slugs), weeks=_WEEKS, tenants=slugs)
    stack.rows("ANALYZE runs")
    return [run for (run,) in stack.rows(_SOME, stack.tenant, _OPERATIONS)]


def _page() -> bytes:
    return orjson.dumps({"query": _PAGE})


def _by_id(run: str) -> bytes:
    return orjson.dumps({"query": _RUN, "operationName": "Run", "variables": {"id": ids.show("run", UUID(run))}})


def _asking(stack: Stack, bodies: list[bytes]) -> Callable[[], Coroutine[Any, Any, Sample]]:
    """Asks one question after another over one connection."""
    url = f"{stack.url}/graphql"
    requests = [measure.request(url, body, **stack.authorization) for body in bodies]
    return partial(
        measure.load,
        url,
        lambda number: requests[number % len(requests)],
        pid=stack.pid("api"),
        operations=_OPERATIONS,
        connections=1,
        expect=b'"taskName"',
    )


def _figures(name: str, few: list[Sample], many: list[Sample]) -> dict[str, float]:
    small, large = (measure.median(samples, lambda sample: sample.p50) * 1e3 for samples in (few, many))
    return {
        f"{name}, {_SIZES[0]:,} runs: p50 ms": small,
        f"{name}, {_SIZES[1]:,} runs: p50 ms": large,
        f"{name}: ratio": large / small,
    }
