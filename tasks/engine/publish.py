"""What the engine tells others over Redis, best effort, after its commits: bells and stream entries."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import redis
import redis.asyncio
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from tasks.engine.ledger import Change
from tasks.engine.lines import Candidate, Line
from tenants import names
from tenants.settings import Settings

log = structlog.get_logger(__name__)
_LONGEST_SECONDS = 31 * 86_400.0
_ENTRY_NOTICES = 100
"""How many notices go into one entry of a stream."""


@dataclass(frozen=True, slots=True)
class Bell:
    """Something waits that did not before.

    Args:
        line: where.
        candidate: what, if it is one run only: who hears it need not look.
    """

    line: Line
    candidate: Candidate | None = None

    def encode(self) -> bytes:
        """The bell as it goes over Redis."""
        named = () if self.candidate is None else (self.candidate.run.hex, self.candidate.rank.isoformat())
        return orjson.dumps((self.line.tenant.hex, *self.line[1:], *named))


@dataclass(frozen=True, slots=True)
class Ended:
    """A run has left its slot.

    Args:
        run: which one.
        fence: the fence it was released under.
        seconds: how long it held the slot; none, if it was not begun.
    """

    run: UUID
    fence: int
    seconds: float

    def encode(self) -> bytes:
        """The bell as it goes over Redis."""
        return orjson.dumps((self.run.hex, self.fence, self.seconds))


def heard(data: bytes) -> Bell | Ended | None:
    """The bell behind a message, or None for what is none."""
    try:
        match orjson.loads(data):
            case [str(tenant), str(queue), str(task), str() | None as key]:
                return Bell(_line(tenant, queue, task, key))
            case [str(tenant), str(queue), str(task), str() | None as key, str(run), str(rank)]:
                line = _line(tenant, queue, task, key)
                return Bell(line, Candidate(datetime.fromisoformat(rank).astimezone(UTC), UUID(run), line))
            case [str(run), int(fence), float() | int() as seconds] if 0 <= seconds < _LONGEST_SECONDS:
                return Ended(UUID(run), fence, float(seconds))
    except (ValueError, OverflowError):
        log.warning("bell_unreadable")
    return None


def _line(tenant: str, queue: str, task: str, key: str | None) -> Line:
    """
    Raises:
        ValueError: there can be no such line.
    """
    if any("\0" in name for name in (queue, task, key or "")):
        raise ValueError
    return Line(UUID(tenant), queue, task, key)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running run says it is."""

    tenant: UUID
    run: UUID
    sequence: int
    attempt: int
    current: float
    total: float | None
    message: str | None


Notice = Bell | Ended | Change | Progress


def add(pipeline: Any, notices: Iterable[Notice], stream_length: int) -> None:
    """Put notices on a pipeline, synchronous or not; what concerns one tenant in as few entries as there can be."""
    told: dict[UUID, list[dict[str, Any]]] = {}
    for notice in notices:
        if isinstance(notice, Bell | Ended):
            pipeline.publish(names.BELL, notice.encode())
        else:
            told.setdefault(notice.tenant, []).append(_shown(notice))
    for tenant, all_told in told.items():
        for first in range(0, len(all_told), _ENTRY_NOTICES):
            entry = orjson.dumps(all_told[first : first + _ENTRY_NOTICES])
            pipeline.xadd(names.stream(tenant), {b"u": entry}, maxlen=stream_length, approximate=True)


def _shown(notice: Change | Progress) -> dict[str, Any]:
    """A notice as it stands in an entry of the tenant's stream, whose field `u` is a list of them."""
    shown = {"r": notice.run, "s": notice.sequence, "a": notice.attempt}
    if isinstance(notice, Progress):
        return {"k": "P", **shown, "p": (notice.current, notice.total, notice.message)}
    return {"k": "C", **shown, "st": notice.state, "t": notice.at}


def connect(address: str, *, timeout_seconds: float) -> redis.Redis:
    """A synchronous client that gives up rather than wait: no retries, short timeouts."""
    return redis.Redis.from_url(
        address,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
    )


def connect_async(address: str, *, timeout_seconds: float, block_seconds: float = 0.0) -> redis.asyncio.Redis:
    """The same for asyncio.

    Args:
        block_seconds: how long a blocking command may take besides.
    """
    return redis.asyncio.Redis.from_url(
        address,
        socket_timeout=timeout_seconds + block_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
    )


def execute(pipeline: Any) -> bool:
    """Send what is on a synchronous pipeline, best effort; whether Redis answered."""
    try:
        pipeline.execute(raise_on_error=False)
    except (redis.RedisError, OSError) as error:
        log.warning("notice_lost", error=type(error).__name__)
        return False
    return True


def push(broker: redis.Redis, wanted: Sequence[tuple[str, bytes]]) -> list[str | None]:
    """Put messages into their queues, in one trip. What is wrong with each that the broker has refused."""
    pipeline = broker.pipeline(transaction=False)
    for queue, message in wanted:
        pipeline.lpush(queue, message)
    try:
        answers = pipeline.execute(raise_on_error=False)
    except (redis.RedisError, OSError) as error:
        answers = [error] * len(wanted)
    return [repr(answer) if isinstance(answer, Exception) else None for answer in answers]


def send(client: redis.Redis, notices: Iterable[Notice], stream_length: int) -> bool:
    """Send notices, best effort; whether Redis answered."""
    pipeline = client.pipeline(transaction=False)
    add(pipeline, notices, stream_length)
    return execute(pipeline)


class Bells:
    """Rings for the API, behind its back: what concurrent requests leave goes out together, no reply waits for it."""

    _GATHER_SECONDS = 0.005
    _PAUSE_SECONDS = 1.0
    _KEPT = 10_000

    def __init__(self, settings: Settings) -> None:
        self._stream_length = settings.redis.stream_length
        self._client = connect_async(settings.redis.api_address, timeout_seconds=settings.redis.bell_timeout_seconds)
        self._left: deque[Notice] = deque(maxlen=self._KEPT)
        self._wake = asyncio.Event()
        self._ringing: asyncio.Task[None] | None = None

    async def ring(self, notices: Sequence[object]) -> None:
        """Send soon what a committed transaction left. Never waits and never raises: the sweep repairs what is lost."""
        self._left.extend(notice for notice in notices if isinstance(notice, Notice))
        self._wake.set()
        if self._ringing is None:
            self._ringing = asyncio.create_task(self._ring())

    async def close(self) -> None:
        """Send what is left and close the connections."""
        if self._ringing is not None:
            self._ringing.cancel()
            await asyncio.gather(self._ringing, return_exceptions=True)
        await self._send()
        await self._client.aclose()

    async def _ring(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            # One bell goes out at once; those that follow within a moment go out together.
            await asyncio.sleep(self._GATHER_SECONDS if await self._send() else self._PAUSE_SECONDS)

    async def _send(self) -> bool:
        """Send all that is left in one pipeline; what Redis does not take within its time is lost."""
        if not self._left:
            return True
        pipeline = self._client.pipeline(transaction=False)
        add(pipeline, dict.fromkeys(self._left), self._stream_length)
        self._left.clear()
        try:
            await pipeline.execute(raise_on_error=False)
        except (redis.RedisError, OSError) as error:
            log.warning("notice_lost", error=type(error).__name__)
            return False
        return True
