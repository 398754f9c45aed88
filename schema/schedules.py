"""Schedules: the types of the contract, and their fields."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import strawberry

from schema import later, permissions
from schema.nodes import Node
from schema.paging import Connection
from schema.problems import DeletePayload, Payload, Problem
from schema.scalars import JSON

if TYPE_CHECKING:
    from schema.bulk_actions import BulkActionPayload
    from schema.runs import Run
    from schema.triggers import RunPayload

_Run = Annotated["Run", strawberry.lazy("schema.runs")]


@strawberry.enum
class OverlapPolicy(Enum):
    SKIP = "SKIP"
    BUFFER_ONE = "BUFFER_ONE"
    BUFFER_ALL = "BUFFER_ALL"
    CANCEL_OTHER = "CANCEL_OTHER"
    ALLOW_ALL = "ALLOW_ALL"


@strawberry.enum
class MisfirePolicy(Enum):
    SKIP = "SKIP"
    FIRE_ONCE = "FIRE_ONCE"
    FIRE_ALL = "FIRE_ALL"


@strawberry.enum(description="A local time that does not exist.")
class DstGapRule(Enum):
    FIRE_AFTER_GAP = "FIRE_AFTER_GAP"
    SKIP = "SKIP"


@strawberry.enum(description="A local time that exists twice.")
class DstFoldRule(Enum):
    FIRST = "FIRST"
    LAST = "LAST"
    BOTH = "BOTH"


@strawberry.enum
class TickOutcome(Enum):
    FIRED = "FIRED"
    BUFFERED = "BUFFERED"
    SKIPPED_OVERLAP = "SKIPPED_OVERLAP"
    MISSED = "MISSED"
    PAUSED = "PAUSED"
    EXCLUDED = "EXCLUDED"
    REFUSED = "REFUSED"


@strawberry.type(description="Exactly one per nominal time.")
class ScheduleTick(Node):
    nominal: datetime
    outcome: TickOutcome
    reason: str | None
    run: _Run | None


@strawberry.type
class Schedule(Node):
    name: str
    task_name: str
    args: JSON
    priority: int | None
    cron: str | None
    every_seconds: float | None
    at: datetime | None
    timezone: str
    starts_at: datetime | None
    ends_at: datetime | None
    max_runs: int | None
    excluded_dates: list[str]
    overlap: OverlapPolicy
    misfire: MisfirePolicy
    misfire_grace_seconds: float
    dst_gap: DstGapRule
    dst_fold: DstFoldRule
    spread_seconds: float
    paused: bool
    note: str | None
    description: str = strawberry.field(description='The timing in words, "At 02:00 every day".')
    next_tick: datetime | None
    last_tick: ScheduleTick | None
    version: int
    ticks: Connection[ScheduleTick] = later.field(
        permissions.SCHEDULES_READ, "Newest first.", first=(int | None, 20), after=str | None
    )


@strawberry.type
class SchedulePreviewTick:
    nominal: datetime
    local: str
    effective: datetime
    note: str | None


@strawberry.type
class SchedulePreviewPayload:
    ticks: list[SchedulePreviewTick]
    problem: Problem | None = None


@strawberry.type
class SchedulePayload(Payload):
    schedule: Schedule | None = None


@strawberry.input
class CronInput:
    expression: str
    timezone: str | None = strawberry.field(default=None, description="The tenant's timezone when left out.")


@strawberry.input(one_of=True, description="Exactly one field.")
class ScheduleTimingInput:
    cron: strawberry.Maybe[CronInput]
    every_seconds: strawberry.Maybe[float]
    at: strawberry.Maybe[datetime]


@strawberry.input
class CreateScheduleInput:
    name: str
    task_name: str
    timing: ScheduleTimingInput
    args: JSON | None = None
    priority: int | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    max_runs: int | None = None
    excluded_dates: list[str] | None = None
    overlap: OverlapPolicy | None = OverlapPolicy.SKIP
    misfire: MisfirePolicy | None = MisfirePolicy.FIRE_ONCE
    misfire_grace_seconds: float | None = 300.0
    dst_gap: DstGapRule | None = DstGapRule.FIRE_AFTER_GAP
    dst_fold: DstFoldRule | None = DstFoldRule.FIRST
    spread_seconds: float | None = 0.0
    paused: bool | None = False
    note: str | None = None


@strawberry.input(description="What is left out stays as it is.")
class UpdateScheduleInput:
    version: int = strawberry.field(description="The version that was read; refused when it has moved on.")
    name: strawberry.Maybe[str | None]
    args: strawberry.Maybe[JSON | None]
    priority: strawberry.Maybe[int | None]
    timing: strawberry.Maybe[ScheduleTimingInput | None]
    starts_at: strawberry.Maybe[datetime | None]
    ends_at: strawberry.Maybe[datetime | None]
    max_runs: strawberry.Maybe[int | None]
    excluded_dates: strawberry.Maybe[list[str] | None]
    overlap: strawberry.Maybe[OverlapPolicy | None]
    misfire: strawberry.Maybe[MisfirePolicy | None]
    misfire_grace_seconds: strawberry.Maybe[float | None]
    dst_gap: strawberry.Maybe[DstGapRule | None]
    dst_fold: strawberry.Maybe[DstFoldRule | None]
    spread_seconds: strawberry.Maybe[float | None]
    note: strawberry.Maybe[str | None]


@strawberry.type
class Query:
    schedules: Connection[Schedule] = later.field(permissions.SCHEDULES_READ, first=int | None, after=str | None)
    schedule: Schedule | None = later.field(permissions.SCHEDULES_READ, id=strawberry.ID)
    schedule_preview: SchedulePreviewPayload = later.field(
        permissions.SCHEDULES_READ, timing=ScheduleTimingInput, count=(int | None, 5)
    )


_RunPayload = Annotated["RunPayload", strawberry.lazy("schema.triggers")]
_BulkPayload = Annotated["BulkActionPayload", strawberry.lazy("schema.bulk_actions")]


@strawberry.type
class Mutation:
    create_schedule: SchedulePayload = later.field(permissions.SCHEDULES_WRITE, input=CreateScheduleInput)
    update_schedule: SchedulePayload = later.field(
        permissions.SCHEDULES_WRITE, id=strawberry.ID, input=UpdateScheduleInput
    )
    pause_schedule: SchedulePayload = later.field(permissions.SCHEDULES_WRITE, id=strawberry.ID, note=str | None)
    resume_schedule: SchedulePayload = later.field(permissions.SCHEDULES_WRITE, id=strawberry.ID)
    trigger_schedule: _RunPayload = later.field(permissions.SCHEDULES_WRITE, id=strawberry.ID)
    backfill_schedule: _BulkPayload = later.field(
        permissions.SCHEDULES_WRITE,
        id=strawberry.ID,
        start=Annotated[datetime, strawberry.argument(name="from")],
        to=datetime,
        dry_run=(bool, True),
    )
    delete_schedule: DeletePayload = later.field(permissions.SCHEDULES_WRITE, id=strawberry.ID)
