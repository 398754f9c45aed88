"""Dead letters in groups, and why a run waits: the types of the contract, and their fields."""

from __future__ import annotations

from datetime import datetime
from enum import Enum

import strawberry

from schema import later, permissions
from schema.paging import Connection
from schema.problems import Node
from schema.runs import Run, RunConnection


@strawberry.enum
class WaitReason(Enum):
    NOT_WAITING = "NOT_WAITING"
    TIME = "TIME"
    RATE_LIMIT = "RATE_LIMIT"
    CONCURRENCY_LIMIT = "CONCURRENCY_LIMIT"
    FAIR_SHARE = "FAIR_SHARE"
    NO_WORKER = "NO_WORKER"
    NO_DISPATCHER = "NO_DISPATCHER"
    TENANT_PAUSED = "TENANT_PAUSED"
    TASK_PAUSED = "TASK_PAUSED"
    APPROVAL = "APPROVAL"
    EVENT = "EVENT"
    DEPENDENCY = "DEPENDENCY"
    UNIQUENESS = "UNIQUENESS"
    PROVIDER_BACKOFF = "PROVIDER_BACKOFF"


@strawberry.type
class RunExplanation:
    run: Run
    reason: WaitReason
    message: str
    limit_name: str | None
    position: int | None
    expected_start: datetime | None


@strawberry.type
class DeadLetterGroup(Node):
    task_name: str
    error_type: str
    message: str
    count: int
    first_at: datetime
    last_at: datetime
    runs: RunConnection = later.field(permissions.RUNS_READ, first=int | None, after=str | None)


@strawberry.type
class Query:
    explain_run: RunExplanation | None = later.field(permissions.RUNS_READ, id=strawberry.ID)
    dead_letters: Connection[DeadLetterGroup] = later.field(permissions.RUNS_READ, first=int | None, after=str | None)
