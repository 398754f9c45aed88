"""Why a run waits, and when it may start."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select, text
from sqlalchemy.orm import Session

from tasks.engine import figures, runs
from tasks.engine.admission import EACH, Limit, LimitKind
from tasks.engine.fleet import serves
from tasks.engine.models import WHOLE, DispatcherLeader, Pause, Run, RunEvent
from tasks.engine.states import TERMINAL, RunState
from tenants.models import Tenant

APPROVAL = "approval:"
"""What the name of an event begins with that a person brings about."""
_MOST = 100_000
_EVENTS = 500
_RECENTLY = timedelta(seconds=60)
_LAST_ENDED = 20
_CONCERNING = text("""
SELECT l.*,
  (SELECT count(*) FROM runs o WHERE o.tenant_id = l.tenant_id AND o.state IN ('RELEASED', 'RUNNING')
     AND counts_beside(l.queue, l.task, l.concurrency_key, o.queue, o.task, o.concurrency_key, r.concurrency_key)
  ) AS running,
  (SELECT count(*) FROM (
     SELECT FROM runs o WHERE o.tenant_id = l.tenant_id AND o.state = 'QUEUED' AND (o.rank, o.id) < (r.rank, r.id)
       AND counts_beside(l.queue, l.task, l.concurrency_key, o.queue, o.task, o.concurrency_key, r.concurrency_key)
     LIMIT :most) o) AS ahead,
  coalesce((SELECT s.arrival FROM limit_states s WHERE s.tenant_id = l.tenant_id AND s.limit_id = l.id
     AND s.key = CASE WHEN l.concurrency_key = '*' THEN r.concurrency_key ELSE '' END), 0) AS arrival
FROM runs r JOIN limits l ON l.tenant_id = r.tenant_id AND l.kind IN ('CONCURRENCY', 'RATE')
  AND concerns(l.queue, l.task, l.concurrency_key, r.queue, r.task, r.concurrency_key)
WHERE r.id = :run
""")


class WaitReason(StrEnum):
    """What a run waits for."""

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


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a run waits.

    Args:
        message: for people.
        limit_name: the limit that holds it back.
        position: how many of the tenant's runs are to start before it, and itself.
        expected_start: when it may start, as far as that can be told.
    """

    run: Run
    reason: WaitReason
    message: str
    limit_name: str | None = None
    position: int | None = None
    expected_start: datetime | None = None


def explain(session: Session, run_id: UUID) -> Explanation:
    """The first thing that keeps a run from starting, of all that might.

    Raises:
        NotFound: there is no such run.
    """
    run = runs.get(session, run_id)
    if run.state in TERMINAL:
        return Explanation(run, WaitReason.NOT_WAITING, f"It has ended: {run.state}.")
    if run.state == RunState.RUNNING:
        return Explanation(run, WaitReason.NOT_WAITING, "It is running.")
    if run.state == RunState.WAITING:
        event = run.wait_event or ""
        if event.startswith(APPROVAL):
            return Explanation(run, WaitReason.APPROVAL, f"It waits for an approval: {event.removeprefix(APPROVAL)}.")
        return Explanation(run, WaitReason.EVENT, f"It waits for {event}, and holds no slot.")
    now = session.scalar(select(func.clock_timestamp()))
    assert now is not None
    if run.state == RunState.SCHEDULED and run.available_at > now:
        return _delayed(run)
    return _switched_off(session, run) or _out_of_order(session, run) or _held_back(session, run, now)


def _delayed(run: Run) -> Explanation:
    if run.error is not None and run.error.get("type") == "RetryLater":
        message = f"A provider asked for a pause: {run.error.get('message', '')}"
        return Explanation(run, WaitReason.PROVIDER_BACKOFF, message, expected_start=run.available_at)
    why = "It is tried again at" if run.error is not None else "It is to start at"
    message = f"{why} {run.available_at.isoformat(timespec='seconds')}."
    return Explanation(run, WaitReason.TIME, message, expected_start=run.available_at)


def _switched_off(session: Session, run: Run) -> Explanation | None:
    if session.scalar(select(Tenant.suspended_at).where(Tenant.id == run.tenant_id)) is not None:
        return Explanation(run, WaitReason.TENANT_PAUSED, "The tenant is suspended.")
    pauses = {
        pause.task: pause
        for pause in session.scalars(select(Pause).where(Pause.task.in_([WHOLE, run.task]), Pause.draining.is_(False)))
    }
    if WHOLE in pauses:
        return Explanation(run, WaitReason.TENANT_PAUSED, _noted("The tenant is paused", pauses[WHOLE]))
    if run.task in pauses:
        return Explanation(run, WaitReason.TASK_PAUSED, _noted(f"{run.task} is paused", pauses[run.task]))
    return None


def _out_of_order(session: Session, run: Run) -> Explanation | None:
    if not session.scalar(select(func.count()).select_from(DispatcherLeader).where(figures.leading())):
        message = "No dispatcher is at work: start `celery -A tasks.worker beat`."
        return Explanation(run, WaitReason.NO_DISPATCHER, message)
    consuming = [
        worker for worker in figures.workers(session) if worker.alive and worker.slots and run.queue in worker.queues
    ]
    if not consuming:
        message = f"No live worker consumes the queue {run.queue}: start one with `-Q {run.queue}`."
        return Explanation(run, WaitReason.NO_WORKER, message)
    if not any(serves(worker.queues, worker.tasks, run.queue, run.task) for worker in consuming):
        message = f"No live worker on the queue {run.queue} knows the task {run.task}: start one whose code has it."
        return Explanation(run, WaitReason.NO_WORKER, message)
    if run.state == RunState.RELEASED:
        return Explanation(run, WaitReason.NOT_WAITING, "It is on its way to a worker.")
    if run.state == RunState.SCHEDULED:
        return Explanation(run, WaitReason.TIME, "It is due.", expected_start=run.available_at)
    return None


def _held_back(session: Session, run: Run, now: datetime) -> Explanation:
    found = []
    for row in session.execute(_CONCERNING, {"run": run.id, "most": _MOST}):
        if row.kind == LimitKind.RATE:
            rate = Limit(row.id, LimitKind.RATE, row.amount, row.per_seconds, row.burst)
            if (opens := rate.opens(row.arrival)) > now.timestamp():
                found.append(_slowed(run, row, opens + row.ahead * rate.interval, now))
        elif row.running >= row.amount:
            found.append(_capped(session, run, row, now))
    if found:
        return max(found, key=lambda one: one.expected_start or now)
    ahead = _ahead(session, run)
    pace = _pace(session, now)
    return Explanation(
        run,
        WaitReason.FAIR_SHARE,
        f"It waits for its turn: {ahead} of the tenant's runs in the queue {run.queue} are before it.",
        position=ahead + 1,
        expected_start=None if pace is None else now + (ahead + 1) * pace,
    )


def _capped(session: Session, run: Run, limit: Row[Any], now: datetime) -> Explanation:
    which = f" for each of its keys, here {run.concurrency_key}" if limit.concurrency_key == EACH else ""
    seconds = session.scalar(
        select(func.avg(Run.worker_seconds)).where(
            Run.id.in_(
                select(Run.id)
                .where(Run.task == run.task, Run.state == RunState.SUCCEEDED)
                .order_by(Run.id.desc())
                .limit(_LAST_ENDED)
            )
        )
    )
    return Explanation(
        run,
        WaitReason.CONCURRENCY_LIMIT,
        f"The limit {limit.name} lets {limit.amount:g} run at once{which}, and so many do.",
        limit_name=limit.name,
        position=limit.ahead + 1,
        expected_start=None if seconds is None else now + timedelta(seconds=seconds) * (limit.ahead + 1) / limit.amount,
    )


def _moment(seconds: float, zone: tzinfo | None) -> datetime | None:
    """A time as a date, if it is one that dates can tell."""
    try:
        return datetime.fromtimestamp(seconds, zone)
    except (ValueError, OverflowError):
        return None


def _slowed(run: Run, limit: Row[Any], starts: float, now: datetime) -> Explanation:
    return Explanation(
        run,
        WaitReason.RATE_LIMIT,
        f"The limit {limit.name} lets {limit.amount:g} start in {limit.per_seconds:g} s; {limit.ahead} are before it.",
        limit_name=limit.name,
        position=limit.ahead + 1,
        expected_start=_moment(starts, now.tzinfo),
    )


def _ahead(session: Session, run: Run) -> int:
    before = (
        select(Run.id)
        .where(Run.state == RunState.QUEUED, Run.queue == run.queue, Run.rank < run.rank)
        .limit(_MOST)
        .subquery()
    )
    return session.scalar(select(func.count()).select_from(before)) or 0


def _pace(session: Session, now: datetime) -> timedelta | None:
    """The time from one start to the next, as the tenant's last events show it; None where nothing has started."""
    last = select(RunEvent.state, RunEvent.at).order_by(RunEvent.xid.desc()).limit(_EVENTS).subquery()
    starts, first = session.execute(
        select(func.count(), func.min(last.c.at)).where(last.c.state == RunState.RUNNING, last.c.at > now - _RECENTLY)
    ).one()
    return (now - first) / starts if starts else None


def _noted(what: str, pause: Pause) -> str:
    return f"{what}: {pause.note}" if pause.note else f"{what}."
