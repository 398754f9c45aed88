"""What tenants and people go by: the tenant of a session, its name and local time, the one form of an address."""

from __future__ import annotations

import re
import unicodedata
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import select
from sqlalchemy.orm import Session

from tenants.errors import InvalidInput, Issue, NotFound
from tenants.models import Tenant

_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,255}")
_SLUG = re.compile(r"[a-z][a-z0-9_-]{0,62}")


def tenant(session: Session) -> Tenant:
    """The session's tenant."""
    found: Tenant | None = session.scalar(select(Tenant))
    if found is None:
        raise NotFound
    return found


def check_tenant(slug: str, timezone: str, *, path: str = "slug") -> None:
    """Check what a tenant is to be called, and its local time.

    Args:
        path: what the caller calls the slug.

    Raises:
        InvalidInput: a value is wrong.
    """
    if not _SLUG.fullmatch(slug):
        message = "must be at most 63 of a-z, 0-9, - and _, beginning with a letter"
        raise InvalidInput(issues=[Issue((path,), message)])
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        message = "is not an IANA name such as Europe/Berlin"
        raise InvalidInput(issues=[Issue(("timezone",), message)]) from None


def lock_tenant(session: Session) -> None:
    """Let one at a time change, until the end of the transaction, what all in the tenant must agree on."""
    session.execute(select(Tenant.id).with_for_update(key_share=True))


def share_tenant(session: Session) -> None:
    """Keep what all in the tenant must agree on as it is, until the end of the transaction."""
    session.execute(select(Tenant.id).with_for_update(read=True))


def normalise(email: str) -> str:
    """An e-mail address as it is kept and compared.

    Raises:
        InvalidInput: it is no address.
    """
    address = unicodedata.normalize("NFKC", email).strip().casefold()
    if not _EMAIL.fullmatch(address):
        raise InvalidInput(issues=[Issue(("email",), "is not an address")])
    return address
