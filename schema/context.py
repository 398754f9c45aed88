"""What a resolver may know of its request: the caller, the way to data, the batches, the live updates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

import strawberry

from schema.loaders import Loaders
from tenants.buckets import Bucket
from tenants.context import Principal, Scope
from tenants.errors import Unauthenticated
from tenants.settings import Settings

if TYPE_CHECKING:
    from tasks.engine.streams import Hub

T = TypeVar("T")


@dataclass(slots=True)
class Context:
    """One request, or one socket.

    Args:
        request_id: names the request in logs and in masked errors.
        settings: of this installation.
        scope: the caller's way to data; None for a stranger.
        suspended: whether the caller's tenant is suspended: it may read and change nothing.
        hub: the live updates of this process.
        end: waits until an open stream over HTTP must end and raises why; None on a socket.
        refusal: why the token or key was refused, where one was sent.
    """

    request_id: str
    settings: Settings
    hub: Hub
    budget: Bucket = field(init=False)
    """What operations are paid from, once it is known whose they are."""
    scope: Scope | None = None
    suspended: bool = False
    end: Callable[[], Coroutine[None, None, NoReturn]] | None = None
    refusal: Unauthenticated | None = None
    connection_params: dict[str, object] | None = None
    loaders: Loaders = field(init=False)

    def __post_init__(self) -> None:
        self.loaders = Loaders(self)

    @property
    def caller(self) -> Principal:
        """Who is asking.

        Raises:
            Unauthenticated: nobody who could be verified.
        """
        return self.data.principal

    @property
    def data(self) -> Scope:
        """The caller's way to data.

        Raises:
            Unauthenticated: nobody who could be verified.
        """
        if self.scope is None:
            raise self.refusal or Unauthenticated
        return self.scope

    async def live(self, updates: AsyncIterator[T]) -> AsyncIterator[T]:
        """The updates for as long as the token or key stands and this process serves.

        Raises:
            Unauthenticated, Unavailable: why they ended early.
        """
        if self.end is None:  # A socket: whoever serves it closes it.
            async for update in updates:
                yield update
            return
        ended = asyncio.create_task(self.end())
        try:
            while True:
                upcoming: asyncio.Future[Any] = asyncio.ensure_future(anext(updates, _OVER))
                try:
                    await asyncio.wait({upcoming, ended}, return_when=asyncio.FIRST_COMPLETED)
                    found = ended.result() if ended.done() else upcoming.result()
                finally:
                    await _stop(upcoming)
                if isinstance(found, _Over):
                    return
                yield found
        finally:
            await _stop(ended)


class _Over:
    """The end of the updates."""


_OVER = _Over()

Info: TypeAlias = strawberry.Info[Context, None]


async def _stop(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
