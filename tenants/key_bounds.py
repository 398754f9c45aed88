"""What a new key may be at most: nobody makes one that can do more than they, lasts longer, or comes from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from tenants import addresses, context
from tenants.addresses import Range
from tenants.errors import Forbidden


def check(
    session: Session,
    scopes: Sequence[str],
    task_names: Sequence[str] | None,
    address_ranges: Sequence[str] | None,
    expires_at: datetime | None,
) -> None:
    """Make sure that the caller may have a key like this.

    Raises:
        Forbidden: it is more than they are.
    """
    caller = context.principal(session)
    for scope in scopes:
        if not caller.may(scope):
            raise Forbidden(f"A key can't do more than its maker: you don't hold {scope}.", required_scope=scope)
    if caller.task_names is not None and not (task_names and caller.task_names.issuperset(task_names)):
        raise Forbidden("A key can't do more than its maker: yours is narrowed to some tasks.")
    if caller.address_ranges is not None and not _within(address_ranges, caller.address_ranges):
        raise Forbidden("A key is taken from no more addresses than the one that makes it: name addressRanges within.")
    if caller.expires_at is not None and (expires_at is None or expires_at > caller.expires_at):
        raise Forbidden(f"A key can't outlive the one that makes it, which ends at {caller.expires_at.isoformat()}.")


def _within(inner: Sequence[str] | None, outer: Sequence[Range]) -> bool:
    """Whether each of the ranges lies in one of the others."""
    return inner is not None and all(
        any(addresses.inside(addresses.read(one), other) for other in outer) for one in inner
    )
