"""Answers kept in Redis for a while, and how often they were found there. Losing them costs time only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import cast
from uuid import UUID

from prometheus_client import Counter
from redis import Redis, RedisError

from tasks.engine import publish
from tenants import names
from tenants.settings import Settings

REQUESTS = Counter("tenantry_cache_requests_total", "Questions to the cache.", ["family", "outcome"])
_HITS, _MISSES = "cache_hits", "cache_misses"
_connect = cache(publish.connect)


@dataclass(frozen=True, slots=True)
class Rates:
    """How often an answer was found, and how often not."""

    hits: int
    misses: int

    @property
    def hit_rate(self) -> float | None:
        """The share of hits; None before the first question."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


def put(settings: Settings, tenant: UUID, family: str, name: str, answer: str, seconds: int) -> None:
    """Keep an answer; for workers.

    Args:
        name: says what was asked, and of which state of the data.
        seconds: how long it is kept.
    """
    _of_worker(settings).set(names.cache(tenant, family, name), answer, ex=seconds)


def get(settings: Settings, tenant: UUID, family: str, name: str) -> str | None:
    """The answer that is kept, or None, as when Redis does not answer within the bell's timeout; for the API.

    Counts what it found, for the tenant and for this process's metrics.
    """
    client = _connect(settings.redis.api_address, timeout_seconds=settings.redis.bell_timeout_seconds)
    try:
        found = cast("bytes | None", client.get(names.cache(tenant, family, name)))
        client.incr(names.counter(tenant, family, _MISSES if found is None else _HITS))
    except RedisError:
        REQUESTS.labels(family, "unavailable").inc()
        return None
    REQUESTS.labels(family, "miss" if found is None else "hit").inc()
    return None if found is None else found.decode()


def rates(settings: Settings, tenant: UUID, family: str) -> Rates:
    """How often this family's answers were found; for workers."""
    keys = [names.counter(tenant, family, name) for name in (_HITS, _MISSES)]
    hits, misses = (int(value or 0) for value in _of_worker(settings).mget(keys))
    return Rates(hits, misses)


def _of_worker(settings: Settings) -> Redis:
    return _connect(settings.redis.worker_address, timeout_seconds=settings.redis.timeout_seconds)
