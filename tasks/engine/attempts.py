"""An attempt that has been claimed, and what its process works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from tasks.engine import publish
from tasks.engine.board import Board
from tasks.engine.ledger import Change, Ledger
from tasks.engine.states import RunState
from tasks.registry import TaskDefinition
from tenants.settings import Settings


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claimed attempt of a run."""

    tenant: UUID
    run: UUID
    fence: int
    definition: TaskDefinition[Any]
    number: int
    max_attempts: int
    sequence: int
    effects_of: UUID
    claimed_at: datetime

    @property
    def begun(self) -> Change:
        """The change of state that it began with."""
        return Change(self.tenant, self.run, RunState.RUNNING, self.sequence, self.number, self.claimed_at)


@dataclass(slots=True)
class Desk:
    """What one worker process works with."""

    settings: Settings
    ledger: Ledger
    engine: Engine
    board: Board
    slot: Callable[[], int]
    """The board's slot of the calling child or thread."""
    send: Callable[[list[publish.Notice]], None]
    """Publish best effort."""
    system_engine: Engine | None = None
    """The cross-tenant door, on a worker that serves operators."""
