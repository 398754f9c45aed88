"""What a caller asks for, and whether it can be accepted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import orjson
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tasks import registry
from tasks.engine import documents
from tenants import context, db, ids, quotas
from tenants.context import ActorKind
from tenants.errors import (
    AmbiguousTask,
    Conflict,
    Forbidden,
    InvalidInput,
    InvalidState,
    Issue,
    QuotaExceeded,
    TenantErased,
    TenantSuspended,
    UnknownTask,
)
from tenants.quotas import Quota

_LONGEST_DELAY = timedelta(seconds=registry.LONGEST_WAIT_SECONDS)
_LARGEST_ARGS = 128 * 1024
_ENABLED = text("SELECT * FROM enabled_families(:tenant) AS family")


@dataclass(frozen=True, slots=True)
class TriggerRequest:
    """What a caller asks for.

    Args:
        task_name: full, or bare where it is unambiguous among the tenant's enabled families.
        args: checked against the task's input.
        idempotency_key: 1 to 255 characters; the same key and arguments give the first run again for 24 h.
        priority: 0 to 9; the task's own when left out.
        delay_seconds: not before this long from now.
        eta: not before this moment.
        concurrency_key: what the run shares limits and turns with.
        queue: another queue than the task's own.
        internal: a service asks, and not its caller, who needs no right to trigger it.
    """

    task_name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    priority: int | None = None
    delay_seconds: float | None = None
    eta: datetime | None = None
    concurrency_key: str | None = None
    queue: str | None = None
    internal: bool = False


def check(session: Session, request: TriggerRequest, *path: str, origin: UUID | None = None) -> dict[str, Any]:
    """A request as the database takes it, every value checked. Only operators repeat what a service has triggered."""
    caller = context.principal(session)
    try:
        definition = _definition(session, request.task_name)
    except (UnknownTask, AmbiguousTask) as error:
        if path:
            error.message = f"[{path[0]}] {error.message}"
        raise
    internal, operator = registry.is_internal(definition), caller.kind is ActorKind.OPERATOR
    if (definition.operator_only and not operator) or (
        internal and not request.internal and not (operator and origin is not None)
    ):
        raise _unknown(session, request.task_name)
    if not request.internal and not caller.may_trigger(definition.name):
        raise Forbidden(f"You may not trigger {definition.name}.", required_scope=f"{definition.family}:write")
    issues: list[Issue] = []
    args = _args(definition, request.args, issues, path)
    priority = definition.priority if request.priority is None else request.priority
    if not 0 <= priority <= 9:
        issues.append(Issue((*path, "priority"), "must be 0 to 9"))
    for name, value in (("idempotencyKey", request.idempotency_key), ("concurrencyKey", request.concurrency_key)):
        if value is not None and (wrong := documents.name_issue(value)):
            issues.append(Issue((*path, name), wrong))
    if request.queue is not None and (wrong := registry.queue_issue(request.queue, definition.operator_only)):
        issues.append(Issue((*path, "queue"), wrong))
    _check_time(request, issues, path)
    if issues:
        raise InvalidInput(issues=issues)
    return {
        "id": str(ids.new()),
        "task": definition.name,
        "queue": request.queue or definition.queue,
        "args": args,
        "priority": priority,
        "max_attempts": definition.retry.most_attempts,
        "max_elapsed": definition.retry.max_elapsed_seconds,
        "delay": request.delay_seconds,
        "available_at": request.eta.isoformat() if request.eta else None,
        "concurrency_key": request.concurrency_key,
        "idempotency_key": request.idempotency_key,
        "digest": _digest(definition.name, args) if request.idempotency_key is not None else None,
        "origin_id": str(origin) if origin else None,
        "effects_of": None,
        "internal": internal,
    }


def refused(error: DBAPIError, rows: list[dict[str, Any]]) -> Exception:
    """The expected error behind a code with which the database has refused these requests; any other unchanged."""
    code = db.sqlstate(error)
    detail = _detail(error)
    if code == "TN001":
        existing = UUID(detail) if detail else None
        return Conflict("This idempotency key was used with another task or other arguments.", existing=existing)
    if code == "TN002":
        return TenantSuspended()
    if code == db.GONE:
        return TenantErased()
    if code == "TN003":
        names = [row["task"] for row in rows if row["task"].startswith(f"{detail}.")]
        return UnknownTask(f"There is no task {names[0]!r} here: the family {detail} is not enabled.")
    if code == "TN004":
        name, amount, waiting = orjson.loads(detail or "[]")
        message = f"The limit {name} lets {amount:g} runs wait, and {waiting} do: come back when some have started."
        return QuotaExceeded(message, limit_name=name, limit=amount, used=waiting)
    if code == "TN006":
        name, amount, used = orjson.loads(detail or "[]")
        return quotas.exceeded(Quota(name), amount, used)
    if code == "TN005":
        drained = detail or "The tenant"
        return InvalidState(f"{drained} is drained: nothing new is accepted until it is resumed.", state="DRAINING")
    return error


def _definition(session: Session, name: str) -> registry.TaskDefinition[Any]:
    """The definition a name means. Only a name that several families have needs to know which are enabled."""
    everywhere = registry.families().keys()
    try:
        return registry.resolve(name, everywhere)
    except AmbiguousTask:
        return registry.resolve(name, _enabled_families(session))
    except UnknownTask:
        raise _unknown(session, name) from None


def _unknown(session: Session, name: str) -> UnknownTask:
    """The error for a name that means nothing here, with candidates from the tenant's own families only."""
    try:
        registry.resolve(name, _enabled_families(session))
    except UnknownTask as error:
        return error
    return UnknownTask(f"There is no task {name!r} among the enabled families.")


def _enabled_families(session: Session) -> frozenset[str]:
    """The families that the session's tenant has switched on, also where the session is not inside it yet."""
    rows = db.fetch(session, _ENABLED, {"tenant": context.principal(session).tenant})
    return frozenset(row["family"] for row in rows)


def _args(
    definition: registry.TaskDefinition[Any], given: Mapping[str, Any], issues: list[Issue], path: tuple[str, ...]
) -> dict[str, Any]:
    try:
        checked = definition.input.model_validate(given)
    except ValidationError as error:
        issues.extend(
            Issue((*path, "args", *(str(part) for part in found["loc"])), found["msg"])
            for found in error.errors(include_url=False, include_input=False, include_context=False)
        )
        return {}
    args: dict[str, Any] = checked.model_dump(mode="json", exclude_unset=True)
    try:
        data = documents.encode(args)
    except ValueError as error:
        issues.append(Issue((*path, "args"), str(error)))
        return {}
    if len(data) > _LARGEST_ARGS:
        issues.append(
            Issue((*path, "args"), f"must be at most {_LARGEST_ARGS} bytes of JSON: pass a reference instead")
        )
    elif orjson.loads(data) != args:
        issues.append(Issue((*path, "args"), "holds a number that JSON has no form for"))
    return args


def _check_time(request: TriggerRequest, issues: list[Issue], path: tuple[str, ...]) -> None:
    if request.eta is not None and request.delay_seconds is not None:
        issues.append(Issue((*path, "eta"), "give delaySeconds or eta, not both"))
    if request.delay_seconds is not None and not 0 <= request.delay_seconds <= _LONGEST_DELAY.total_seconds():
        issues.append(Issue((*path, "delaySeconds"), "must be 0 seconds to 366 days"))
    if request.eta is not None:
        if request.eta.tzinfo is None:
            issues.append(Issue((*path, "eta"), "must have a UTC offset"))
        elif request.eta > datetime.now(UTC) + _LONGEST_DELAY:
            issues.append(Issue((*path, "eta"), "must be at most 366 days from now"))


def _digest(task: str, args: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps([task, args], option=orjson.OPT_SORT_KEYS)).hexdigest()


def _detail(error: DBAPIError) -> str | None:
    """The error's detail, by whichever driver."""
    original: Any = error.orig
    if diagnostics := getattr(original, "diag", None):
        return cast("str | None", diagnostics.message_detail)
    return cast("str | None", getattr(original.__cause__ or original, "detail", None))
