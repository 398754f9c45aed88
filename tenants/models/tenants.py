"""Tenants, plans, keys, credentials, the audit log, refused messages."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Date,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    Text,
    func,
    text,
)
from sqlalchemy import Identity as Numbered
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.dialects.postgresql import UUID as PgUUID
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from tenants.db import Base, TenantRow

Moment = TIMESTAMP(timezone=True)
Key = PgUUID(as_uuid=True)


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


class Tenant(Base):
    """One customer organisation; its row is its own tenant's."""

    __tablename__ = "tenants"
    __table_args__ = (
        CheckConstraint(r"slug ~ '^[a-z_][a-z0-9_-]{0,62}$'", name="slug"),
        Index("ix_tenants_changed", "changed"),
    )

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    slug: Mapped[str] = mapped_column(Text, unique=True)
    name: Mapped[str] = mapped_column(Text)
    timezone: Mapped[str] = mapped_column(Text, server_default="UTC")
    plan: Mapped[str] = mapped_column(Text, ForeignKey("plans.name"), server_default="standard")
    quotas: Mapped[dict[str, float | None]] = mapped_column(JSONB, server_default=text("'{}'"))
    """Its own in place of the plan's; null where it has no limit although the plan has one."""
    sso_only: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether its members, but for owners, log in through an identity provider only."""
    suspended_at: Mapped[datetime | None] = mapped_column(Moment)
    erasing_since: Mapped[datetime | None] = mapped_column(Moment)
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())
    changed: Mapped[int] = mapped_column(Xid8, server_default=func.pg_current_xact_id())
    """The transaction that last changed what the dispatcher goes by: this row, a limit, a pause."""


class Plan(Base):
    """What tenants of a plan may use. The operators' table: others read it."""

    __tablename__ = "plans"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    quotas: Mapped[dict[str, float | None]] = mapped_column(JSONB)
    """By name; what is missing has no limit."""
    changed_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())


class Usage(TenantRow, Base):
    """What a tenant has used in a month; and whether it was told that it nears a quota."""

    __tablename__ = "usage"
    __table_args__ = (ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),)

    period: Mapped[date] = mapped_column(Date, primary_key=True)
    """The first day of the month, in UTC."""
    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    amount: Mapped[float] = mapped_column(Double, server_default=text("0"))
    """Nothing for quotas of what there is and not of what is used up."""
    alarmed_at: Mapped[datetime | None] = mapped_column(Moment)


class UsageEntry(TenantRow, Base):
    """Something a tenant has used that has not been added to its figures yet. Without a reference, which costs."""

    __tablename__ = "usage_entries"

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    period: Mapped[date] = mapped_column(Date, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, Numbered(), primary_key=True)
    amount: Mapped[float] = mapped_column(Double)
    xid: Mapped[int] = mapped_column(Xid8, server_default=func.pg_current_xact_id())


class TenantFamily(TenantRow, Base):
    """A family that a tenant has switched on."""

    __tablename__ = "tenant_families"
    __table_args__ = (ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),)

    family: Mapped[str] = mapped_column(Text, primary_key=True)
    enabled_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())


class ApiKey(TenantRow, Base):
    """An integration's credential: only a keyed hash of the secret is stored."""

    __tablename__ = "api_keys"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["tenant_id", "predecessor_id"], ["api_keys.tenant_id", "api_keys.id"]),
        Index("uq_api_keys_secret_hash", "secret_hash", unique=True),
        Index("uq_api_keys_predecessor", "tenant_id", "predecessor_id", unique=True),
    )

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    prefix: Mapped[str] = mapped_column(Text)
    secret_hash: Mapped[str] = mapped_column(Text)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    task_names: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    made_by: Mapped[UUID | None] = mapped_column(Key)
    """The member who made it, whose leaving ends it; None for an operator."""
    address_ranges: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """The only addresses it is taken from, in CIDR form; None for all."""
    predecessor_id: Mapped[UUID | None] = mapped_column(Key)
    """The key that this one replaces."""
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())
    expires_at: Mapped[datetime | None] = mapped_column(Moment)
    last_used_at: Mapped[datetime | None] = mapped_column(Moment)
    revoked_at: Mapped[datetime | None] = mapped_column(Moment)


class AuditEntry(TenantRow, Base):
    """What somebody did in the tenant. Its position and its hash come with the seal."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        Index("uq_audit_entries_position", "tenant_id", "position", unique=True),
        Index("ix_audit_entries_unsealed", "tenant_id", "xid", "id", postgresql_where=text("position IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())
    actor_kind: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    target: Mapped[str | None] = mapped_column(Text)
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB)
    xid: Mapped[int] = mapped_column(Xid8, server_default=func.pg_current_xact_id())
    position: Mapped[int | None] = mapped_column(BigInteger)
    hash: Mapped[bytes | None] = mapped_column(LargeBinary)


class Credential(TenantRow, Base):
    """A secret of one of the tenant's providers, encrypted for this tenant and this name."""

    __tablename__ = "credentials"
    __table_args__ = (ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),)

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    key_id: Mapped[str] = mapped_column(Text)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())
    changed_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())


class RefusedMessage(Base):
    """A broker message that no grant vouched for. Of no tenant: its claims are not believed."""

    __tablename__ = "refused_messages"

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    at: Mapped[datetime] = mapped_column(Moment, server_default=func.now(), index=True)
    reason: Mapped[str] = mapped_column(Text)
    queue: Mapped[str] = mapped_column(Text)
    worker: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(Text)


class RefusedCount(Base):
    """How many messages have been refused for a reason, ever. Of no tenant."""

    __tablename__ = "refused_counts"

    reason: Mapped[str] = mapped_column(Text, primary_key=True)
    total: Mapped[int] = mapped_column(BigInteger)
