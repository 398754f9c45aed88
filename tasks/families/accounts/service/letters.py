"""What the mails say."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.orm import Session

from tenants import identity, invitations, links
from tenants.errors import NotFound
from tenants.links import Kind
from tenants.settings import Settings

_LONGEST_NAME = 60
_MARKS = frozenset(" &'’+,-()")
_IGNORE = "If you did not expect this mail, ignore it: nothing happens without the link."


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail to one person."""

    to: str
    subject: str
    text: str


def invitation(session: Session, settings: Settings, row: UUID) -> Letter | None:
    """The mail of an invitation; None if it can't be accepted any more."""
    found = invitations.get(session, row)
    if not invitations.is_open(found, datetime.now(UTC)):
        return None
    tenant = identity.tenant(session)
    name = _plain(tenant.name) or tenant.slug
    role = _plain(found.custom.name) if found.custom is not None else (found.role or "").lower()
    link = links.url(settings, Kind.INVITATION, row, tenant.id)
    return Letter(
        found.email,
        f"You are invited to {name}",
        f"You are invited to {name} ({tenant.slug}) as {role}. This link works once, until"
        f" {found.expires_at:%d %B %Y, %H:%M} UTC:\n\n{link}\n\n{_IGNORE}\n",
    )


def reset(session: Session, settings: Settings, row: UUID) -> Letter | None:
    """The mail with the link for a new password; None if nobody has the address, or the link is not good any more."""
    found = _find(session, Kind.RESET, row)
    if found is None or found.user is None:
        return None
    link = links.url(settings, Kind.RESET, row)
    return Letter(
        found.email,
        "Choose a new password",
        f"This link lets you choose a new password. It works once, for {settings.auth.reset_minutes:g} minutes, and"
        f" ends all of your logins:\n\n{link}\n\n{_IGNORE}\n",
    )


def verification(session: Session, settings: Settings, row: UUID) -> Letter | None:
    """The mail with the link by which a tenant is signed up; None if it is not good any more."""
    found = _find(session, Kind.SIGN_UP, row)
    if found is None:
        return None
    link = links.url(settings, Kind.SIGN_UP, row)
    return Letter(
        found.email,
        f"Confirm {found.slug}",
        f"You asked for {found.slug}. This link makes it, and you its owner. It works once, for"
        f" {settings.auth.sign_up_hours:g} hours:\n\n{link}\n\n{_IGNORE}\n",
    )


def _plain(name: str) -> str:
    """A name of a tenant's choosing in a mail to somebody whom it has chosen: short, and nothing that makes a link."""
    kept = (sign if sign in _MARKS or unicodedata.category(sign)[0] in "LMN" else " " for sign in name)
    return " ".join("".join(kept).split())[:_LONGEST_NAME].rstrip()


def _find(session: Session, kind: Kind, row: UUID) -> links.Open | None:
    try:
        return links.find(session, kind, row)
    except NotFound:
        return None
