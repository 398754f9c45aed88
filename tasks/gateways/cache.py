"""Answers kept in Redis for a while, and how often they were found there. Losing them costs time only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from uuid import UUID

from redis import Redis

from tenants import names
from tenants.settings import Settings


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
    """Keep an answer.

    Args:
        name: says what was asked, and of which state of the data.
        seconds: how long it is kept.
    """
    _client(settings).set(names.cache(tenant, family, name), answer, ex=seconds)


def rates(settings: Settings, tenant: UUID, family: str) -> Rates:
    """How often this family's answers were found."""
    keys = [names.counter(tenant, family, name) for name in ("cache_hits", "cache_misses")]
    hits, misses = (int(value or 0) for value in _client(settings).mget(keys))
    return Rates(hits, misses)


def _client(settings: Settings) -> Redis:
    return _connect(settings.redis.worker_url or settings.redis.url, settings.redis.timeout_seconds)


@cache
def _connect(url: str, timeout_seconds: float) -> Redis:
    return Redis.from_url(
        url, decode_responses=True, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds
    )
