"""One answer for all who ask at about the same time, where nobody is told to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")
_SECONDS: Final = 1.0


class Shared(Generic[T]):
    """What was found within the last second, or is being found, or is looked for now.

    Args:
        find: finds it.
    """

    def __init__(self, find: Callable[[], Awaitable[T]]) -> None:
        self._find = find
        self._finding: asyncio.Task[T] | None = None
        self._until = 0.0

    async def get(self) -> T:
        """The answer, which may be a second old."""
        if self._finding is None or (self._finding.done() and asyncio.get_running_loop().time() >= self._until):
            self._finding = asyncio.create_task(self._look())
        return await asyncio.shield(self._finding)  # Who asks no longer doesn't stop it for the others.

    async def _look(self) -> T:
        try:
            return await self._find()
        finally:
            self._until = asyncio.get_running_loop().time() + _SECONDS
