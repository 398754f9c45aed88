"""Work that waits, made past the API: the rows that accepting it would have made, and how fast it is worked off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
import psycopg2
import redis
from celery import Celery

from benchmarks import measure, stacks
from benchmarks.stacks import Stack
from tasks.engine.lines import Candidate, Line
from tasks.engine.publish import Bell
from tenants import ids, names

_TENANTS = """
SELECT create_tenant(gen_random_uuid(), %s || n, %s || n, 'UTC', '{diagnostics}') FROM generate_series(1, %s) n
"""
_QUEUE = """
WITH made AS (
  INSERT INTO runs (tenant_id, id, task, queue, args, priority, rank, state, max_attempts, concurrency_key,
                    actor_kind, actor, created_at, available_at)
  SELECT t.id, (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '7'
                || substr(md5(random()::text), 1, 3) || '8' || substr(md5(random()::text), 1, 15))::uuid,
         %(task)s, %(queue)s, %(args)s, 5, now() + n * interval '1 microsecond' - interval '5 minutes', 'QUEUED', 4,
         CASE WHEN %(keys)s > 0 THEN 'key-' || n %% %(keys)s END, 'API_KEY', %(label)s, now(), now()
  FROM tenants t CROSS JOIN generate_series(1, %(each)s) n WHERE t.slug = ANY (%(tenants)s)
  RETURNING tenant_id, id
)
INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt) SELECT tenant_id, id, 1, 'QUEUED', 0 FROM made
"""
_NEWEST = """
SELECT r.tenant_id::text, r.id::text, r.rank, r.queue FROM runs r JOIN tenants t ON t.id = r.tenant_id
WHERE t.slug = %s ORDER BY r.id DESC LIMIT 1
"""
_LEFT = """
SELECT EXISTS (SELECT FROM runs WHERE state = 'QUEUED') OR EXISTS (SELECT FROM runs WHERE state = 'RELEASED')
    OR EXISTS (SELECT FROM run_leases)
"""
_MIDDLE = """
SELECT extract(epoch FROM percentile_disc(0.9) WITHIN GROUP (ORDER BY finished_at)
                        - percentile_disc(0.1) WITHIN GROUP (ORDER BY finished_at))::float8
FROM runs WHERE actor = %s AND state = 'SUCCEEDED'
"""
_CLEAR = "UPDATE runs SET state = 'CANCELLED', finished_at = now() WHERE state = 'QUEUED'"
_FLOOR_QUEUE = "floor"
_PAUSE_SECONDS = 0.01
_DRAIN_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Drain:
    """How fast a backlog was worked off.

    Args:
        per_second: over its middle, when nothing starts or ends.
        cpu_microseconds: of the workers, for each.
    """

    per_second: float
    cpu_microseconds: float


def tenants(stack: Stack, prefix: str, amount: int) -> list[str]:
    """Make tenants; their slugs."""
    stack.rows(_TENANTS, prefix, prefix, amount)
    return [f"{prefix}{number}" for number in range(1, amount + 1)]


def queue(stack: Stack, of: Sequence[str], each: int, task: str, args: dict[str, Any], **more: Any) -> None:
    """Queue so many runs of each tenant, in one transaction.

    Args:
        of: slugs of the tenants.
        more: `keys`, over how many concurrency keys, none for 0; `queue`; `label`, the actor, by which they can be told
            from others.
    """
    stack.rows(_QUEUE, **_values(of, each, task, args, **more))


def _values(
    of: Sequence[str],
    each: int,
    task: str,
    args: dict[str, Any],
    *,
    keys: int = 0,
    queue: str = "diagnostics",
    label: str = "benchmark",
) -> dict[str, Any]:
    return {
        "tenants": list(of),
        "each": each,
        "task": task,
        "args": orjson.dumps(args).decode(),
        "queue": queue,
        "keys": keys,
        "label": label,
    }


@contextmanager
def caller(stack: Stack) -> Iterator[Callable[[str, str, str], None]]:
    """Queues one run of a tenant and rings its bell, as the API does: over connections that are there before.

    What is yielded takes the tenant's slug, the task, and the label.
    """
    with (
        closing(psycopg2.connect(stack.state["database_owner_url"])) as connection,
        connection.cursor() as cursor,
        redis.Redis.from_url(stack.state["redis_url"]) as client,
    ):
        connection.autocommit = True

        def call(slug: str, task: str, label: str) -> None:
            cursor.execute(_QUEUE, _values([slug], 1, task, {}, label=label))
            cursor.execute(_NEWEST, [slug])
            [(tenant, run, rank, waits_in)] = cursor.fetchall()
            line = Line(UUID(tenant), waits_in, task, None)
            client.publish(names.BELL, Bell(line, Candidate(rank, UUID(run), line)).encode())

        yield call


def drain(stack: Stack, pid: int, of: Sequence[str], each: int, task: str, args: dict[str, Any], **more: Any) -> Drain:
    """Queue runs, and wait until nothing waits any more.

    Args:
        pid: the worker.
        of: slugs of the tenants.
        each: how many runs of each.
        more: as for `queue`.
    """
    label = f"drain-{ids.new()}"
    cpu = measure.tree_seconds(pid)
    queue(stack, of, each, task, args, label=label, **more)
    finish(stack)
    amount = each * len(of)
    cpu = measure.tree_seconds(pid) - cpu
    [(seconds,)] = stack.rows(_MIDDLE, label)
    return Drain(0.8 * amount / seconds, cpu / amount * 1e6)


def clear(stack: Stack) -> None:
    """Drop what waits, and let end what runs."""
    stack.rows(_CLEAR)
    finish(stack)


def finish(stack: Stack) -> None:
    """Wait until nothing waits and nothing runs."""
    stacks.await_(lambda: not stack.rows(_LEFT)[0][0], _DRAIN_SECONDS)


def drain_floor(stack: Stack, pid: int, amount: int, task: str, *args: Any) -> Drain:
    """The same for bare Celery: so many messages for the floor's worker, which is held until they are all there."""
    client = Celery("floor", broker=stack.state["redis_url"], backend=stack.state["redis_url"])
    broker = redis.Redis.from_url(stack.state["redis_url"])
    with stacks.held(pid):
        for _ in range(amount):
            client.send_task(task, args, queue=_FLOOR_QUEUE)
        cpu = measure.tree_seconds(pid)
    began, ended = (_reached(broker, int(amount * share)) for share in (0.9, 0.1))
    stacks.await_(lambda: not broker.llen(_FLOOR_QUEUE))
    cpu = measure.tree_seconds(pid) - cpu
    return Drain((began[1] - ended[1]) / (ended[0] - began[0]), cpu / amount * 1e6)


def _reached(broker: redis.Redis, left: int) -> tuple[float, int]:
    """When no more than so many messages were left, and how many they were."""
    while (length := broker.llen(_FLOOR_QUEUE)) > left:
        time.sleep(_PAUSE_SECONDS)
    return time.perf_counter(), length
