"""What a tenant has switched on and off: its families, and pauses of its tasks."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from tasks import registry
from tasks.engine import documents
from tasks.engine.models import WHOLE, Pause
from tenants import audit, context
from tenants.context import ActorKind
from tenants.errors import Forbidden, InvalidInput, Issue, NotFound
from tenants.models import TenantFamily

_LONGEST_NOTE = 1000


def enabled(session: Session) -> frozenset[str]:
    """The names of the families that the tenant has switched on."""
    return frozenset(session.scalars(select(TenantFamily.family)))


def enable(session: Session, family: str) -> None:
    """Switch a family on; nothing changes where it is on.

    Raises:
        NotFound: this installation has no such family.
    """
    if family not in registry.offered():
        raise NotFound(f"There is no family {family!r}: choose from {', '.join(registry.offered())}.")
    if session.scalar(select(TenantFamily).where(TenantFamily.family == family)) is None:
        session.add(TenantFamily(family=family))
        session.flush()
        audit.record(session, "family.enable", family)


def resolve_task(session: Session, name: str) -> str:
    """The full name of a task of the tenant's.

    Raises:
        UnknownTask, AmbiguousTask: the name fits no task of its families, or several.
    """
    return registry.resolve(name, enabled(session)).name


def pauses(session: Session) -> Sequence[Pause]:
    """What is paused or drained, the whole tenant first."""
    return session.scalars(select(Pause).order_by(Pause.task)).all()


def pause(session: Session, task_name: str | None = None, note: str | None = None, *, draining: bool = False) -> None:
    """Let nothing more start; what runs goes on to its end. Or drain: accept nothing more, but run what was accepted.

    Args:
        task_name: of one task; of all when None.
        note: for people: why.
        draining: drain instead.

    Raises:
        UnknownTask, AmbiguousTask: the name fits no task of the tenant's families, or several.
        InvalidInput: the note is too long.
        Forbidden: an operator has paused it.
    """
    if note is not None and (len(note) > _LONGEST_NOTE or documents.readable(note) != note):
        message = f"must be at most {_LONGEST_NOTE} characters, none of them null"
        raise InvalidInput(issues=[Issue(("note",), message)])
    caller = context.principal(session)
    values = {
        "draining": draining,
        "note": note,
        "actor_kind": caller.kind.value,
        "actor": caller.actor,
        "at": func.clock_timestamp(),
    }
    statement = insert(Pause).values(task=WHOLE if task_name is None else resolve_task(session, task_name), **values)
    free = None if caller.kind is ActorKind.OPERATOR else Pause.actor_kind != ActorKind.OPERATOR.value
    written = statement.on_conflict_do_update(index_elements=["tenant_id", "task"], set_=values, where=free)
    if session.scalar(written.returning(Pause.task)) is None:
        raise Forbidden("An operator has paused this: only operators change it.")
    audit.record(session, "tasks.drain" if draining else "tasks.pause", task_name, reason=note)


def resume(session: Session, task_name: str | None = None) -> None:
    """End a pause or a drain; nothing changes where there is none. Pauses of single tasks outlast the whole tenant's.

    Raises:
        UnknownTask, AmbiguousTask: the name fits no task of the tenant's families, or several.
        Forbidden: an operator has paused it.
    """
    there = {row.task for row in pauses(session)}
    if task_name is None:
        name = WHOLE
    elif task_name in there:
        name = task_name  # The code of the task may be gone.
    else:
        name = resolve_task(session, task_name)
    statement = delete(Pause).where(Pause.task == name)
    if context.principal(session).kind is not ActorKind.OPERATOR:
        statement = statement.where(Pause.actor_kind != ActorKind.OPERATOR.value)
    if session.scalar(statement.returning(Pause.task)) is not None:
        audit.record(session, "tasks.resume", task_name)
    elif name in there:
        raise Forbidden("An operator has paused this: only operators resume it.")
