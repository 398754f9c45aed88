"""Marks, and what a run can see."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tasks.families.diagnostics.models import Mark
from tenants import ids


def mark(session: Session, key: str, value: str, run: UUID, attempt: int) -> None:
    """Append one mark."""
    session.add(Mark(id=ids.new(), key=key, value=value, run_id=run, attempt=attempt))
    session.flush()


def count(session: Session, key: str) -> int:
    """How many marks there are under the key."""
    return session.scalar(select(func.count()).select_from(Mark).where(Mark.key == key)) or 0
