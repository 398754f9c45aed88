"""Runs, their events, steps, progress and leases; keys, effects, workers, the dispatcher."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import rls

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = postgresql.TIMESTAMP(timezone=True)
PARTITIONED = ("runs", "run_events", "run_steps", "run_progress")
SHOWN = (
    "tenant_id, id, task, queue, priority, rank, state, sequence, attempt, max_attempts, fence, crashes,"
    " concurrency_key, schedule_id, nominal_at, created_at, available_at, released_at, started_at, finished_at,"
    " cancel_requested_at, worker_seconds"
)
"""What the system login sees of a run: no arguments, no results, no errors."""


class Xid8(sa.types.UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "runs",
        rls.tenant_column(),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("args", postgresql.JSONB(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("rank", MOMENT, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("crashes", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("concurrency_key", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("schedule_id", sa.UUID(), nullable=True),
        sa.Column("nominal_at", MOMENT, nullable=True),
        sa.Column("origin_id", sa.UUID(), nullable=True),
        sa.Column("trace", sa.Text(), nullable=True),
        sa.Column("wait_event", sa.Text(), nullable=True),
        sa.Column("result", postgresql.JSONB(), nullable=True),
        sa.Column("error", postgresql.JSONB(), nullable=True),
        sa.Column("worker_seconds", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("available_at", MOMENT, nullable=False),
        sa.Column("released_at", MOMENT, nullable=True),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("cancel_requested_at", MOMENT, nullable=True),
        sa.CheckConstraint(
            "state IN ('SCHEDULED', 'QUEUED', 'RELEASED', 'RUNNING', 'WAITING', 'SUCCEEDED', 'FAILED', 'CANCELLED',"
            " 'TIMED_OUT')",
            name=op.f("ck_runs_state"),
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 9", name=op.f("ck_runs_priority")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_runs")),
        postgresql_partition_by="RANGE (id)",
    )
    op.create_index("ix_runs_by_state", "runs", ["tenant_id", "state", "id"], unique=False)
    op.create_index("ix_runs_by_task", "runs", ["tenant_id", "task", "id"], unique=False)
    op.create_index(
        "ix_runs_queued",
        "runs",
        ["tenant_id", "queue", "rank"],
        unique=False,
        postgresql_where=sa.text("state = 'QUEUED'"),
    )
    op.create_index(
        "ix_runs_released", "runs", ["released_at"], unique=False, postgresql_where=sa.text("state = 'RELEASED'")
    )
    op.create_index(
        "ix_runs_scheduled", "runs", ["available_at"], unique=False, postgresql_where=sa.text("state = 'SCHEDULED'")
    )
    op.create_index(
        "ix_runs_waiting",
        "runs",
        ["tenant_id", "wait_event"],
        unique=False,
        postgresql_where=sa.text("state = 'WAITING'"),
    )
    op.create_table(
        "run_events",
        rls.tenant_column(),
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "run_id", "sequence", name=op.f("pk_run_events")),
        postgresql_partition_by="RANGE (run_id)",
    )
    op.create_index("ix_run_events_tenant_id_xid", "run_events", ["tenant_id", "xid"], unique=False)
    op.create_table(
        "run_steps",
        rls.tenant_column(),
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("value", postgresql.JSONB(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("at", MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "run_id", "step", name=op.f("pk_run_steps")),
        postgresql_partition_by="RANGE (run_id)",
    )
    op.create_table(
        "run_progress",
        rls.tenant_column(),
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("current", sa.Double(), nullable=False),
        sa.Column("total", sa.Double(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("at", MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "run_id", name=op.f("pk_run_progress")),
        postgresql_partition_by="RANGE (run_id)",
    )
    op.create_table(
        "run_leases",
        rls.tenant_column(),
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("token", sa.UUID(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("deadline_at", MOMENT, nullable=False),
        sa.Column("cancel", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "run_id", name=op.f("pk_run_leases")),
    )
    op.create_index("ix_run_leases_expires_at", "run_leases", ["expires_at"], unique=False)
    op.create_table(
        "idempotency_keys",
        rls.tenant_column(),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"], unique=False)
    op.create_table(
        "effects",
        rls.tenant_column(),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("token", sa.UUID(), nullable=False),
        sa.Column("confirmed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("answer", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_effects")),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("queues", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("running", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("started_at", MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("last_seen", MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("last_claim", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    op.create_table(
        "dispatcher_leader",
        sa.Column("shard", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("shard", name=op.f("pk_dispatcher_leader")),
    )

    op.execute("ALTER TABLE workers SET (fillfactor = 50)")
    op.execute(
        "ALTER TABLE run_leases SET"
        " (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000)"
    )
    for table in PARTITIONED:
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
    rls.protect("run_leases", "effects")
    rls.protect("runs", "run_progress", "idempotency_keys", grants="SELECT, INSERT, UPDATE")
    rls.protect("run_events", "run_steps", grants="SELECT, INSERT")
    for table in ("workers", "dispatcher_leader"):
        rls.force(table)
        op.execute(f"CREATE POLICY readable ON {table} FOR SELECT TO tenantry_app USING (true)")
        op.execute(f"GRANT SELECT ON {table} TO tenantry_app")
    rls.open_to_system("workers", "SELECT, DELETE")
    rls.open_to_system("dispatcher_leader", "SELECT, INSERT, UPDATE")
    rls.open_to_system(
        "runs",
        f"SELECT ({SHOWN}), UPDATE (state, sequence, fence, released_at)",
    )
    rls.open_to_system("run_events", "INSERT, SELECT")
    rls.open_to_system("run_leases", "SELECT")
    rls.open_to_system("idempotency_keys", "SELECT (expires_at), DELETE")
    rls.install("tasks/engine/sql")
    op.execute("SELECT ensure_partitions(30)")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    rls.uninstall("tasks/engine/sql")
    for table in (
        "dispatcher_leader",
        "workers",
        "effects",
        "idempotency_keys",
        "run_leases",
        "run_progress",
        "run_steps",
        "run_events",
        "runs",
    ):
        op.drop_table(table)
