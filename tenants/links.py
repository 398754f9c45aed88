"""The links in mails: what they are made of, and what somebody asked for who is in no tenant yet.

The secret in a link is derived: the id of the row it stands for, signed under a ring of keys of its own. No row, run or
log holds it, and workers, who write the mails, can't make an access token of what they sign with.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any
from urllib.parse import quote
from uuid import UUID

from email_validator import EmailNotValidError, validate_email
from sqlalchemy import text
from sqlalchemy.orm import Session

from tenants import audit, context, db, identity, ids, signing
from tenants.errors import Conflict, InvalidInput, Issue, NotFound
from tenants.models import AccountLink
from tenants.settings import KeyRing, Settings

_PARTS = struct.Struct(">B16s16s")
_LONGEST = 500
_NO_TENANT = UUID(int=0)
_LONGEST_NAME = 60
_FIND = text("SELECT * FROM find_link(:kind, :link)")
_RESET = text("SELECT reset_password(:link, :hash) AS user_id")
_SIGN_UP = text("SELECT sign_up(:link, :tenant, :slug, :families, :user, :hash, :entry, :actor, :shown)")


class Kind(IntEnum):
    """What a link is for; each is good for nothing else."""

    INVITATION = 1
    RESET = 2
    SIGN_UP = 3


PATHS = {Kind.INVITATION: "invitation", Kind.RESET: "reset", Kind.SIGN_UP: "signup"}
"""The page under `/auth` that a link leads to."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a genuine link says.

    Args:
        tenant: where its row is, of an invitation.
        row: the row it stands for; whether that is still good is for the database to say.
    """

    tenant: UUID
    row: UUID


@dataclass(frozen=True, slots=True)
class Open:
    """A link that is still good, and the person it was mailed to.

    Args:
        slug: what the tenant is to be called, of a sign-up.
        user: who has this address; None where nobody does.
        password_hash: theirs; None where they have no password, or there is nobody.
    """

    email: str
    slug: str | None
    user: UUID | None
    password_hash: str | None


def url(settings: Settings, kind: Kind, row: UUID, tenant: UUID = _NO_TENANT) -> str:
    """The address that a mail points to. The secret stands behind the #, which no browser sends and no server logs."""
    token = signing.seal(settings.auth.link_keys, _PARTS.pack(kind, tenant.bytes, row.bytes))
    return f"{settings.api.public_url.rstrip('/')}/auth/{PATHS[kind]}#token={quote(token)}"


def read(ring: KeyRing, kind: Kind, token: str) -> Link:
    """What the secret of a link says, its signature verified. Asks no database.

    Raises:
        NotFound: it is none of ours, or of another kind.
    """
    data = signing.unseal(ring, token) if len(token) <= _LONGEST else None
    if data is None or len(data) != _PARTS.size:
        raise gone()
    given, tenant, row = _PARTS.unpack(data)
    if given != kind:
        raise gone()
    return Link(UUID(bytes=tenant), UUID(bytes=row))


def gone() -> NotFound:
    """The one answer to every link that is not good, whatever is wrong with it."""
    return NotFound("This link is not valid any more: it was used, revoked or changed, or its time is over.")


def deliverable(email: str) -> str:
    """An address that a mail can be sent to, as it is kept and compared.

    Raises:
        InvalidInput: it is none.
    """
    address = identity.normalise(email)
    try:
        validate_email(address, check_deliverability=False)
    except EmailNotValidError:
        raise InvalidInput(issues=[Issue(("email",), "is not an address")]) from None
    return address


def ask_reset(session: Session, settings: Settings, email: str) -> AccountLink:
    """Note that a new password was asked for, whether or not anybody has the address.

    Raises:
        InvalidInput: it is no address.
    """
    return _ask(session, Kind.RESET, email, timedelta(minutes=settings.auth.reset_minutes))


def ask_sign_up(
    session: Session, settings: Settings, email: str, slug: str, name: str | None, timezone: str
) -> AccountLink:
    """Note that somebody wants a tenant, which there is once they have shown that the address is theirs.

    Raises:
        InvalidInput: a value is wrong.
    """
    identity.check_tenant(slug, timezone, path="tenant")
    name = (name or slug).strip()
    if not 1 <= len(name) <= _LONGEST_NAME:
        message = f"must be 1 to {_LONGEST_NAME} characters"
        raise InvalidInput(issues=[Issue(("name",), message)])
    lifetime = timedelta(hours=settings.auth.sign_up_hours)
    return _ask(session, Kind.SIGN_UP, email, lifetime, slug=slug, name=name, timezone=timezone)


@db.single_statement
def find(session: Session, kind: Kind, row: UUID) -> Open:
    """A link that is still good.

    Raises:
        NotFound: it is not.
    """
    rows = db.fetch(session, _FIND, {"kind": kind.name, "link": row})
    if not rows:
        raise gone()
    [found] = rows
    return Open(found["email"], found["slug"], found["user_id"], found["password_hash"])


def reset(session: Session, row: UUID, password_hash: str) -> UUID:
    """Set the password of the person a link was mailed to, and end all of their logins; returns the person.

    Raises:
        NotFound: the link is not good any more.
    """
    [found] = db.fetch(session, _RESET, {"link": row, "hash": password_hash})
    user: UUID | None = found["user_id"]
    if user is None:
        raise gone()
    audit.record(session, "password.reset", ids.show("usr", user))
    return user


def sign_up(
    session: Session, row: UUID, slug: str, families: list[str], user: UUID | None, password_hash: str
) -> tuple[UUID, UUID]:
    """Make the tenant that a link was mailed for, with its owner; returns both.

    Args:
        user: who has the link's address; None where nobody does.
        password_hash: the owner's: verified where they have one, new where they have none.

    Raises:
        NotFound: the link is not good any more.
        Conflict: the slug is taken; the link stays good for another.
    """
    tenant, owner = ids.new(), user or ids.new()
    values = {
        "link": row,
        "tenant": tenant,
        "slug": slug,
        "families": sorted(set(families)),
        "user": owner,
        "hash": password_hash,
        "entry": ids.new(),
        "actor": context.principal(session).actor,
        "shown": ids.show("usr", owner),
    }
    outcome = session.scalar(_SIGN_UP, values)
    if outcome == "taken":
        raise Conflict(f"There is a tenant {slug!r} already: choose another name.")
    if outcome != "made":
        raise gone()
    audit.record(session, "tenant.create", ids.show("ten", tenant), owner=ids.show("usr", owner))
    return tenant, owner


def _ask(session: Session, kind: Kind, email: str, lifetime: timedelta, **detail: Any) -> AccountLink:
    row = AccountLink(
        id=ids.new(),
        kind=kind.name,
        email=deliverable(email),
        detail=detail,
        expires_at=datetime.now(UTC) + lifetime,
    )
    session.add(row)
    session.flush()
    return row
