"""Plans and quotas: how much a tenant may use, what it has used, and the stop when that is all.

Some quotas are of what is used up in a month, in UTC: runs, bytes uploaded. Others are of what there is: keys, members,
schedules, runs that wait. Those of schedules and bytes can be set, and nothing counts under them yet.

What is counted for a quota is counted under its lock, so that however many come at once no more get through than the
limit; runs, which come the fastest, only when the limit is near (`admit_runs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from enum import StrEnum

import orjson
from sqlalchemy import Select, delete, func, select, text
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tenants import audit, context, ids
from tenants.context import ActorKind
from tenants.errors import Forbidden, InvalidInput, InvalidState, Issue, NotFound, QuotaExceeded
from tenants.models import Plan

DEFAULT = "standard"
"""The plan of tenants that were given no other."""

_LONGEST_NAME = 63
_LARGEST = 1e15
_LOCK = text("SELECT pg_advisory_xact_lock(quota_lock(:tenant, :quota))")
_NOTE = text("SELECT note_quota(:tenant, :entry, :quota, :most, :used)")
_USED = text("SELECT amount FROM used(:tenant, :kind, coalesce(:month, usage_period(clock_timestamp())))")
_ASSIGN = text("SELECT * FROM assign_plan(:slug, :plan, CAST(:quotas AS jsonb), :entry, :kind, :actor)")


class Quota(StrEnum):
    """What a plan can limit."""

    RUNS = "runs"
    BACKLOG = "backlog"
    SCHEDULES = "schedules"
    KEYS = "keys"
    MEMBERS = "members"
    UPLOAD_BYTES = "uploadBytes"


_EXCEEDED = {
    Quota.RUNS: "The plan lets {most:g} runs a month be accepted, and {used:g} were.",
    Quota.BACKLOG: "The plan lets {most:g} runs wait, and {used:g} do: come back when some have started.",
    Quota.SCHEDULES: "The plan has room for {most:g} schedules, and there are {used:g}.",
    Quota.KEYS: "The plan has room for {most:g} API keys, and there are {used:g}.",
    Quota.MEMBERS: "The plan has room for {most:g} members, and there are {used:g}.",
    Quota.UPLOAD_BYTES: "The plan lets {most:g} bytes a month be uploaded, and {used:g} were.",
}


def exceeded(quota: Quota, most: float, used: float) -> QuotaExceeded:
    """The error of a quota that has no room for what was asked."""
    return QuotaExceeded(_EXCEEDED[quota].format(most=most, used=used), limit_name=quota.value, limit=most, used=used)


def every(session: Session) -> Mapping[Quota, float]:
    """The limits of the session's tenant; what is not there has none."""
    tenant = context.principal(session).tenant
    found: dict[str, float | None] = session.scalar(select(func.quotas_of(tenant, type_=JSONB))) or {}
    return {quota: most for quota in Quota if (most := found.get(quota.value)) is not None}


def take(session: Session, quota: Quota, there: Select[int], more: int = 1) -> None:
    """Make sure that there is room for more of what a quota counts, before it is made in this transaction.

    Whoever makes as many at the same time waits for the end of this transaction. Without a limit nobody does.

    Args:
        there: counts what there is.
        more: how many are about to be made.

    Raises:
        QuotaExceeded: there is no room.
    """
    most = every(session).get(quota)
    if most is not None:
        _lock(session, quota)
        _keep(session, quota, most, session.scalar(there) or 0, more)


def take_bytes(session: Session, number: int) -> None:
    """Count bytes that are about to be uploaded, in this transaction.

    Raises:
        QuotaExceeded: the month's are used up.
    """
    tenant = context.principal(session).tenant
    most = every(session).get(Quota.UPLOAD_BYTES)
    if most is not None:
        _lock(session, Quota.UPLOAD_BYTES)
        _keep(session, Quota.UPLOAD_BYTES, most, used(session, Quota.UPLOAD_BYTES), number)
    session.execute(select(func.count_usage(tenant, Quota.UPLOAD_BYTES.value, float(number))))


def used(session: Session, kind: str, month: date | None = None) -> float:
    """What the tenant has used up of something in a month; this one when None.

    Args:
        kind: a quota of what is used up, or `workerSeconds`.
        month: its first day.
    """
    found: float = session.scalar(_USED, {"tenant": context.principal(session).tenant, "kind": kind, "month": month})
    return found


def plans(session: Session) -> Sequence[Plan]:
    """All plans, by name."""
    return session.scalars(select(Plan).order_by(Plan.name)).all()


def set_plan(session: Session, name: str, quotas: Mapping[Quota, float | None]) -> Plan:
    """Make a plan, or change one. It holds from the next thing on that any of its tenants asks for.

    Args:
        name: of the plan.
        quotas: its limits; what is left out, or None, has none.

    Raises:
        InvalidInput: a value is wrong.
        Forbidden: the caller is no operator.
    """
    _require_operator(session)
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable() or name.strip() != name:
        message = f"must be 1 to {_LONGEST_NAME} characters, without space around them"
        raise InvalidInput(issues=[Issue(("name",), message)])
    values = {quota: most for quota, most in _checked(quotas).items() if most is not None}
    before = session.scalar(select(Plan.quotas).where(Plan.name == name))
    statement = insert(Plan).values(name=name, quotas=values)
    changes = {"quotas": values, "changed_at": func.now()}
    made = session.scalars(
        statement.on_conflict_do_update(index_elements=["name"], set_=changes).returning(Plan),
        execution_options={"populate_existing": True},
    ).one()
    audit.record(session, "plan.set", name, before=before, after=values)
    return made


def remove_plan(session: Session, name: str) -> None:
    """Take a plan away that no tenant has.

    Raises:
        NotFound: there is none of this name.
        InvalidState: a tenant has it, or it is the one that new tenants get.
        Forbidden: the caller is no operator.
    """
    _require_operator(session)
    if name == DEFAULT:
        raise InvalidState("New tenants get this plan: it stays.", state="IN_USE")
    try:
        before = session.scalar(delete(Plan).where(Plan.name == name).returning(Plan.quotas))
    except IntegrityError:
        raise InvalidState("Tenants have this plan: give them another one first.", state="IN_USE") from None
    if before is None:
        raise NotFound(f"There is no plan {name!r}.")
    audit.record(session, "plan.remove", name, before=before)


def assign(session: Session, slug: str, plan: str, quotas: Mapping[Quota, float | None] | None = None) -> None:
    """Give a tenant a plan. It holds from the next thing on that the tenant asks for; told in the logs of both.

    Args:
        slug: the tenant.
        plan: the plan's name.
        quotas: limits of the tenant's own in place of the plan's; None for no limit where the plan has one.

    Raises:
        NotFound: there is no such tenant, or no such plan.
        InvalidInput: a value is wrong.
        Forbidden: the caller is no operator.
    """
    caller = _require_operator(session)
    own = _checked(quotas or {})
    if session.get(Plan, plan) is None:
        raise NotFound(f"There is no plan {plan!r}.")
    given = {
        "slug": slug,
        "plan": plan,
        "quotas": orjson.dumps(own).decode(),
        "entry": ids.new(),
        "kind": caller.kind.value,
    }
    row = session.execute(_ASSIGN, {**given, "actor": caller.actor}).one_or_none()
    if row is None:
        raise NotFound(f"There is no tenant {slug!r}.")
    if row.tenant_id != caller.tenant:
        audit.record(session, "plan.assign", slug, before=row.before, after=row.after)


def _lock(session: Session, quota: Quota) -> None:
    session.execute(_LOCK, {"tenant": context.principal(session).tenant, "quota": quota.value})


def _keep(session: Session, quota: Quota, most: float, used: float, more: int) -> None:
    if used + more > most:
        raise exceeded(quota, most, used)
    told = {"tenant": context.principal(session).tenant, "entry": ids.new(), "quota": quota.value}
    session.execute(_NOTE, {**told, "most": most, "used": used + more})


def _require_operator(session: Session) -> context.Principal:
    caller = context.principal(session)
    if caller.kind is not ActorKind.OPERATOR:
        raise Forbidden("Only operators set plans.")
    return caller


def _checked(quotas: Mapping[Quota, float | None]) -> dict[str, float | None]:
    issues = [
        Issue((quota.value,), f"must be a whole number from 0 to {_LARGEST:g}")
        for quota, most in quotas.items()
        if most is not None and (not 0 <= most <= _LARGEST or most % 1)
    ]
    if issues:
        raise InvalidInput(issues=issues)
    return {quota.value: most for quota, most in quotas.items()}
