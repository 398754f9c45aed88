"""What callers may use up: leaky buckets in this process, whose levels all API processes agree on through Redis."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Hashable
from functools import lru_cache
from ipaddress import IPv6Network
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

import redis
import redis.asyncio
import structlog
from starlette.requests import HTTPConnection
from starlette.types import Scope

from api.backoff import BackOff
from tenants import names
from tenants.buckets import Bucket
from tenants.context import Principal
from tenants.errors import RateLimited
from tenants.settings import Api

log = structlog.get_logger(__name__)
K = TypeVar("K", bound=Hashable)

_BURST_SECONDS: Final = 10.0
"""A limit of so many a second lets through at once what it lets through in this time."""
OPEN: Final = ("/health/", "/metrics")
"""Where whoever watches over the process asks, as often as they like."""
_FREE_FAILURES: Final = 100
"""Many people can share an address."""
_REMEMBERED: Final = 20_000
_AGREE_SECONDS: Final = 1.0
_AGREE: Final = """
if redis.call('ZSCORE', KEYS[2], ARGV[3]) then
  return '0'
end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local known = redis.call('HMGET', KEYS[1], 'level', 'at')
local leaked = (now - (tonumber(known[2]) or now)) * tonumber(ARGV[2])
local level = math.max(0, (tonumber(known[1]) or 0) - math.max(0, leaked) + tonumber(ARGV[1]))
redis.call('HSET', KEYS[1], 'level', string.format('%.3f', level), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(1000 * (level / tonumber(ARGV[2]) + 60)))
return string.format('%.3f', level)
"""
"""Pours what one process has used up into the bucket that all share, by the server's clock; its level. Nothing is kept
of a tenant that has been erased."""


class Buckets(Generic[K]):
    """A bucket of the same size for each of many; those not seen for longest are forgotten, as empty ones may be.

    Args:
        size: how much each holds.
        rate: how much leaks out of each in a second.
    """

    def __init__(self, size: float, rate: float) -> None:
        self._size = size
        self._rate = rate
        self._buckets: OrderedDict[K, Bucket] = OrderedDict()

    def of(self, key: K) -> Bucket:
        """The bucket of one of them."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._size, self._rate)
            while len(self._buckets) > _REMEMBERED:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket


class Budgets(Buckets[tuple[UUID, str]]):
    """The buckets of callers, by tenant and actor.

    Each process lets its own callers through at once, and tells Redis once a second what they used up. While Redis is
    away, each process counts for itself.

    Args:
        kind: what is counted, as it stands in the key.
        client: of Redis.
    """

    def __init__(self, kind: str, size: float, rate: float, client: redis.asyncio.Redis) -> None:
        super().__init__(size, rate)
        self._kind = kind
        self._client = client
        self._agreeing: asyncio.Task[None] | None = None

    def caller(self, principal: Principal) -> Bucket:
        """The bucket of a caller who is about to use something up."""
        if self._agreeing is None or self._agreeing.done():
            self._agreeing = asyncio.create_task(self._agree())
        return self.of((principal.tenant, principal.actor))

    async def close(self) -> None:
        """Tell what has not been told."""
        if self._agreeing is not None:
            self._agreeing.cancel()
            await asyncio.gather(self._agreeing, return_exceptions=True)
            await self._tell()

    async def _agree(self) -> None:
        """Agree with the others until nobody has used up anything for a while."""
        while True:
            await asyncio.sleep(_AGREE_SECONDS)
            if not await self._tell():
                return

    async def _tell(self) -> bool:
        """Tell what was used up, and hear what others did; whether there was anything to tell."""
        told = [(key, bucket, bucket.unsent) for key, bucket in self._buckets.items() if bucket.unsent]
        if not told:
            return False
        pipeline = self._client.pipeline(transaction=False)
        for (tenant, actor), bucket, amount in told:
            shared = names.budget(tenant, actor, self._kind)
            pipeline.eval(_AGREE, 2, shared, names.ERASED, str(amount), str(bucket.rate), str(tenant))
        try:
            levels: list[Any] = await pipeline.execute(raise_on_error=False)
        except (redis.RedisError, OSError) as error:
            log.warning("budgets_not_shared", kind=self._kind, error=type(error).__name__)
            return True
        for (_, bucket, amount), level in zip(told, levels, strict=True):
            if not isinstance(level, Exception):
                bucket.unsent -= amount
                bucket.correct(float(level))
        return True


class Places(Generic[K]):
    """How many sockets and streams each of many has open, and may have.

    Args:
        most: how many one may have.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[HTTPConnection, K] = {}
        self._taken: Counter[K] = Counter()

    def take(self, socket: HTTPConnection, key: K) -> bool:
        """Take a place for a socket; whether one was free."""
        if self._taken[key] >= self._most:
            return False
        self._taken[key] += 1
        self._held[socket] = key
        return True

    def leave(self, socket: HTTPConnection) -> None:
        """Give back the socket's place, where it has one."""
        key = self._held.pop(socket, None)
        if key is not None:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]


class Limits:
    """All limits of requests and sockets.

    Args:
        settings: of this installation.
        client: of Redis.
    """

    def __init__(self, settings: Api, client: redis.asyncio.Redis) -> None:
        budget = settings.budget_points, settings.budget_points_per_second
        self.strangers: Buckets[str] = Buckets(*budget)
        """What those may spend whom nobody knows, by address."""
        self._points = Budgets("points", *budget, client)
        self._requests = Budgets("requests", *_burst(settings.caller_requests_per_second), client)
        self._addresses: Buckets[str] = Buckets(*_burst(settings.address_requests_per_second))
        self._logins: Buckets[str] = Buckets(*_burst(settings.address_logins_per_second))
        self.failures = BackOff(_FREE_FAILURES)
        """Of whoever is at an address, and fails to prove who they are: by a password, or through a provider."""
        self.sockets_by_address: Places[str] = Places(settings.sockets_per_address)
        """Of those that have not said yet whose they are."""
        self.sockets_by_tenant: Places[UUID] = Places(settings.sockets_per_tenant)

    def admit(self, principal: Principal) -> Bucket:
        """Count a caller's request, and return the budget it is paid from.

        Raises:
            RateLimited: there were too many.
        """
        count(self._requests.caller(principal))
        return self._points.caller(principal)

    def meet(self, scope: Scope) -> None:
        """Count a request before anything is known of it but the address it comes from.

        Raises:
            RateLimited: there were too many.
        """
        path: str = scope["path"]
        if path.startswith("/auth/"):
            count(self._logins.of(address(scope)))
        elif not path.startswith(OPEN):
            count(self._addresses.of(address(scope)))

    async def close(self) -> None:
        """Tell what has not been told."""
        await asyncio.gather(self._points.close(), self._requests.close())


def count(*buckets: Bucket) -> None:
    """Count one request in all of these, or in none.

    Raises:
        RateLimited: there were too many.
    """
    if wait := max(bucket.wait(1) for bucket in buckets):
        raise RateLimited("Too many requests: wait a moment.", retry_after_seconds=wait)
    for bucket in buckets:
        bucket.pour(1)


def address(scope: Scope) -> str:
    """Whom a request comes from: of IPv6 the network, which is one household's or one server's."""
    host: str = scope["client"][0] if scope.get("client") else ""
    return _network(host) if ":" in host else host


@lru_cache(maxsize=1024)
def _network(host: str) -> str:
    try:
        return str(IPv6Network((host.partition("%")[0], 64), strict=False))
    except ValueError:
        return host


def _burst(rate: float) -> tuple[float, float]:
    return rate * _BURST_SECONDS, rate
