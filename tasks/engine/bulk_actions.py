"""One action on many runs: begun by a caller, carried out by the dispatcher, portion by portion.

An action is on the runs that match when it is begun, and gives each a verdict: done or failed. It never retries a run
that was retried before: whoever repeats a call doubles nothing.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Select, func, insert, literal, select, text
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from tasks import registry
from tasks.engine import dead_letters, filters
from tasks.engine.filters import RunFilter
from tasks.engine.ledger import SHARD, Change, Ledger, changes
from tasks.engine.models import BulkAction, Run
from tasks.engine.states import TERMINAL, RunState
from tenants import audit, context, ids
from tenants.errors import Forbidden, NotFound, QuotaExceeded
from tenants.models import Key

_OVER = text("""
SELECT l.name, l.amount, w.waiting, m.more
FROM limits l
CROSS JOIN LATERAL (
  SELECT count(*) AS more FROM bulk_actions b JOIN runs r ON r.tenant_id = b.tenant_id AND r.id = ANY (b.pending)
  WHERE b.id = :action AND concerns(l.queue, l.task, l.concurrency_key, r.queue, r.task, r.concurrency_key)
) m
CROSS JOIN LATERAL (
  SELECT backlog(l.tenant_id, l.queue, l.task, l.concurrency_key, floor(l.amount)::bigint + 1) AS waiting
) w
WHERE l.kind = 'BACKLOG' AND m.more > 0 AND w.waiting + m.more > l.amount
ORDER BY l.amount LIMIT 1
""")
_ADVANCE = "SELECT * FROM advance_bulk_action(%s, %s, %s, %s, %s)"
_MOST_AT_ONCE = 20
_PORTION = 250
_PORTION_BYTES = 1_000_000
"""What the arguments of a portion may weigh as they are stored; a single run may be heavier."""
_SECONDS = 0.05


class ActionKind(StrEnum):
    """What is done to each run."""

    CANCEL = "CANCEL"
    RETRY = "RETRY"


_ACTIONS: dict[ActionKind, audit.Action] = {ActionKind.CANCEL: "runs.cancel", ActionKind.RETRY: "runs.retry"}
_FITTING = {ActionKind.CANCEL: frozenset(RunState) - TERMINAL, ActionKind.RETRY: TERMINAL}
_UNASKED = {
    ActionKind.CANCEL: _FITTING[ActionKind.CANCEL],
    ActionKind.RETRY: frozenset({RunState.FAILED, RunState.TIMED_OUT}),
}
"""The states that are meant where a filter names none."""


def count(session: Session, kind: ActionKind, wanted: RunFilter) -> int:
    """How many runs an action would be on.

    Raises:
        As `begin`.
    """
    return session.scalar(select(func.count()).select_from(_matching(session, kind, wanted).subquery())) or 0


def begin(session: Session, kind: ActionKind, wanted: RunFilter) -> BulkAction:
    """Begin an action on every run that matches, within the states that it is for.

    CANCEL is for runs that have not ended. RETRY is for runs that have, and for FAILED and TIMED_OUT alone where the
    filter names no states; runs that were retried, and those of tasks that are no more, are left out. A key that is
    narrowed to named tasks acts on these only.

    Raises:
        NotFound: the filter names a group of dead letters that is not there.
        Forbidden: it is a group of a task that the caller's key is not for.
        QuotaExceeded: the tenant has as many unfinished actions as it may, or more would wait than a limit allows.
    """
    unfinished = session.scalar(select(func.count(BulkAction.id)).where(BulkAction.finished_at.is_(None))) or 0
    if unfinished >= _MOST_AT_ONCE:
        raise QuotaExceeded(
            f"{unfinished} bulk actions are not finished yet: wait for one of them.",
            limit_name="bulkActions",
            limit=_MOST_AT_ONCE,
            used=unfinished,
        )
    caller = context.principal(session)
    found = _matching(session, kind, wanted).subquery()
    matched = func.array_agg(aggregate_order_by(found.c.id, found.c.id), type_=ARRAY(Key))
    made = insert(BulkAction).from_select(
        ["id", "kind", "actor_kind", "actor", "total", "pending"],
        select(
            literal(ids.new(), Key),
            literal(kind.value),
            literal(caller.kind.value),
            literal(caller.actor),
            func.count(),
            func.coalesce(matched, literal([], ARRAY(Key))),
        ).select_from(found),
    )
    action = session.scalars(made.returning(BulkAction)).one()
    if kind is ActionKind.RETRY:
        _check_backlog(session, action.id)
    audit.record(session, _ACTIONS[kind], ids.show("bulk", action.id), matched=action.total, filter=_told(wanted))
    return action


def get(session: Session, action_id: UUID) -> BulkAction:
    """One of the tenant's actions, as far as it is.

    Raises:
        NotFound: there is none with this id.
    """
    found = session.scalar(select(BulkAction).where(BulkAction.id == action_id))
    if found is None:
        raise NotFound
    return found


def advance(ledger: Ledger, epoch: int | None, step: timedelta) -> list[Change]:
    """Carry out some portions of the actions of all tenants, in turn, within a twentieth of a second or a little more.

    Returns what has changed.

    Args:
        step: the head start of one step of priority.

    Raises:
        NotLeading: another dispatcher leads now.
    """
    until = time.monotonic() + _SECONDS
    moved: list[Change] = []
    [(vain,)] = ledger.call("SELECT count(*) FROM bulk_actions WHERE finished_at IS NULL")
    while vain > 0:
        rows = ledger.call(_ADVANCE, SHARD, epoch, _PORTION, _PORTION_BYTES, step)
        moved += changes(rows)
        vain -= not rows  # What holds one of them up must not hold up the next.
        if time.monotonic() >= until:
            break
    return moved


def _check_backlog(session: Session, action: UUID) -> None:
    """A retry is admitted as a whole when it begins: what it then adds is not counted again.

    Raises:
        QuotaExceeded: more would wait than a limit allows.
    """
    over = session.execute(_OVER, {"action": action}).first()
    if over is not None:
        message = (
            f"The limit {over.name} lets {over.amount:g} runs wait: {over.waiting} do, and {over.more} would more."
        )
        raise QuotaExceeded(message, limit_name=over.name, limit=over.amount, used=over.waiting)


def _told(wanted: RunFilter) -> dict[str, Any]:
    """What the audit log tells of a filter."""
    told = {name: value for name, value in asdict(wanted).items() if value is not None}
    if wanted.ids is not None:
        told["ids"] = [ids.show("run", run) for run in wanted.ids]
    if wanted.states is not None:
        told["states"] = [state.value for state in wanted.states]
    if wanted.schedule_id is not None:
        told["schedule_id"] = ids.show("sch", wanted.schedule_id)
    if wanted.dead_letter_group is not None:
        told["dead_letter_group"] = ids.show("dlg", wanted.dead_letter_group)
    return told


def _matching(session: Session, kind: ActionKind, wanted: RunFilter) -> Select[Any]:
    """The ids of the runs that the caller means."""
    narrowed = context.principal(session).task_names
    if wanted.dead_letter_group is not None:
        group = dead_letters.get(session, wanted.dead_letter_group)
        if narrowed is not None and group.task not in narrowed:
            raise Forbidden(f"This key is not for {group.task}.")
    states = _UNASKED[kind] if wanted.states is None else _FITTING[kind].intersection(wanted.states)
    query = filters.matching(select(Run.id), replace(wanted, states=states))
    if kind is ActionKind.RETRY:
        query = query.where(Run.retried_by.is_(None), Run.task.in_(registry.definitions()))
    return query if narrowed is None else query.where(Run.task.in_(narrowed))
