"""Live updates of runs for the subscribers of one API process: one reader for all, the ledger for what it missed.

A subscriber follows first, then gets the snapshot, then what changed, each run in the order of `sequence`. What Redis
lost or brought in another order is filled in from the ledger's events.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import redis
import structlog

from tasks.engine import positions, publish
from tasks.engine.feeds import Feed, Pending, Subscriber, Update, UpdateKind
from tasks.engine.filters import RunFilter
from tasks.engine.positions import Position
from tasks.engine.states import TERMINAL
from tenants import names
from tenants.context import Scope
from tenants.errors import TenantryError
from tenants.settings import Settings

log = structlog.get_logger(__name__)
_POLL_SECONDS = 2.0
_POLLS = 8
"""How many tenants' polls ask the ledger at once."""
_MOST_MISSED = 10_000
"""Events that are made up for after a break: a client that missed more begins anew."""
_BLOCK_MILLISECONDS = 1000
_BATCH = 1000
_RETRY_SECONDS = 0.5


class Hub:
    """The live updates of one API process: one connection to Redis, however many subscribers there are."""

    def __init__(self, settings: Settings) -> None:
        self._ring = settings.auth.token_keys
        self._oldest_seconds = settings.engine.retention_days * 86_400
        self._client = publish.connect_async(
            settings.redis.api_address,
            timeout_seconds=settings.redis.timeout_seconds,
            block_seconds=_BLOCK_MILLISECONDS / 1000,
        )
        self._feeds: dict[UUID, Feed] = {}
        self._changed = asyncio.Event()
        self._polls = asyncio.Semaphore(_POLLS)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to read."""
        self._run(self._read())

    async def close(self) -> None:
        """Stop reading."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def follow(self, scope: Scope, wanted: UUID | RunFilter, after: str | None = None) -> AsyncIterator[Update]:
        """The updates of one run, until it has ended; or of all runs that match.

        Args:
            wanted: a run's id, or a filter.
            after: the cursor of the last update received, to go on from there.

        Raises:
            NotFound: there is no such run.
            InvalidInput: the cursor is not one of this stream.
        """
        subscriber = Subscriber(wanted)
        tenant = scope.principal.tenant
        position = None
        if after is not None:
            position = positions.unseal(self._ring, tenant, after, self._oldest_seconds)
        feed = self._feeds.get(tenant)
        new = feed is None
        if feed is None:
            feed = self._feeds[tenant] = Feed(scope)
        # Follow before the snapshot is taken, so that nothing falls between the two.
        feed.add(subscriber)
        feed.scope = scope
        try:
            if new:
                await self._open(tenant, feed)
            async for update in self._begin(scope, subscriber, position, reset=after is not None):
                yield update
            while not self._over(subscriber):
                await subscriber.ready.wait()
                async for update in self._drain(scope, subscriber):
                    yield update
        finally:
            feed.remove(subscriber)
            if feed.empty() and self._feeds.get(tenant) is feed:
                del self._feeds[tenant]

    async def _open(self, tenant: UUID, feed: Feed) -> None:
        """Begin to read for a tenant that had no subscriber before."""
        self._run(self._poll(tenant, feed))
        with contextlib.suppress(redis.RedisError, OSError):
            newest: Any = await self._client.xrevrange(names.stream(tenant), count=1)
            feed.last_id = newest[0][0].decode() if newest else "0"
        self._changed.set()

    async def _begin(
        self, scope: Scope, subscriber: Subscriber, position: Position | None, *, reset: bool
    ) -> AsyncIterator[Update]:
        """A snapshot, or what came since the client's cursor."""
        found = await scope.read(positions.snapshot, subscriber.wanted)
        feed = self._feeds[scope.principal.tenant]
        feed.position = feed.position or found.position
        if position is not None and position.database == found.position.database:
            missed = await scope.read(positions.since, position, most=_MOST_MISSED)
            reset = missed.rest is not None
            if not reset and subscriber.awaits(missed.events):
                subscriber.safe, subscriber.reached = position, missed.upto
                for event in missed.events:
                    subscriber.put(event)
                async for update in self._drain(scope, subscriber, resumed=True):
                    yield update
                for run in found.runs:
                    subscriber.seen.setdefault(run.id, (run.sequence, run.state, run.attempt))
                return
        subscriber.safe = subscriber.reached = found.position
        cursor = self._seal(scope, found.position)
        if reset:
            yield Update(UpdateKind.RESET, cursor, datetime.now(UTC))
        for update in self._shown(subscriber, found, cursor):
            yield update

    def _shown(self, subscriber: Subscriber, found: positions.Snapshot, cursor: str) -> list[Update]:
        now = datetime.now(UTC)
        updates = []
        for run in found.runs:
            subscriber.seen[run.id] = (run.sequence, run.state, run.attempt)
            told = found.progress.get(run.id)
            progress = None if told is None else (told.current, told.total, told.message)
            updates.append(
                Update(UpdateKind.SNAPSHOT, cursor, now, run.id, run.sequence, run.state, run.attempt, progress)
            )
        return updates

    async def _drain(self, scope: Scope, subscriber: Subscriber, *, resumed: bool = False) -> AsyncIterator[Update]:
        """What waits, each run in order and without a gap; from the ledger, page by page, what had no room to wait."""
        taken, reached = subscriber.take()
        for update in await self._updates(scope, subscriber, taken, resumed=resumed):
            yield update
        if reached is None:
            assert subscriber.safe is not None
            page = None
            while page is None or page.rest is not None:
                page = await scope.read(positions.since, subscriber.safe, page)
                for update in await self._updates(scope, subscriber, subscriber.pick(page.events), resumed=False):
                    yield update
            reached = subscriber.reached = page.upto
        subscriber.safe = reached
        subscriber.forget_ended()

    async def _updates(
        self, scope: Scope, subscriber: Subscriber, taken: dict[UUID, Pending], *, resumed: bool
    ) -> list[Update]:
        assert subscriber.safe is not None
        cursor = self._seal(scope, subscriber.safe)
        await self._admit(scope, subscriber, taken, resumed=resumed)
        await self._fill(scope, subscriber, taken)
        updates: list[Update] = []
        for run, pending in taken.items():
            if run in subscriber.seen:
                updates += _in_order(subscriber, run, pending, cursor)
        return updates

    async def _admit(self, scope: Scope, subscriber: Subscriber, taken: dict[UUID, Pending], *, resumed: bool) -> None:
        """Which of the runs not sent so far match the filter; they are sent from their first change on, or from now."""
        if isinstance(subscriber.wanted, UUID):
            subscriber.seen.setdefault(subscriber.wanted, (_first(taken.get(subscriber.wanted)), "", 0))
            return
        unknown = [run for run, pending in taken.items() if run not in subscriber.seen and pending.events]
        if not unknown:
            return
        fitting = set(unknown)
        if subscriber.wanted != RunFilter():
            fitting = await scope.read(positions.fitting, unknown, subscriber.wanted)
        for run in fitting:
            first = _first(taken[run])
            subscriber.seen[run] = (first if resumed or subscriber.wanted.states else 0, "", 0)

    async def _fill(self, scope: Scope, subscriber: Subscriber, taken: dict[UUID, Pending]) -> None:
        """Read from the ledger what is missing between the last change sent and the newest one heard of."""
        gaps = []
        for run, pending in taken.items():
            if run in subscriber.seen and pending.events:
                after = subscriber.seen[run][0]
                have = {event.sequence for event in pending.events}
                if any(sequence not in have for sequence in range(after + 1, pending.newest + 1)):
                    gaps.append((run, after, pending.newest))
        if gaps:
            for event in await scope.read(positions.between, gaps):
                taken[event.run].events.append(event)

    def _seal(self, scope: Scope, position: Position) -> str:
        return positions.seal(self._ring, scope.principal.tenant, position)

    def _over(self, subscriber: Subscriber) -> bool:
        """A single run's updates end with its end."""
        if not isinstance(subscriber.wanted, UUID):
            return False
        return subscriber.seen.get(subscriber.wanted, (0, "", 0))[1] in TERMINAL

    async def _read(self) -> None:
        """Follow the streams of all tenants that have subscribers; begin anew when there is another."""
        while True:
            if not self._feeds:
                await self._changed.wait()
            self._changed.clear()
            turn = [asyncio.ensure_future(self._read_once()), asyncio.ensure_future(self._changed.wait())]
            try:
                await asyncio.wait(turn, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in turn:
                    task.cancel()
                read, _ = await asyncio.gather(*turn, return_exceptions=True)
            if isinstance(read, redis.RedisError | OSError):
                log.warning("stream_not_read", error=type(read).__name__)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _read_once(self) -> None:
        feeds = {names.stream(tenant).encode(): feed for tenant, feed in self._feeds.items() if feed.readable}
        if not feeds:
            await self._changed.wait()
            return
        wanted: dict[Any, Any] = {name: feed.last_id for name, feed in feeds.items()}
        try:
            answer: Any = await self._client.xread(wanted, count=_BATCH, block=_BLOCK_MILLISECONDS)
        except redis.ResponseError:
            await self._leave_out(feeds)
            raise
        for name, entries in answer.items() if isinstance(answer, dict) else answer or []:
            feed = feeds[name]
            for entry_id, fields in _entries(entries):
                feed.last_id = entry_id.decode()
                feed.hear(fields.get(b"u", b""))

    async def _leave_out(self, feeds: dict[bytes, Feed]) -> None:
        """One key that is no stream fails the reading of all: its tenant's updates come from the ledger alone."""
        for name, feed in feeds.items():
            if await self._client.type(name) not in (b"stream", b"none"):
                feed.readable = False
                log.error("stream_is_none", key=name.decode())

    async def _poll(self, tenant: UUID, feed: Feed) -> None:
        """Ask the ledger, now and then, for what Redis may have lost, for as long as the tenant has subscribers."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if self._feeds.get(tenant) is not feed:
                return
            if feed.position is None:
                continue
            page = None
            try:
                while page is None or page.rest is not None:
                    async with self._polls:
                        page = await feed.scope.read(positions.since, feed.position, page)
                    feed.put(page.events)
                feed.reach(page.upto)
            except (TenantryError, OSError) as error:
                log.warning("ledger_not_read", error=type(error).__name__)
            except Exception:
                log.exception("ledger_not_read")

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _in_order(subscriber: Subscriber, run: UUID, pending: Pending, cursor: str) -> list[Update]:
    """One run's updates that follow on what was sent; its progress within the state that it belongs to."""
    updates = _progress(subscriber, run, pending, cursor)
    for event in sorted(pending.events, key=lambda event: event.sequence):
        if event.sequence == subscriber.seen[run][0] + 1:
            subscriber.seen[run] = (event.sequence, event.state, event.attempt)
            updates.append(Update(UpdateKind.CHANGE, cursor, event.at, run, event.sequence, event.state, event.attempt))
            updates += _progress(subscriber, run, pending, cursor)
    return updates


def _progress(subscriber: Subscriber, run: UUID, pending: Pending, cursor: str) -> list[Update]:
    sequence, state, attempt = subscriber.seen[run]
    if pending.progress is None or pending.during != sequence:
        return []
    now = datetime.now(UTC)
    return [Update(UpdateKind.PROGRESS, cursor, now, run, sequence, state, attempt, pending.progress, pending.merged)]


def _first(pending: Pending | None) -> int:
    """The sequence before the first one that waits."""
    if pending is None or not pending.events:
        return 0
    return min(event.sequence for event in pending.events) - 1


def _entries(found: Any) -> Any:
    """The entries of one stream; redis-py nests them once more under RESP 3."""
    return found[0] if found and isinstance(found[0], list) and found[0] and isinstance(found[0][0], tuple) else found
