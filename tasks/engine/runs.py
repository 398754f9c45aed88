"""Runs: accept, read, cancel, repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import orjson
from pydantic import ValidationError
from sqlalchemy import Select, func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tasks import registry
from tasks.engine import switches
from tasks.engine.ledger import Change
from tasks.engine.models import Run, RunEvent, RunLease, RunProgress
from tasks.engine.publish import Bell
from tasks.engine.states import TERMINAL, RunState
from tenants import context, db, ids, pages, settings
from tenants.context import ActorKind
from tenants.errors import (
    AmbiguousTask,
    Conflict,
    Forbidden,
    InvalidInput,
    InvalidState,
    Issue,
    NotFound,
    TenantSuspended,
    UnknownTask,
)
from tenants.pages import Page

_TRIGGER = text("SELECT * FROM trigger_runs(:tenant, :kind, :actor, CAST(:runs AS jsonb), :kept, :step)")
_LONGEST_DELAY = timedelta(days=366)
_LARGEST_ARGS = 128 * 1024
_LONGEST_KEY = 255


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
    """

    task_name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    priority: int | None = None
    delay_seconds: float | None = None
    eta: datetime | None = None
    concurrency_key: str | None = None
    queue: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted run; replayed when the idempotency key returned an earlier one."""

    run: Run
    replayed: bool


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs; what is None is not asked."""

    ids: Collection[UUID] | None = None
    task_name: str | None = None
    family: str | None = None
    states: Collection[RunState] | None = None
    schedule_id: UUID | None = None
    concurrency_key: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@db.single_statement
def trigger(session: Session, request: TriggerRequest) -> Accepted:
    """Accept a run, in one trip and one transaction.

    Raises:
        UnknownTask, AmbiguousTask: the name fits no task, or several.
        InvalidInput: a value is wrong; its issues name the fields.
        Forbidden: the caller may not trigger this task.
        Conflict: the idempotency key was used with other arguments.
        TenantSuspended: the tenant is suspended.
    """
    return trigger_within(session, request)


@db.single_statement
def trigger_many(session: Session, requests: Sequence[TriggerRequest]) -> list[Accepted]:
    """Accept up to 1,000 runs: all or none.

    Raises:
        As `trigger`; the path of an issue begins with the request's index.
    """
    if len(requests) > (most := settings.current().engine.bulk_size):
        raise InvalidInput(f"At most {most} runs at once: split the list.")
    if not requests:
        return []
    return _accept(session, [_check(session, request, str(index)) for index, request in enumerate(requests)])


def trigger_within(session: Session, request: TriggerRequest, *, origin: UUID | None = None) -> Accepted:
    """The same inside a transaction that is open already.

    Args:
        origin: the run that this one repeats.
    """
    return _accept(session, [_check(session, request, origin=origin)])[0]


def get(session: Session, run_id: UUID) -> Run:
    """One run of the tenant.

    Raises:
        NotFound: there is none with this id.
    """
    run = session.scalar(select(Run).where(Run.id == run_id))
    if run is None:
        raise NotFound
    return run


def get_many(session: Session, run_ids: Collection[UUID]) -> dict[UUID, Run]:
    """Several runs of the tenant by id; what does not exist is left out."""
    return {run.id: run for run in session.scalars(select(Run).where(Run.id.in_(run_ids)))}


def page(
    session: Session,
    wanted: RunFilter,
    *,
    first: int | None = None,
    after: str | None = None,
    last: int | None = None,
    before: str | None = None,
) -> Page[Run]:
    """One page of runs, newest first."""
    return pages.read(
        session, matching(select(Run), wanted), Run.id, "run", first=first, after=after, last=last, before=before
    )


def count(session: Session, wanted: RunFilter, most: int) -> int:
    """How many runs match, counted up to `most`."""
    found = matching(select(Run.id), wanted).limit(most).subquery()
    return session.scalar(select(func.count()).select_from(found)) or 0


def progress_of(session: Session, run_ids: Collection[UUID]) -> dict[UUID, RunProgress]:
    """The progress of those runs that told of any."""
    return {row.run_id: row for row in session.scalars(select(RunProgress).where(RunProgress.run_id.in_(run_ids)))}


def events(session: Session, run_id: UUID, *, first: int = 50, after: str | None = None) -> Page[RunEvent]:
    """One page of a run's changes of state, oldest first.

    Raises:
        NotFound: there is no such run.
    """
    get(session, run_id)
    return pages.read(
        session,
        select(RunEvent).where(RunEvent.run_id == run_id),
        RunEvent.sequence,
        "event",
        first=first,
        after=after,
        newest_first=False,
    )


def cancel(session: Session, run_id: UUID) -> Run:
    """Cancel a run, durably: what waits never starts, what runs is told to stop.

    Raises:
        NotFound: there is no such run.
        InvalidState: it has ended.
    """
    run = session.scalar(select(Run).where(Run.id == run_id).with_for_update())
    if run is None:
        raise NotFound
    if run.state in TERMINAL:
        raise InvalidState(f"The run has ended: {run.state}.", state=run.state)
    now = session.scalar(select(func.clock_timestamp()))
    run.cancel_requested_at = run.cancel_requested_at or now
    if run.state == RunState.RUNNING:
        session.execute(update(RunLease).where(RunLease.run_id == run_id).values(cancel=True))
    else:
        move(session, run, RunState.CANCELLED, "cancelled before it started")
        run.finished_at = now
    session.flush()
    return run


def retry(session: Session, run_id: UUID, args: Mapping[str, Any] | None = None) -> Run:
    """A new run that repeats an ended one and names it as its origin.

    Args:
        args: other arguments; the same when None.

    Raises:
        NotFound: there is no such run.
        InvalidState: it has not ended.
    """
    run = get(session, run_id)
    if run.state not in TERMINAL:
        raise InvalidState(f"The run has not ended: {run.state}.", state=run.state)
    request = TriggerRequest(
        run.task,
        run.args if args is None else args,
        priority=run.priority,
        concurrency_key=run.concurrency_key,
        queue=run.queue,
    )
    return trigger_within(session, request, origin=run.origin_id or run.id).run


def deliver(session: Session, event: str) -> int:
    """Wake the runs that wait for the event; returns how many."""
    waiting = session.scalars(
        select(Run).where(Run.state == RunState.WAITING, Run.wait_event == event).with_for_update()
    ).all()
    for run in waiting:
        move(session, run, RunState.QUEUED, f"{event} happened")
        run.wait_event = None
        db.notify(session, Bell(run.queue, run.tenant_id, run.concurrency_key))
    session.flush()
    return len(waiting)


def move(session: Session, run: Run, state: RunState, note: str | None) -> None:
    """Change the state of a run that is locked, with its event; told to others after the commit."""
    run.state = state
    run.sequence += 1
    now = cast("datetime", session.scalar(select(func.clock_timestamp())))
    session.add(
        RunEvent(
            tenant_id=run.tenant_id,
            run_id=run.id,
            sequence=run.sequence,
            state=state,
            attempt=run.attempt,
            at=now,
            note=note,
        )
    )
    db.notify(session, Change(run.tenant_id, run.id, state, run.sequence, run.attempt, now, run.queue))


def matching(query: Select[Any], wanted: RunFilter) -> Select[Any]:
    """The query for those runs only that match the filter."""
    if wanted.ids is not None:
        query = query.where(Run.id.in_(wanted.ids))
    if wanted.task_name is not None:
        query = query.where(Run.task == wanted.task_name)
    if wanted.family is not None:
        query = query.where(Run.task.startswith(f"{wanted.family}.", autoescape=True))
    if wanted.states is not None:
        query = query.where(Run.state.in_([str(state) for state in wanted.states]))
    if wanted.schedule_id is not None:
        query = query.where(Run.schedule_id == wanted.schedule_id)
    if wanted.concurrency_key is not None:
        query = query.where(Run.concurrency_key == wanted.concurrency_key)
    if wanted.created_after is not None:
        query = query.where(Run.created_at > wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(Run.created_at < wanted.created_before)
    return query


def _check(session: Session, request: TriggerRequest, *path: str, origin: UUID | None = None) -> dict[str, Any]:
    """A request as the database takes it, every value checked."""
    caller = context.principal(session)
    try:
        definition = _definition(session, request.task_name)
    except (UnknownTask, AmbiguousTask) as error:
        if path:
            error.message = f"[{path[0]}] {error.message}"
        raise
    if definition.operator_only and caller.kind is not ActorKind.OPERATOR:
        raise _unknown(session, request.task_name)
    if not caller.may_trigger(definition.name):
        raise Forbidden(f"You may not trigger {definition.name}.", required_scope=f"{definition.family}:write")
    issues: list[Issue] = []
    args = _args(definition, request.args, issues, path)
    priority = definition.priority if request.priority is None else request.priority
    if not 0 <= priority <= 9:
        issues.append(Issue((*path, "priority"), "must be 0 to 9"))
    for name, value in (("idempotencyKey", request.idempotency_key), ("concurrencyKey", request.concurrency_key)):
        if value is not None and not (1 <= len(value) <= _LONGEST_KEY and "\0" not in value):
            issues.append(Issue((*path, name), f"must be 1 to {_LONGEST_KEY} characters without a null character"))
    if request.queue is not None and request.queue not in registry.queues():
        issues.append(Issue((*path, "queue"), f"must be one of {', '.join(registry.queues())}"))
    _check_time(request, issues, path)
    if issues:
        raise InvalidInput(
            f"{'.'.join(issues[0].path)}: {issues[0].message}" if len(issues) == 1 else "Several values are wrong.",
            issues=issues,
        )
    return {
        "id": str(ids.new()),
        "task": definition.name,
        "queue": request.queue or definition.queue,
        "args": args,
        "priority": priority,
        "max_attempts": definition.retry.attempts,
        "delay": request.delay_seconds,
        "available_at": request.eta.isoformat() if request.eta else None,
        "concurrency_key": request.concurrency_key,
        "idempotency_key": request.idempotency_key,
        "digest": _digest(definition.name, args) if request.idempotency_key is not None else None,
        "origin_id": str(origin) if origin else None,
        "trace": None,
    }


def _definition(session: Session, name: str) -> registry.TaskDefinition[Any]:
    """The definition a name means. Only a name that several families have needs to know which are enabled."""
    everywhere = registry.families().keys()
    try:
        return registry.resolve(name, everywhere)
    except AmbiguousTask:
        return registry.resolve(name, enabled_families(session))
    except UnknownTask:
        raise _unknown(session, name) from None


def _unknown(session: Session, name: str) -> UnknownTask:
    """The error for a name that means nothing here, with candidates from the tenant's own families only."""
    try:
        registry.resolve(name, enabled_families(session))
    except UnknownTask as error:
        return error
    return UnknownTask(f"There is no task {name!r} among the enabled families.")


def enabled_families(session: Session) -> frozenset[str]:
    """The families that the session's tenant has switched on, also where the session is not inside it yet."""
    if session.info.get("single_statement"):
        names = session.scalars(
            text("SELECT * FROM enabled_families(:tenant)"), {"tenant": context.principal(session).tenant}
        )
        return frozenset(names)
    return switches.enabled(session)


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
    if len(orjson.dumps(args)) > _LARGEST_ARGS:
        issues.append(
            Issue((*path, "args"), f"must be at most {_LARGEST_ARGS} bytes of JSON: pass a reference instead")
        )
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


def _accept(session: Session, rows: list[dict[str, Any]]) -> list[Accepted]:
    caller = context.principal(session)
    engine = settings.current().engine
    try:
        found = session.execute(
            _TRIGGER,
            {
                "tenant": caller.tenant,
                "kind": caller.kind.value,
                "actor": caller.actor,
                "runs": orjson.dumps(rows).decode(),
                "kept": timedelta(hours=engine.idempotency_hours),
                "step": timedelta(seconds=engine.priority_step_seconds),
            },
        ).mappings()
        accepted = [Accepted(Run(**row), str(row["id"]) != given["id"]) for row, given in zip(found, rows, strict=True)]
    except DBAPIError as error:
        raise _own(error, rows) from error
    for one in accepted:
        if not one.replayed:
            run = one.run
            db.notify(session, Change(run.tenant_id, run.id, run.state, 1, 0, run.created_at, run.queue))
    for queue, key in {(one.run.queue, one.run.concurrency_key) for one in accepted if not one.replayed}:
        db.notify(session, Bell(queue, caller.tenant, key))
    return accepted


def _own(error: DBAPIError, rows: list[dict[str, Any]]) -> Exception:
    """The expected error behind a code that the database's function raised."""
    code = getattr(error.orig, "pgcode", None) or getattr(error.orig, "sqlstate", None)
    detail = _detail(error)
    if code == "TN001":
        existing = UUID(detail) if detail else None
        return Conflict("This idempotency key was used with another task or other arguments.", existing=existing)
    if code == "TN002":
        return TenantSuspended()
    if code == "TN003":
        names = [row["task"] for row in rows if row["task"].startswith(f"{detail}.")]
        return UnknownTask(f"There is no task {names[0]!r} here: the family {detail} is not enabled.")
    return error


def _detail(error: DBAPIError) -> str | None:
    """The error's detail, by whichever driver."""
    original: Any = error.orig
    if diagnostics := getattr(original, "diag", None):
        return cast("str | None", diagnostics.message_detail)
    return cast("str | None", getattr(original.__cause__ or original, "detail", None))
