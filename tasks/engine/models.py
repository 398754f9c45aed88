"""The tables of a run. The hot columns are written by the functions in `sql/`, the rest through the ORM."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from tasks.engine.admission import LimitKind
from tasks.engine.states import RunState
from tenants.db import Base, TenantRow
from tenants.models import Key, Moment, Xid8

_STATES = ", ".join(f"'{state}'" for state in RunState)
_KINDS = ", ".join(f"'{kind}'" for kind in LimitKind)
_BY_ID = "RANGE (id)"
_BY_RUN = "RANGE (run_id)"


class Run(TenantRow, Base):
    """One accepted piece of work."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(f"state IN ({_STATES})", name="state"),
        CheckConstraint("priority BETWEEN 0 AND 9", name="priority"),
        Index(
            "ix_runs_queued",
            "tenant_id",
            "queue",
            "task",
            text("coalesce(concurrency_key, '')"),
            "rank",
            postgresql_where=text("state = 'QUEUED'"),
        ),
        Index("ix_runs_scheduled", "available_at", postgresql_where=text("state = 'SCHEDULED'")),
        Index("ix_runs_delayed", "tenant_id", "available_at", postgresql_where=text("state = 'SCHEDULED'")),
        Index("ix_runs_effects_of", "tenant_id", "effects_of", postgresql_where=text("effects_of IS NOT NULL")),
        Index("ix_runs_released", "released_at", postgresql_where=text("state = 'RELEASED'")),
        Index("ix_runs_waiting", "tenant_id", "wait_event", postgresql_where=text("state = 'WAITING'")),
        Index("ix_runs_by_state", "tenant_id", "state", "id"),
        Index("ix_runs_by_task", "tenant_id", "task", "id"),
        Index(
            "ix_runs_dead",
            "tenant_id",
            "fingerprint",
            "id",
            postgresql_include=["finished_at"],
            postgresql_where=text("fingerprint IS NOT NULL AND retried_by IS NULL"),
        ),
        {"postgresql_partition_by": _BY_ID},
    )

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    task: Mapped[str] = mapped_column(Text)
    queue: Mapped[str] = mapped_column(Text)
    args: Mapped[dict[str, Any]] = mapped_column(JSONB)
    priority: Mapped[int] = mapped_column(SmallInteger)
    rank: Mapped[datetime] = mapped_column(Moment)
    """When its turn comes: available_at less the head start of its priority."""
    state: Mapped[str] = mapped_column(Text)
    sequence: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    """Grows with every change of state."""
    attempt: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    """Grows at every claim; a snooze gives it back."""
    max_attempts: Mapped[int] = mapped_column(Integer)
    fence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Grows at every release and every rescue; what carries an older one is refused."""
    crashes: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    concurrency_key: Mapped[str | None] = mapped_column(Text)
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    actor_kind: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(Text)
    schedule_id: Mapped[UUID | None] = mapped_column(Key)
    nominal_at: Mapped[datetime | None] = mapped_column(Moment)
    origin_id: Mapped[UUID | None] = mapped_column(Key)
    """The run that this one repeats."""
    effects_of: Mapped[UUID | None] = mapped_column(Key)
    """The run whose effects outside it shares: what that one did is not done again."""
    retry_until: Mapped[datetime | None] = mapped_column(Moment)
    """No attempt after a failed one begins later."""
    trace: Mapped[str | None] = mapped_column(Text)
    wait_event: Mapped[str | None] = mapped_column(Text)
    result: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    worker_seconds: Mapped[float] = mapped_column(Double, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())
    available_at: Mapped[datetime] = mapped_column(Moment)
    released_at: Mapped[datetime | None] = mapped_column(Moment)
    started_at: Mapped[datetime | None] = mapped_column(Moment)
    finished_at: Mapped[datetime | None] = mapped_column(Moment)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(Moment)
    fingerprint: Mapped[UUID | None] = mapped_column(Key)
    """Of a dead letter: the group it belongs to."""
    retried_by: Mapped[UUID | None] = mapped_column(Key)
    """The run that repeats this one: nobody need look at it any more."""


class RunEvent(TenantRow, Base):
    """One change of a run's state: append-only, the truth behind the streams."""

    __tablename__ = "run_events"
    __table_args__ = (Index("ix_run_events_tenant_id_xid", "tenant_id", "xid"), {"postgresql_partition_by": _BY_RUN})

    run_id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True)
    state: Mapped[str] = mapped_column(Text)
    attempt: Mapped[int] = mapped_column(Integer)
    at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())
    note: Mapped[str | None] = mapped_column(Text)
    xid: Mapped[int] = mapped_column(Xid8, server_default=func.pg_current_xact_id())
    """The transaction that wrote it: what a reader's cursor is compared with."""


class RunStep(TenantRow, Base):
    """A named step that has been committed, and the value it returned."""

    __tablename__ = "run_steps"
    __table_args__ = ({"postgresql_partition_by": _BY_RUN},)

    run_id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    step: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[Any | None] = mapped_column(JSONB)
    fence: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())


class RunProgress(TenantRow, Base):
    """How far a run says it is; at most once a second."""

    __tablename__ = "run_progress"
    __table_args__ = ({"postgresql_partition_by": _BY_RUN},)

    run_id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    current: Mapped[float] = mapped_column(Double)
    total: Mapped[float | None] = mapped_column(Double)
    message: Mapped[str | None] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())


class RunLease(TenantRow, Base):
    """The claim of a worker on a run, for as long as it is renewed. Narrow: renewing never waits for a task."""

    __tablename__ = "run_leases"
    __table_args__ = (Index("ix_run_leases_expires_at", "expires_at"),)

    run_id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger)
    queue: Mapped[str] = mapped_column(Text)
    worker: Mapped[str] = mapped_column(Text)
    token: Mapped[UUID] = mapped_column(Key)
    """The call that claimed it."""
    expires_at: Mapped[datetime] = mapped_column(Moment)
    deadline_at: Mapped[datetime] = mapped_column(Moment)
    cancel: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))


class IdempotencyKey(TenantRow, Base):
    """A caller's key, and the run it stands for."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_expires_at", "expires_at"),)

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    run_id: Mapped[UUID] = mapped_column(Key)
    digest: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime] = mapped_column(Moment)


class Effect(TenantRow, Base):
    """Something done outside: the row before the call, the answer after it."""

    __tablename__ = "effects"

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    run_id: Mapped[UUID] = mapped_column(Key)
    fence: Mapped[int] = mapped_column(BigInteger)
    token: Mapped[UUID] = mapped_column(Key)
    """The call that made the row."""
    confirmed: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    answer: Mapped[Any | None] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())


class Limit(TenantRow, Base):
    """What a tenant's runs are held down to; everything that it names must match."""

    __tablename__ = "limits"
    __table_args__ = (
        CheckConstraint(f"kind IN ({_KINDS})", name="kind"),
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        UniqueConstraint("tenant_id", "name", "kind"),
    )

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    amount: Mapped[float] = mapped_column(Double)
    per_seconds: Mapped[float | None] = mapped_column(Double)
    burst: Mapped[float | None] = mapped_column(Double)
    task: Mapped[str | None] = mapped_column(Text)
    queue: Mapped[str | None] = mapped_column(Text)
    concurrency_key: Mapped[str | None] = mapped_column(Text)
    actor_kind: Mapped[str] = mapped_column(Text)
    """Who set it: what an operator has set only operators change."""
    actor: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())


class LimitState(TenantRow, Base):
    """How far a rate is used: when the next start would come at its steady pace, in seconds since 1970."""

    __tablename__ = "limit_states"

    limit_id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    """The concurrency key, where the rate is kept for each; else empty."""
    arrival: Mapped[float] = mapped_column(Double)


WHOLE = ""
"""As a pause's task: all of them."""


class Pause(TenantRow, Base):
    """What must not start, or must not be accepted any more: a task, or where it names none, all of the tenant's."""

    __tablename__ = "pauses"
    __table_args__ = (ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),)

    task: Mapped[str] = mapped_column(Text, primary_key=True)
    draining: Mapped[bool] = mapped_column(Boolean)
    """Nothing new is accepted, but what was accepted still runs."""
    note: Mapped[str | None] = mapped_column(Text)
    actor_kind: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())


class BulkAction(TenantRow, Base):
    """One action on many runs, carried out by the dispatcher in portions."""

    __tablename__ = "bulk_actions"
    __table_args__ = (
        CheckConstraint("kind IN ('CANCEL', 'RETRY')", name="kind"),
        Index("ix_bulk_actions_open", "advanced_at", postgresql_where=text("finished_at IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    actor_kind: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(Text)
    pending: Mapped[list[UUID]] = mapped_column(ARRAY(Key), deferred=True)
    """The runs it found when it was made; none once it is finished. What a portion can't have yet comes once more."""
    position: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    """How many of them have had their turn."""
    total: Mapped[int] = mapped_column(Integer)
    done: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    failed: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())
    advanced_at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())
    finished_at: Mapped[datetime | None] = mapped_column(Moment)


class Worker(Base):
    """A worker process, as it last reported. Of no tenant."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    queues: Mapped[list[str]] = mapped_column(ARRAY(Text))
    slots: Mapped[int] = mapped_column(Integer)
    tasks: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """The tasks that its code knows; None where it does not tell."""
    running: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    started_at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())
    last_seen: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())
    last_claim: Mapped[datetime | None] = mapped_column(Moment)


class DispatcherLeader(Base):
    """Who releases the runs of a shard; the epoch grows whenever another takes over. Of no tenant."""

    __tablename__ = "dispatcher_leader"

    shard: Mapped[str] = mapped_column(Text, primary_key=True)
    epoch: Mapped[int] = mapped_column(BigInteger)
    holder: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime] = mapped_column(Moment)
