"""Marks: rows that show how often something was done."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, Integer, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from tenants.db import Base, TenantRow
from tenants.models import Key, Moment


class Mark(TenantRow, Base):
    """One row for each time a run committed a write under the key."""

    __tablename__ = "diagnostics_marks"
    __table_args__ = (Index("ix_diagnostics_marks_tenant_id_key", "tenant_id", "key"),)

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    key: Mapped[str] = mapped_column(Text)
    value: Mapped[str] = mapped_column(Text)
    run_id: Mapped[UUID] = mapped_column(Key)
    attempt: Mapped[int] = mapped_column(Integer)
    at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())
