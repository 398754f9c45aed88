"""Problems: expected failures as data, and the payloads that carry them."""

from __future__ import annotations

from enum import Enum

import strawberry

from schema.nodes import Node


@strawberry.enum
class ProblemCode(Enum):
    BAD_USER_INPUT = "BAD_USER_INPUT"
    UNKNOWN_TASK = "UNKNOWN_TASK"
    AMBIGUOUS_TASK = "AMBIGUOUS_TASK"
    NOT_FOUND = "NOT_FOUND"
    FORBIDDEN = "FORBIDDEN"
    CONFLICT = "CONFLICT"
    RATE_LIMITED = "RATE_LIMITED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    TENANT_SUSPENDED = "TENANT_SUSPENDED"
    INVALID_STATE = "INVALID_STATE"


@strawberry.interface
class Problem:
    """Why a mutation did nothing."""

    code: ProblemCode
    message: str


@strawberry.type
class InputIssue:
    path: list[str] = strawberry.field(description="In a bulk call it starts with the input's index.")
    message: str


@strawberry.type
class InvalidInput(Problem):
    issues: list[InputIssue]


@strawberry.type
class UnknownTask(Problem):
    candidates: list[str] = strawberry.field(description="The nearest names.")


@strawberry.type
class AmbiguousTask(Problem):
    candidates: list[str]


@strawberry.type(description="Another tenant's object too: existence is never revealed.")
class NotFound(Problem):
    pass


@strawberry.type
class Forbidden(Problem):
    required_scope: str | None


@strawberry.type
class Conflict(Problem):
    existing: Node | None


@strawberry.type
class RateLimited(Problem):
    retry_after_seconds: float
    limit_name: str | None


@strawberry.type
class QuotaExceeded(Problem):
    limit_name: str
    limit: float
    used: float


@strawberry.type
class TenantSuspended(Problem):
    pass


@strawberry.type
class InvalidState(Problem):
    state: str


@strawberry.type
class Payload:
    """A mutation's answer: what has become of it."""

    success: bool
    message: str
    problem: Problem | None = None


@strawberry.type
class DeletePayload(Payload):
    deleted_id: strawberry.ID | None = strawberry.field(
        default=None, description="What was asked to be gone: its id, or its name where it has none."
    )


TYPES: tuple[type, ...] = (
    InvalidInput,
    UnknownTask,
    AmbiguousTask,
    NotFound,
    Forbidden,
    Conflict,
    RateLimited,
    QuotaExceeded,
    TenantSuspended,
    InvalidState,
)
"""No field names these, only their interface: the schema is told of them."""
