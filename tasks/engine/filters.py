"""Which runs are meant."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select

from tasks.engine.models import Run
from tasks.engine.states import RunState


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs; what is None is not asked."""

    ids: Collection[UUID] | None = None
    task_name: str | None = None
    family: str | None = None
    states: Collection[RunState] | None = None
    schedule_id: UUID | None = None
    concurrency_key: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    dead_letter_group: UUID | None = None
    """Its open dead letters."""


def matching(query: Select[Any], wanted: RunFilter) -> Select[Any]:
    """The query for those runs only that match the filter."""
    if wanted.ids is not None:
        query = query.where(Run.id.in_(wanted.ids))
    if wanted.task_name is not None:
        query = query.where(Run.task == wanted.task_name)
    if wanted.family is not None:
        query = query.where(Run.task.startswith(f"{wanted.family}.", autoescape=True))
    if wanted.states is not None:
        query = query.where(Run.state.in_([str(state) for state in wanted.states]))
    if wanted.schedule_id is not None:
        query = query.where(Run.schedule_id == wanted.schedule_id)
    if wanted.concurrency_key is not None:
        query = query.where(Run.concurrency_key == wanted.concurrency_key)
    if wanted.created_after is not None:
        query = query.where(Run.created_at > wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(Run.created_at < wanted.created_before)
    if wanted.dead_letter_group is not None:
        query = query.where(Run.fingerprint == wanted.dead_letter_group, Run.retried_by.is_(None))
    return query
