"""Batches: what the rows of a list need from another table is read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from strawberry.dataloader import DataLoader

from tasks.engine import models, runs

if TYPE_CHECKING:
    from schema.context import Context


class Loaders:
    """The batches of one request. They keep nothing: on a socket the same loader serves for hours."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.progress: DataLoader[UUID, models.RunProgress | None] = DataLoader(self._read_progress, cache=False)
        self.runs: DataLoader[UUID, models.Run | None] = DataLoader(self._read_runs, cache=False)

    async def _read_progress(self, keys: Sequence[UUID]) -> list[models.RunProgress | None]:
        found = await self._context.data.read(runs.progress_of, set(keys))
        return [found.get(key) for key in keys]

    async def _read_runs(self, keys: Sequence[UUID]) -> list[models.Run | None]:
        found = await self._context.data.read(runs.get_many, set(keys))
        return [found.get(key) for key in keys]
