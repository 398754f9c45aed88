"""A tenant as a whole: suspended, resumed, erased. For operators; the actor is named in the audit log.

Each function takes a connection under the system login (`system.connect`), and every statement is a transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from tenants import ids
from tenants.errors import InvalidState, NotFound

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


def suspend(connection: Connection, tenant: UUID, actor: str, note: str | None = None) -> None:
    """Stop a tenant: nothing of it starts, what runs is stopped and waits for its return, its people may only read.

    Args:
        note: why, for its audit log.

    Raises:
        NotFound: there is no such tenant.
    """
    if not _ask(connection, _SUSPEND, tenant=tenant, entry=ids.new(), actor=actor, note=note):
        raise NotFound


def resume(connection: Connection, tenant: UUID, actor: str) -> None:
    """Let a suspended tenant go on where it stopped.

    Raises:
        InvalidState: it is being erased.
    """
    if not _ask(connection, _RESUME, tenant=tenant, entry=ids.new(), actor=actor):
        raise InvalidState("The tenant is being erased: that has no way back.", state="erasing")


def begin_erasure(connection: Connection, tenant: UUID, actor: str) -> None:
    """Suspend a tenant for good, and wait until nobody is inside it: no attempt, and no transaction.

    Whoever comes later is refused, so that nothing of it can appear again. What was begun may be begun again.

    Raises:
        InvalidState: it is the operators' own.
    """
    if not _ask(connection, _BEGIN, tenant=tenant, entry=ids.new(), actor=actor):
        raise InvalidState("The operators' own tenant can't be erased.", state="reserved")
    # Who waits in the lock's own queue holds up all who come behind, instead of having them refused at once.
    while not _ask(connection, _DESERTED, tenant=tenant):
        time.sleep(_PAUSE_SECONDS)


def runs(connection: Connection, tenant: UUID) -> Iterator[list[UUID]]:
    """The ids of all the tenant's runs, in portions."""
    after = UUID(int=0)
    while True:
        with connection.begin():
            found = list(connection.scalars(_RUNS, {"tenant": tenant, "after": after, "most": _PORTION}))
        if not found:
            return
        yield found
        after = found[-1]


def erase_rows(connection: Connection, tenant: UUID) -> Iterator[int]:
    """Delete what a tenant that is being erased has in the database, in portions; how many rows each had."""
    while erased := _ask(connection, _ERASE, tenant=tenant, most=_PORTION):
        yield erased


def end(connection: Connection, tenant: UUID) -> None:
    """The last step of an erasure: the tenant's own row, and the people who are members of no other."""
    _ask(connection, _END, tenant=tenant)


def rows_left(connection: Connection, tenant: UUID) -> dict[str, int]:
    """How many rows of a tenant each table has; only those that have some."""
    with connection.begin():
        return {row.name: row.total for row in connection.execute(_LEFT, {"tenant": tenant})}


def _ask(connection: Connection, statement: TextClause, **values: object) -> Any:
    with connection.begin():
        return connection.scalar(statement, values)
