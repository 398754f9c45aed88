"""The floors: what the same machine does with nothing of ours in between."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import orjson
from celery import Celery
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

WORKER = ("celery", "-A", "benchmarks.floors:celery", "worker", "-c", "2", "-Q", "floor", "-l", "WARNING")
"""Bare Celery with two children."""
TABLE = "CREATE TABLE IF NOT EXISTS benchmark_floor (tenant_id uuid NOT NULL, id uuid PRIMARY KEY, body jsonb NOT NULL)"


def create() -> Starlette:
    """Starlette that inserts one row a request, in a transaction that names its tenant, over raw asyncpg."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.pool = await asyncpg.create_pool(os.environ["BENCHMARK_DATABASE_URL"], min_size=16, max_size=16)
        yield
        await app.state.pool.close()

    async def insert(request: Request) -> Response:
        given = orjson.loads(await request.body())
        tenant = UUID(given["tenant"])
        async with request.app.state.pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT set_config('app.tenant_id', $1, true)", str(tenant))
            await connection.execute(
                "INSERT INTO benchmark_floor (tenant_id, id, body) VALUES ($1, $2, $3)",
                tenant,
                UUID(given["id"]),
                orjson.dumps(given).decode(),
            )
        return Response(b'{"success":true}', media_type="application/json")

    return Starlette(routes=[Route("/", insert, methods=["POST"])], lifespan=lifespan)


celery = Celery("floor", broker=os.environ.get("BENCHMARK_REDIS_URL"), backend=os.environ.get("BENCHMARK_REDIS_URL"))
celery.conf.update(
    task_default_queue="floor",
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    result_expires=60,
)


@celery.task(name="floor.stamp")
def stamp(sent: float) -> float:
    """Seconds from the call to the start."""
    return time.time() - sent


@celery.task(name="floor.echo")
def echo(value: int | None = None) -> int | None:
    """Return the value."""
    return value


@celery.task(name="floor.sleep")
def sleep(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)
