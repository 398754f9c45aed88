"""A tenant as a whole: suspended, resumed, erased. For operators; the actor is named in the audit log."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from uuid import UUID

from sqlalchemy import text

from tenants import ids, system
from tenants.errors import InvalidState, NotFound
from tenants.settings import Settings

_SUSPEND = text("SELECT suspend_tenant(:tenant, :entry, :actor, :note)")
_RESUME = text("SELECT resume_tenant(:tenant, :entry, :actor)")
_BEGIN = text("SELECT begin_erasure(:tenant, :entry, :actor)")
_DESERTED = text("SELECT is_deserted(:tenant)")
_RUNS = text("SELECT id FROM runs WHERE tenant_id = :tenant AND id > :after ORDER BY id LIMIT :most")
_ERASE = text("SELECT erase_rows(:tenant, :most)")
_END = text("SELECT end_tenant(:tenant)")
_LEFT = text("SELECT name, total FROM tenant_rows(:tenant)")
_PORTION = 5000
_PAUSE_SECONDS = 0.2


def suspend(settings: Settings, tenant: UUID, actor: str, note: str | None = None) -> None:
    """Stop a tenant: nothing of it starts, what runs is stopped and waits for its return, its people may only read.

    Args:
        note: why, for its audit log.

    Raises:
        NotFound: there is no such tenant.
    """
    values = {"tenant": tenant, "entry": ids.new(), "actor": actor, "note": note}
    with system.connect(settings) as connection:
        if not connection.scalar(_SUSPEND, values):
            raise NotFound


def resume(settings: Settings, tenant: UUID, actor: str) -> None:
    """Let a suspended tenant go on where it stopped.

    Raises:
        InvalidState: it is being erased.
    """
    with system.connect(settings) as connection:
        if not connection.scalar(_RESUME, {"tenant": tenant, "entry": ids.new(), "actor": actor}):
            raise InvalidState("The tenant is being erased: that has no way back.", state="erasing")


def begin_erasure(settings: Settings, tenant: UUID, actor: str) -> None:
    """Suspend a tenant for good, and wait until nobody is inside it: no attempt, and no transaction.

    Whoever comes later is refused, so that nothing of it can appear again. What was begun may be begun again.

    Raises:
        InvalidState: it is the operators' own.
    """
    with system.connect(settings) as connection:
        if not connection.scalar(_BEGIN, {"tenant": tenant, "entry": ids.new(), "actor": actor}):
            raise InvalidState("The operators' own tenant can't be erased.", state="reserved")
    pause = threading.Event()
    while not _is_deserted(settings, tenant):
        pause.wait(_PAUSE_SECONDS)


def runs(settings: Settings, tenant: UUID) -> Iterator[list[UUID]]:
    """The ids of all the tenant's runs, in portions."""
    after = UUID(int=0)
    while True:
        with system.connect(settings) as connection:
            found = list(connection.scalars(_RUNS, {"tenant": tenant, "after": after, "most": _PORTION}))
        if not found:
            return
        yield found
        after = found[-1]


def erase_rows(settings: Settings, tenant: UUID) -> Iterator[int]:
    """Delete what a tenant that is being erased has in the database, in portions; how many rows each had."""
    while True:
        with system.connect(settings) as connection:
            erased = int(connection.execute(_ERASE, {"tenant": tenant, "most": _PORTION}).scalar_one())
        if not erased:
            return
        yield erased


def end(settings: Settings, tenant: UUID) -> None:
    """The last step of an erasure: the tenant's own row, and the people who are members of no other."""
    with system.connect(settings) as connection:
        connection.execute(_END, {"tenant": tenant})


def rows_left(settings: Settings, tenant: UUID) -> dict[str, int]:
    """How many rows of a tenant each table has; only those that have some."""
    with system.connect(settings) as connection:
        return {row.name: row.total for row in connection.execute(_LEFT, {"tenant": tenant})}


def _is_deserted(settings: Settings, tenant: UUID) -> bool:
    with system.connect(settings) as connection:
        return bool(connection.scalar(_DESERTED, {"tenant": tenant}))
