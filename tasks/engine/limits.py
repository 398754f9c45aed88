"""Limits, as tenants' administrators and operators set them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from tasks import registry
from tasks.engine import documents, switches
from tasks.engine.admission import EACH, LimitKind
from tasks.engine.models import Limit
from tenants import audit, context, ids
from tenants.context import ActorKind
from tenants.errors import Conflict, Forbidden, InvalidInput, Issue, NotFound, QuotaExceeded

_LONGEST_NAME = 100
_LONGEST_PERIOD_SECONDS = 31 * 86_400.0
_MOST = 100
"""How many limits a tenant may have: all of them are asked for each of its runs."""
_LARGEST = {LimitKind.RATE: 1e6, LimitKind.CONCURRENCY: 1e6, LimitKind.BACKLOG: 1e9, LimitKind.WEIGHT: 1e3}
_SMALLEST = {LimitKind.RATE: 1e-6, LimitKind.CONCURRENCY: 1.0, LimitKind.BACKLOG: 1.0, LimitKind.WEIGHT: 1e-3}
_USED = text("""
SELECT l.id, CASE l.kind
  WHEN 'CONCURRENCY' THEN (
    SELECT count(*) FROM runs r WHERE r.tenant_id = l.tenant_id AND r.state IN ('RELEASED', 'RUNNING')
      AND concerns(l.queue, l.task, l.concurrency_key, r.queue, r.task, r.concurrency_key))
  WHEN 'BACKLOG' THEN backlog(l.tenant_id, l.queue, l.task, l.concurrency_key, NULL)
  WHEN 'RATE' THEN coalesce((
    SELECT greatest(0, ceil((s.arrival - extract(epoch FROM clock_timestamp())) * l.amount / l.per_seconds))
    FROM limit_states s WHERE s.tenant_id = l.tenant_id AND s.limit_id = l.id AND s.key = ''), 0)
  END
FROM limits l WHERE l.concurrency_key IS DISTINCT FROM '*'
""")


@dataclass(frozen=True, slots=True)
class LimitRequest:
    """A limit as it is asked for; it holds for what matches all that it names.

    Args:
        name: the limit's name; of one name there is one of each kind.
        amount: starts for a rate; how many at once for a cap; how many waiting for a backlog; a share for a weight.
        per_seconds: of a rate only: its period; 1 when left out.
        burst: of a rate only: how many starts may come at once; 1 when left out, so that starts are spread evenly.
        concurrency_key: runs of this key; `*` for each key by itself.
    """

    name: str
    kind: LimitKind
    amount: float
    per_seconds: float | None = None
    burst: float | None = None
    task_name: str | None = None
    queue: str | None = None
    concurrency_key: str | None = None


def every(session: Session) -> Sequence[Limit]:
    """The tenant's limits, by name."""
    return session.scalars(select(Limit).order_by(Limit.name, Limit.kind)).all()


def get(session: Session, limit_id: UUID) -> Limit:
    """One limit.

    Raises:
        NotFound: there is none with this id.
    """
    found = session.scalar(select(Limit).where(Limit.id == limit_id))
    if found is None:
        raise NotFound
    return found


def used(session: Session) -> dict[UUID, float]:
    """How far each limit is used: released and running, waiting, or starts of a rate that are not made up for yet.

    Without weights, and without limits that are kept for each key.
    """
    return {limit: float(amount) for limit, amount in session.execute(_USED) if amount is not None}


def put(session: Session, request: LimitRequest) -> Limit:
    """Set a limit: one of the same name and kind is replaced. It binds what waits already too.

    Raises:
        InvalidInput: a value is wrong; its issues name the fields.
        UnknownTask, AmbiguousTask: the task's name fits none, or several.
        Forbidden: only operators set weights, and change what operators have set.
        Conflict: the tenant has a weight of another name.
        QuotaExceeded: the tenant has as many limits as it may have.
    """
    caller = context.principal(session)
    operator = caller.kind is ActorKind.OPERATOR
    task = None if request.task_name is None else switches.resolve_task(session, request.task_name)
    _check(request)
    if request.kind is LimitKind.WEIGHT:
        if not operator:
            raise Forbidden("Only operators set weights.")
        other = session.scalar(select(Limit.name).where(Limit.kind == LimitKind.WEIGHT, Limit.name != request.name))
        if other is not None:
            raise Conflict(f"The tenant has a weight already, {other}: change that one.")
    values = {
        "amount": request.amount,
        "per_seconds": (request.per_seconds or 1.0) if request.kind is LimitKind.RATE else None,
        "burst": (request.burst or 1.0) if request.kind is LimitKind.RATE else None,
        "task": task,
        "queue": request.queue,
        "concurrency_key": request.concurrency_key,
        "actor_kind": caller.kind.value,
        "actor": caller.actor,
        "changed_at": func.clock_timestamp(),
    }
    named = select(Limit).where(Limit.name == request.name, Limit.kind == request.kind.value)
    found = session.scalar(named.with_for_update())
    before = None if found is None else _shown(found)
    statement = insert(Limit).values(id=ids.new(), name=request.name, kind=request.kind.value, **values)
    made: Limit | None = session.scalar(
        statement.on_conflict_do_update(
            index_elements=["tenant_id", "name", "kind"],
            set_=values,
            where=None if operator else Limit.actor_kind != ActorKind.OPERATOR.value,
        ).returning(Limit),
        execution_options={"populate_existing": True},
    )
    if made is None:
        raise Forbidden("An operator has set this limit: only operators change it.")
    if (number := session.scalar(select(func.count()).select_from(Limit)) or 0) > _MOST:
        raise QuotaExceeded(
            f"A tenant has at most {_MOST} limits.", limit_name="limits", limit=_MOST, used=float(number - 1)
        )
    audit.record(session, "limit.set", ids.show("lim", made.id), before=before, after=_shown(made))
    return made


def remove(session: Session, limit_id: UUID) -> None:
    """Take a limit away.

    Raises:
        NotFound: there is none with this id.
        Forbidden: an operator has set it.
    """
    found = get(session, limit_id)
    statement = delete(Limit).where(Limit.id == found.id)
    if context.principal(session).kind is not ActorKind.OPERATOR:
        statement = statement.where(Limit.actor_kind != ActorKind.OPERATOR.value)
    if session.scalar(statement.returning(Limit.id)) is None:
        raise Forbidden("An operator has set this limit: only operators remove it.")
    audit.record(session, "limit.remove", ids.show("lim", limit_id), before=_shown(found))


def _shown(limit: Limit) -> dict[str, Any]:
    """What the audit log tells of a limit."""
    return {
        "name": limit.name,
        "kind": limit.kind,
        "amount": limit.amount,
        "perSeconds": limit.per_seconds,
        "burst": limit.burst,
        "taskName": limit.task,
        "queue": limit.queue,
        "concurrencyKey": limit.concurrency_key,
        "setBy": limit.actor_kind,
    }


def _check(request: LimitRequest) -> None:
    kind, issues = request.kind, []
    if wrong := documents.name_issue(request.name, _LONGEST_NAME):
        issues.append(Issue(("name",), wrong))
    smallest, largest = _SMALLEST[kind], _LARGEST[kind]
    whole = kind in {LimitKind.CONCURRENCY, LimitKind.BACKLOG}
    if not smallest <= request.amount <= largest or (whole and request.amount % 1):
        issues.append(Issue(("amount",), f"must be a {'whole ' * whole}number from {smallest:g} to {largest:g}"))
    for name, value in (("perSeconds", request.per_seconds), ("burst", request.burst)):
        if value is not None and kind is not LimitKind.RATE:
            issues.append(Issue((name,), "is of rates only: leave it out"))
    if request.per_seconds is not None and not 0.001 <= request.per_seconds <= _LONGEST_PERIOD_SECONDS:
        issues.append(Issue(("perSeconds",), f"must be 0.001 to {_LONGEST_PERIOD_SECONDS:g} seconds"))
    if request.burst is not None and (not 1 <= request.burst <= _LARGEST[LimitKind.RATE] or request.burst % 1):
        issues.append(Issue(("burst",), f"must be a whole number from 1 to {_LARGEST[LimitKind.RATE]:g}"))
    if request.queue is not None and (wrong := registry.queue_issue(request.queue)):
        issues.append(Issue(("queue",), wrong))
    key = request.concurrency_key
    if key is not None and (wrong := documents.name_issue(key)):
        issues.append(Issue(("concurrencyKey",), wrong))
    if key == EACH and kind is LimitKind.BACKLOG:
        issues.append(Issue(("concurrencyKey",), "a backlog is for one key, or for all together"))
    if kind is LimitKind.WEIGHT:
        issues += [
            Issue((name,), "a weight is for the whole tenant: leave it out")
            for name, value in (("taskName", request.task_name), ("queue", request.queue), ("concurrencyKey", key))
            if value is not None
        ]
    if issues:
        raise InvalidInput(issues=issues)
