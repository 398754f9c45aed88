"""Limits: the types of the contract, and their fields."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import strawberry

from schema import later, permissions
from schema.problems import Node, Problem

if TYPE_CHECKING:
    from schema.triggers import DeletePayload


@strawberry.enum
class LimitKind(Enum):
    RATE = "RATE"
    CONCURRENCY = "CONCURRENCY"
    BACKLOG = "BACKLOG"
    WEIGHT = "WEIGHT"


@strawberry.type(
    description=(
        "RATE: amount per perSeconds with burst. CONCURRENCY: amount at once. BACKLOG: amount waiting."
        " WEIGHT: share under contention (operators only)."
    )
)
class Limit(Node):
    name: str
    kind: LimitKind
    amount: float
    per_seconds: float | None
    burst: float | None
    task_name: str | None
    queue: str | None
    concurrency_key: str | None
    used: float | None


@strawberry.input
class LimitInput:
    name: str
    kind: LimitKind
    amount: float
    per_seconds: float | None = None
    burst: float | None = None
    task_name: str | None = None
    queue: str | None = None
    concurrency_key: str | None = None


@strawberry.type
class LimitPayload:
    success: bool
    message: str
    limit: Limit | None = None
    problem: Problem | None = None


@strawberry.type
class Query:
    limits: list[Limit] = later.field(permissions.TENANT_READ)


@strawberry.type
class Mutation:
    set_limit: LimitPayload = later.field(permissions.LIMITS_WRITE, input=LimitInput)
    remove_limit: Annotated["DeletePayload", strawberry.lazy("schema.triggers")] = later.field(  # noqa: UP037
        permissions.LIMITS_WRITE, id=strawberry.ID
    )
