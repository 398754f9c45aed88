"""People: who they are, what their role lets them do, and their logins."""

from __future__ import annotations

import hashlib
import re
import struct
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import argon2
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from tenants import context, db, ids, signing
from tenants.context import Role
from tenants.errors import InvalidInput, InvalidState, Issue, NotFound, Unauthenticated
from tenants.models import LoginSession, Membership, Tenant
from tenants.settings import Auth, KeyRing

_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
"""Argon2id with the parameters that OWASP's password storage cheat sheet names."""
_NOBODY = _HASHER.hash("nobody has this password")
"""Verified when there is no such person, so that the answer takes as long as for one who exists."""

_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,255}")
_SHORTEST_PASSWORD, _LONGEST_PASSWORD = 8, 1000
_GRACE = timedelta(seconds=10)
"""How long the last refresh token may be sent once more, for a client that never got the answer."""
_TOKEN = struct.Struct(">16s16sI")
_FIND_LOGIN = text("SELECT * FROM find_login(:slug, :email)")
_FIND_SESSION = text("SELECT * FROM find_session(:tenant, :session)")

_READS = frozenset({"runs:read", "schedules:read", "tenant:read"})


@dataclass(frozen=True, slots=True)
class Login:
    """A person who may log in to a tenant with this password hash."""

    tenant: UUID
    user: UUID
    password_hash: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """A login that exists, whatever its state, and who it is."""

    user: UUID
    email: str
    role: Role
    tenant_slug: str
    expires_at: datetime
    revoked_at: datetime | None
    suspended: bool


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """What a genuine refresh token says.

    Args:
        tenant: the tenant it was issued for.
        session: the login it belongs to.
        generation: how many came before it.
    """

    tenant: UUID
    session: UUID
    generation: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a login is worth: a short-lived access token, and the token that gets the next one."""

    access: str
    refresh: str
    expires_in: int


def scopes(role: Role, families: Iterable[str]) -> frozenset[str]:
    """What a role may do: owners and administrators all, members work, viewers look.

    Args:
        families: the families of this installation.
    """
    if role in {Role.OWNER, Role.ADMIN}:
        return frozenset({"*"})
    reads = _READS | {f"{family}:read" for family in families}
    if role is Role.VIEWER:
        return reads
    return reads | {"runs:write"} | {f"{family}:write" for family in families}


def tenant(session: Session) -> Tenant:
    """The session's tenant."""
    found: Tenant | None = session.scalar(select(Tenant))
    if found is None:
        raise NotFound
    return found


def normalise(email: str) -> str:
    """An e-mail address as it is kept and compared.

    Raises:
        InvalidInput: it is no address.
    """
    address = unicodedata.normalize("NFKC", email).strip().casefold()
    if not _EMAIL.fullmatch(address):
        raise InvalidInput("email is not an address.", issues=[Issue(("email",), "is not an address")])
    return address


def hash_password(password: str) -> str:
    """The Argon2id hash of a password. Takes tens of milliseconds.

    Raises:
        InvalidInput: it is too short or too long.
    """
    if not _SHORTEST_PASSWORD <= len(password) <= _LONGEST_PASSWORD:
        message = f"must be {_SHORTEST_PASSWORD} to {_LONGEST_PASSWORD} characters"
        raise InvalidInput(f"password {message}.", issues=[Issue(("password",), message)])
    return _HASHER.hash(_password(password))


def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether the password is the hash's. Takes as long when there is no hash."""
    try:
        verified = _HASHER.verify(password_hash or _NOBODY, _password(password[:_LONGEST_PASSWORD]))
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
    return verified and password_hash is not None and len(password) <= _LONGEST_PASSWORD


@db.single_statement
def find_login(session: Session, slug: str, email: str) -> Login | None:
    """Who may log in to a tenant under an address, before the tenant is known."""
    rows = db.fetch(session, _FIND_LOGIN, {"slug": slug, "email": email})
    return Login(rows[0]["tenant_id"], rows[0]["user_id"], rows[0]["password_hash"]) if rows else None


@db.single_statement
def find_session(session: Session, tenant_id: UUID, session_id: UUID) -> Found:
    """A login and who it is, for a caller who proved to hold a token of it.

    Raises:
        Unauthenticated: it is gone, or its person is no longer a member.
    """
    rows = db.fetch(session, _FIND_SESSION, {"tenant": tenant_id, "session": session_id})
    if not rows:
        raise Unauthenticated(reason="revoked")
    row = rows[0]
    return Found(
        user=row["user_id"],
        email=row["email"],
        role=Role(row["role"]),
        tenant_slug=row["tenant_slug"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        suspended=row["suspended"],
    )


def open_login(session: Session, auth: Auth, user: UUID) -> Tokens:
    """Open a login for a member whose password has been verified."""
    row = LoginSession(
        id=ids.new(),
        user_id=user,
        token_hash="",
        expires_at=datetime.now(UTC) + timedelta(days=auth.refresh_token_days),
    )
    token = RefreshToken(context.principal(session).tenant, row.id, 0)
    row.token_hash = _digest(token)
    session.add(row)
    session.flush()
    return _tokens(auth, token)


def read_refresh(ring: KeyRing, text_: str) -> RefreshToken:
    """What a refresh token says, its signature verified. Asks no database.

    Raises:
        Unauthenticated: it is none of ours.
    """
    data = signing.unseal(ring, text_) if len(text_) <= 500 else None
    if data is None or len(data) != _TOKEN.size:
        raise Unauthenticated(reason="invalid")
    tenant_bytes, session_bytes, generation = _TOKEN.unpack(data)
    return RefreshToken(UUID(bytes=tenant_bytes), UUID(bytes=session_bytes), generation)


def refresh(session: Session, auth: Auth, token: RefreshToken) -> Tokens | None:
    """Exchange a refresh token for the next pair; a token that was used before ends its whole login.

    The session must be committed also where this returns None: the end of the login is what it did. Source: RFC 9700,
    section 4.14, with the short grace that the FAPI 2.0 profile advises.

    Returns:
        The tokens, or None when the login has ended or ends now.
    """
    row = session.scalar(select(LoginSession).where(LoginSession.id == token.session).with_for_update())
    now = datetime.now(UTC)
    if row is None or row.revoked_at is not None or row.expires_at <= now:
        return None
    upcoming = RefreshToken(token.tenant, token.session, token.generation + 1)
    if row.token_hash == _digest(token):
        row.token_hash = _digest(upcoming)
        row.refreshed_at = now
    elif row.token_hash != _digest(upcoming) or now - row.refreshed_at > _GRACE:
        row.revoked_at = now
        session.flush()
        return None
    session.flush()
    return _tokens(auth, upcoming)


def close_login(session: Session, session_id: UUID) -> None:
    """End a login; nothing happens where it has ended."""
    session.execute(
        update(LoginSession)
        .where(LoginSession.id == session_id, LoginSession.revoked_at.is_(None))
        .values(revoked_at=func.now())
    )


def join(session: Session, user: UUID, role: Role) -> Membership:
    """Make a person a member of the session's tenant, or change a member's role.

    Raises:
        InvalidState: the tenant would be left without an owner.
    """
    row = session.scalar(select(Membership).where(Membership.user_id == user).with_for_update())
    if row is None:
        row = Membership(user_id=user, role=role.value)
        session.add(row)
    else:
        _keep_an_owner(session, row, role)
        row.role = role.value
    session.flush()
    return row


def leave(session: Session, user: UUID) -> None:
    """End a membership, and with it the person's logins to this tenant.

    Raises:
        NotFound: the person is no member.
        InvalidState: the tenant would be left without an owner.
    """
    row = session.scalar(select(Membership).where(Membership.user_id == user).with_for_update())
    if row is None:
        raise NotFound
    _keep_an_owner(session, row, None)
    session.delete(row)
    session.flush()


def _keep_an_owner(session: Session, row: Membership, role: Role | None) -> None:
    if row.role != Role.OWNER or role is Role.OWNER:
        return
    owners = session.scalars(select(Membership).where(Membership.role == Role.OWNER.value).with_for_update()).all()
    if len(owners) == 1:
        raise InvalidState("A tenant keeps at least one owner.", state=Role.OWNER.value)


def _tokens(auth: Auth, token: RefreshToken) -> Tokens:
    sealed = signing.seal(auth.token_keys, _TOKEN.pack(token.tenant.bytes, token.session.bytes, token.generation))
    return Tokens(signing.issue(auth, token.tenant, token.session), sealed, auth.access_token_seconds)


def _digest(token: RefreshToken) -> str:
    """What is stored of the login's newest token; no secret, for a token is worth nothing without its signature."""
    return hashlib.sha256(_TOKEN.pack(token.tenant.bytes, token.session.bytes, token.generation)).hexdigest()


def _password(password: str) -> bytes:
    """One form for what different keyboards send. Source: RFC 8265, section 4.2."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
