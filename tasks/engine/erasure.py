"""What a tenant has in Redis, erased with it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from uuid import UUID

import redis

from tenants import ids, names

_PORTION = 1000
_KNOWN_SECONDS = 3600
"""Longer than anybody asks on who was let in before."""


def erase(client: redis.Redis, tenant: UUID) -> int:
    """Delete every key of a tenant; how many there were.

    Its callers' budgets are not told any more: an API process may go on for seconds before it knows of the end.
    """
    now = time.time()
    client.zadd(names.ERASED, {str(tenant): now})
    client.zremrangebyscore(names.ERASED, 0, now - _KNOWN_SECONDS)
    client.expire(names.ERASED, _KNOWN_SECONDS)
    erased = 0
    portion: list[bytes] = []
    for key in left(client, tenant):
        portion.append(key)
        if len(portion) == _PORTION:
            erased += client.unlink(*portion)
            portion = []
    return erased + (client.unlink(*portion) if portion else 0)


def left(client: redis.Redis, tenant: UUID) -> Iterator[bytes]:
    """Every key of a tenant."""
    yield from client.scan_iter(match=names.every(tenant), count=_PORTION)


def erase_results(client: redis.Redis, runs: Iterable[UUID]) -> None:
    """Delete what Celery's result backend shows of runs."""
    client.unlink(*(names.result(ids.show("run", run)) for run in runs))
