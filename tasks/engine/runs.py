"""Runs: accept, read, cancel, repeat."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import orjson
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, defer

from tasks.engine import filters, requests
from tasks.engine.filters import RunFilter
from tasks.engine.ledger import Change
from tasks.engine.lines import Candidate, Line
from tasks.engine.models import Run, RunEvent, RunLease, RunProgress
from tasks.engine.publish import Bell
from tasks.engine.requests import TriggerRequest as TriggerRequest
from tasks.engine.states import TERMINAL, RunState
from tenants import audit, context, db, ids, pages, settings
from tenants.errors import (
    Forbidden,
    InvalidInput,
    InvalidState,
    NotFound,
)
from tenants.pages import Page

_BRIEF = (defer(Run.args), defer(Run.result))
_TRIGGER = text("SELECT * FROM trigger_runs(:tenant, :kind, :actor, CAST(:runs AS jsonb), :kept, :step)")


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted run; replayed when the idempotency key returned an earlier one."""

    run: Run
    replayed: bool


@db.single_statement
def trigger(session: Session, request: TriggerRequest) -> Accepted:
    """Accept a run, in one trip and one transaction; in the session's own where that is open.

    Raises:
        UnknownTask, AmbiguousTask: the name fits no task, or several.
        InvalidInput: a value is wrong; its issues name the fields.
        Forbidden: the caller may not trigger this task.
        Conflict: the idempotency key was used with other arguments.
        QuotaExceeded: more would wait than a limit allows.
        InvalidState: the tenant or the task is drained.
        TenantSuspended: the tenant is suspended.
    """
    return accept(session, [requests.check(session, request)])[0]


@db.single_statement
def trigger_many(session: Session, wanted: Sequence[TriggerRequest]) -> list[Accepted]:
    """Accept up to 1,000 runs: all or none.

    Raises:
        As `trigger`; the path of an issue begins with the request's index.
    """
    if len(wanted) > (most := settings.current().engine.bulk_size):
        raise InvalidInput(f"At most {most} runs at once: split the list.")
    if not wanted:
        return []
    return accept(session, [requests.check(session, request, str(index)) for index, request in enumerate(wanted)])


def accept(session: Session, rows: list[dict[str, Any]]) -> list[Accepted]:
    """Accept what `requests.check` has passed, all or none, in one statement.

    Raises:
        As `trigger`.
    """
    caller = context.principal(session)
    engine = settings.current().engine
    # Keys are taken in one order, whatever the list's: two lists would else wait for each other.
    places = sorted(range(len(rows)), key=lambda place: rows[place]["idempotency_key"] or "")
    try:
        found = db.fetch(
            session,
            _TRIGGER,
            {
                "tenant": caller.tenant,
                "kind": caller.kind.value,
                "actor": caller.actor,
                "runs": orjson.dumps([rows[place] for place in places]).decode(),
                "kept": timedelta(hours=engine.idempotency_hours),
                "step": timedelta(seconds=engine.priority_step_seconds),
            },
        )
    except DBAPIError as error:
        raise requests.refused(error, rows) from error
    by_id = {str(row["id"]): _as_it_is(row) for row in found}
    by_key = {run.idempotency_key: run for run in by_id.values()}
    accepted = [
        Accepted(by_id.get(given["id"]) or by_key[given["idempotency_key"]], given["id"] not in by_id) for given in rows
    ]
    for one in accepted:
        if not one.replayed:
            run = one.run
            db.notify(session, Change(run.tenant_id, run.id, run.state, 1, 0, run.created_at, run.queue))
    _ring(session, [one.run for one in accepted if not one.replayed and one.run.state == RunState.QUEUED])
    return accepted


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
    """Several runs of the tenant by id, without arguments and results; what does not exist is left out."""
    return {run.id: run for run in session.scalars(select(Run).options(*_BRIEF).where(Run.id.in_(run_ids)))}


def args_of(session: Session, run_ids: Collection[UUID]) -> dict[UUID, dict[str, Any]]:
    """The arguments of those runs that there are."""
    return dict(session.execute(select(Run.id, Run.args).where(Run.id.in_(run_ids))).all())


def results_of(session: Session, run_ids: Collection[UUID]) -> dict[UUID, Any]:
    """The results of those runs that there are."""
    return dict(session.execute(select(Run.id, Run.result).where(Run.id.in_(run_ids))).all())


def page(
    session: Session,
    wanted: RunFilter,
    *,
    first: int | None = None,
    after: str | None = None,
    last: int | None = None,
    before: str | None = None,
) -> Page[Run]:
    """One page of runs, newest first, without arguments and results, which may be large."""
    return pages.read(
        session,
        filters.matching(select(Run), wanted).options(*_BRIEF),
        Run.id,
        "run",
        first=first,
        after=after,
        last=last,
        before=before,
    )


def count(session: Session, wanted: RunFilter, most: int) -> int:
    """How many runs match, counted up to `most`."""
    found = filters.matching(select(Run.id), wanted).limit(most).subquery()
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
        Forbidden: the caller's key is narrowed to other tasks.
        InvalidState: it has ended.
    """
    run = session.scalar(select(Run).where(Run.id == run_id).with_for_update())
    if run is None:
        raise NotFound
    narrowed = context.principal(session).task_names
    if narrowed is not None and run.task not in narrowed:
        raise Forbidden(f"This key is not for {run.task}.")
    if run.state in TERMINAL:
        raise InvalidState(f"The run has ended: {run.state}.", state=run.state)
    now = session.scalar(select(func.clock_timestamp()))
    asked_before = run.cancel_requested_at is not None
    run.cancel_requested_at = run.cancel_requested_at or now
    if run.state == RunState.RUNNING:
        session.execute(update(RunLease).where(RunLease.run_id == run_id).values(cancel=True))
    else:
        move(session, run, RunState.CANCELLED, "cancelled before it started")
        run.finished_at = now
    session.flush()
    if not asked_before:
        audit.record(session, "run.cancel", ids.show("run", run.id), task=run.task)
    return run


def retry(
    session: Session, run_id: UUID, args: Mapping[str, Any] | None = None, *, repeat_effects: bool = False
) -> Run:
    """A new run that repeats an ended one and names it as its origin.

    With the same arguments it is the same work: what the run has done outside is not done again, its answers are taken.
    With other arguments it is new work, whose effects are its own.

    Args:
        args: other arguments; the same when None.
        repeat_effects: do again outside what was done.

    Raises:
        NotFound: there is no such run.
        InvalidState: it has not ended.
        Else as `trigger`.
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
    checked = requests.check(session, request, origin=run.origin_id or run.id)
    if checked["args"] == run.args and not repeat_effects:
        checked["effects_of"] = str(run.effects_of or run.id)
    accepted = accept(session, [checked])[0].run
    run.retried_by = accepted.id
    session.flush()
    return accepted


def deliver(session: Session, event: str) -> int:
    """Wake the runs that wait for the event; returns how many."""
    waiting = session.scalars(
        select(Run).where(Run.state == RunState.WAITING, Run.wait_event == event).with_for_update()
    ).all()
    for run in waiting:
        move(session, run, RunState.QUEUED, f"{event} happened")
        run.wait_event = None
    _ring(session, list(waiting))
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


def line(run: Run) -> Line:
    """What the run waits in."""
    return Line(run.tenant_id, run.queue, run.task, run.concurrency_key)


def _ring(session: Session, queued: list[Run]) -> None:
    """Tell that these runs wait; a single one by name."""
    if len(queued) == 1:
        [run] = queued
        db.notify(session, Bell(line(run), Candidate(run.rank, run.id, line(run))))
    else:
        for place in {line(run) for run in queued}:
            db.notify(session, Bell(place))


def _as_it_is(row: Mapping[str, Any]) -> Run:
    """A run that no session knows. Setting its columns one by one through the mapper costs more than reading them."""
    run = Run()
    vars(run).update(row)
    return run
