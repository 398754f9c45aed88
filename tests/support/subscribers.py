"""A subscriber that follows tenants through every fault, and comes back after each break as a client does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from tasks.engine import positions
from tasks.engine.feeds import Update
from tasks.engine.filters import RunFilter
from tasks.engine.streams import Hub
from tenants.context import Principal, Scope
from tenants.db import AsyncDatabase
from tenants.errors import TenantryError
from tests.support.installations import Installation

_PAUSE_SECONDS = 0.1


class Subscriber:
    """Follows all runs of its tenants in a thread of its own; what it is told stands in the installation's `told`."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._settings = installation.settings
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._following: list[asyncio.Task[None]] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._work(),), name="subscriber")
        self._thread.start()
        assert self._started.wait(20)

    def follow(self, tenant: Principal) -> None:
        """Follow a tenant, from now on and to the end."""
        asyncio.run_coroutine_threadsafe(self._begin(tenant), self._loop).result(20)

    def close(self) -> None:
        """Stop."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(20)
        self._loop.close()

    async def _work(self) -> None:
        self._database = AsyncDatabase(self._settings.database)
        self._hub = Hub(self._settings)
        self._hub.start()
        self._started.set()
        await self._ended.wait()
        for task in self._following:
            task.cancel()
        ends = await asyncio.gather(*self._following, return_exceptions=True)
        await self._hub.close()
        await self._database.close()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _begin(self, tenant: Principal) -> None:
        scope = Scope(tenant, self._database, _unheard)
        position = (await scope.read(positions.snapshot, RunFilter())).position
        cursor = positions.seal(self._settings.auth.token_keys, tenant.tenant, position)
        self._following.append(asyncio.create_task(self._follow(scope, cursor)))

    async def _follow(self, scope: Scope, cursor: str) -> None:
        while True:
            sent: dict[UUID, int] = {}
            try:
                async for update in self._hub.follow(scope, RunFilter(), cursor):
                    cursor = update.cursor
                    self._hear(scope.principal.tenant, update, sent)
            except (TenantryError, OSError):
                await asyncio.sleep(_PAUSE_SECONDS)

    def _hear(self, tenant: UUID, update: Update, sent: dict[UUID, int]) -> None:
        """Each change of a run is told once on a connection, and later than the one before it."""
        if update.run_id is None or update.kind == "PROGRESS":
            return
        assert update.sequence is not None
        assert update.state is not None
        assert update.sequence > sent.get(update.run_id, 0), f"run {update.run_id}: told {update} again"
        sent[update.run_id] = update.sequence
        self._installation.told[update.run_id] = (tenant, update.sequence, update.state)


async def _unheard(notices: list[object]) -> None:
    raise AssertionError(notices)


@contextmanager
def to(installation: Installation) -> Iterator[Subscriber]:
    """A subscriber to the installation, until the block ends."""
    made = Subscriber(installation)
    try:
        yield made
    finally:
        made.close()
