"""Reports and exports that were stored for the tenant, until they expire."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from tasks.families.sales.models import StoredFile
from tenants import ids

REPORT_DAYS = 400
EXPORT_DAYS = 7


def record(
    session: Session, *, name: str, path: str, media_type: str, size: int, now: datetime, days: int
) -> StoredFile:
    """Note a file that was put into the object storage.

    Args:
        name: what people see.
        path: where it stands.
        size: in bytes.
        days: how long it is kept.
    """
    found = StoredFile(
        id=ids.new(),
        name=name,
        path=path,
        media_type=media_type,
        size=size,
        created_at=now,
        expires_at=now + timedelta(days=days),
    )
    session.add(found)
    return found


def recent(session: Session, limit: int = 100) -> list[StoredFile]:
    """The files there are, the newest first."""
    return list(session.scalars(select(StoredFile).order_by(StoredFile.id.desc()).limit(limit)))


def expired(session: Session, now: datetime) -> list[StoredFile]:
    """The files that have expired."""
    return list(session.scalars(select(StoredFile).where(StoredFile.expires_at <= now).order_by(StoredFile.id)))


def forget(session: Session, found: list[UUID]) -> None:
    """Remove the notes of files that were removed from the storage."""
    session.execute(delete(StoredFile).where(StoredFile.id.in_(found)))


def show_id(found: StoredFile) -> str:
    """The file's outside id, `sfl_…`."""
    return ids.show("sfl", found.id)
