"""Batches: what the rows of a list need from another table is read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from strawberry.dataloader import DataLoader

from tasks.engine import models, runs

if TYPE_CHECKING:
    from schema.context import Context

_LARGE_AT_ONCE: Final = 25


class Loaders:
    """The batches of one request. They keep nothing: on a socket the same loader serves for hours."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.progress: DataLoader[UUID, models.RunProgress | None] = DataLoader(self._read_progress, cache=False)
        self.runs: DataLoader[UUID, models.Run | None] = DataLoader(self._read_runs, cache=False)

        self.args: DataLoader[UUID, Any] = DataLoader(self._read_args, cache=False, max_batch_size=_LARGE_AT_ONCE)
        self.results: DataLoader[UUID, Any] = DataLoader(self._read_results, cache=False, max_batch_size=_LARGE_AT_ONCE)

    async def _read_progress(self, keys: Sequence[UUID]) -> list[models.RunProgress | None]:
        found = await self._context.data.read(runs.progress_of, set(keys))
        return [found.get(key) for key in keys]

    async def _read_runs(self, keys: Sequence[UUID]) -> list[models.Run | None]:
        found = await self._context.data.read(runs.get_many, set(keys))
        return [found.get(key) for key in keys]

    async def _read_args(self, keys: Sequence[UUID]) -> list[Any]:
        found = await self._context.data.read(runs.args_of, set(keys))
        return [found.get(key) for key in keys]

    async def _read_results(self, keys: Sequence[UUID]) -> list[Any]:
        found = await self._context.data.read(runs.results_of, set(keys))
        return [found.get(key) for key in keys]
