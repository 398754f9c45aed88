"""Dead letters in groups: the types of the contract, and their fields."""

from __future__ import annotations

from datetime import datetime

import strawberry

from schema import later, permissions
from schema.paging import Connection
from schema.problems import Node
from schema.runs import RunConnection


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
    dead_letters: Connection[DeadLetterGroup] = later.field(permissions.RUNS_READ, first=int | None, after=str | None)
