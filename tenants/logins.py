"""Logins: opened, found by their tokens, carried on, listed and ended."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from tenants import audit, context, db, identity, ids, members, pages, signing
from tenants.context import Role
from tenants.errors import NotFound, Unauthenticated
from tenants.models import Identity, IdentityProvider, LoginSession, Membership, Tenant
from tenants.pages import Page
from tenants.settings import Auth, KeyRing

_GRACE = timedelta(seconds=10)
"""How long the last refresh token may be sent once more, for a client that never got the answer."""
_LONGEST_AGENT = 200
_TOKEN = struct.Struct(">16s16sI")
_FIND_LOGIN = text("SELECT * FROM find_login(:slug, :email)")
_TENANTS = text("SELECT * FROM tenants_of(:tenant, :login)")
_FIND_SESSION = text("SELECT * FROM find_session(:tenant, :session)")


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
    role: Role | None
    role_name: str | None
    role_scopes: frozenset[str]
    expires_at: datetime
    revoked_at: datetime | None
    suspended: bool


@dataclass(frozen=True, slots=True)
class Belonging:
    """A tenant that a person is a member of, and as what."""

    tenant: UUID
    slug: str
    name: str
    role: str | None
    role_name: str | None


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
        role=None if row["role"] is None else Role(row["role"]),
        role_name=row["role_name"],
        role_scopes=frozenset(row["role_scopes"] or ()),
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        suspended=row["suspended"],
    )


@db.single_statement
def tenants_of(session: Session, tenant_id: UUID, login: UUID | None) -> list[Belonging]:
    """The tenants of the person whose open login this is, if their own password opened it; else that login's alone."""
    return [
        Belonging(row["tenant_id"], row["slug"], row["name"], row["role"], row["role_name"])
        for row in db.fetch(session, _TENANTS, {"tenant": tenant_id, "login": login})
    ]


def open_login(session: Session, auth: Auth, user: UUID, agent: str | None = None) -> Tokens:
    """Open a login for a member who has proved a password. It leads to their other tenants too.

    Args:
        agent: what they say they use, for people to know the login by.

    Raises:
        Unauthenticated: members of this tenant log in through its identity provider, and this is no owner.
    """
    identity.share_tenant(session)
    if not _by_password(session, user):
        raise Unauthenticated("Log in through the identity provider of this tenant.", reason="sso")
    tokens = _open(session, auth, user, ids.new(), None, agent)
    assert tokens is not None
    return tokens


def redeem(
    session: Session, auth: Auth, user: UUID, login: UUID, provider: str, agent: str | None = None
) -> Tokens | None:
    """Open the login that an identity provider has vouched for, once. It leads to no other tenant.

    The session must be committed also where this returns None: a second attempt ends the login of the first.

    Args:
        login: its id, chosen when it was vouched for.
        provider: the provider's name in the tenant.
        agent: as `open_login`.

    Returns:
        The tokens; None where it was opened before, or the provider or the member is gone since it was vouched for.
    """
    known = (
        select(Identity.user_id)
        .join(IdentityProvider, IdentityProvider.issuer == Identity.issuer)
        .where(Identity.user_id == user, IdentityProvider.name == provider)
    )
    if session.scalar(known.with_for_update(read=True, of=Identity)) is None:
        return None
    tokens = _open(session, auth, user, login, provider, agent)
    if tokens is None:
        close_login(session, login)
    return tokens


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
    if row.provider is None and not _by_password(session, row.user_id):
        end(session, LoginSession.id == row.id)
        return None
    upcoming = RefreshToken(token.tenant, token.session, token.generation + 1)
    if row.token_hash == _digest(token):
        row.token_hash = _digest(upcoming)
        row.refreshed_at = now
    elif row.token_hash != _digest(upcoming) or now - row.refreshed_at > _GRACE:
        end(session, LoginSession.id == row.id)
        audit.record(session, "login.reuse", ids.show("ses", row.id), user=ids.show("usr", row.user_id))
        return None
    session.flush()
    return _tokens(auth, upcoming)


def close_login(session: Session, session_id: UUID) -> None:
    """End a login; nothing happens where it has ended."""
    for user in end(session, LoginSession.id == session_id):
        audit.record(session, "login.close", ids.show("ses", session_id), user=ids.show("usr", user))


def end(session: Session, *conditions: ColumnElement[bool]) -> Sequence[UUID]:
    """End the logins that meet all of the conditions and have not ended; whose they were."""
    return session.scalars(
        update(LoginSession)
        .where(LoginSession.revoked_at.is_(None), *conditions)
        .values(revoked_at=func.now())
        .returning(LoginSession.user_id)
    ).all()


def page(
    session: Session, user: UUID | None = None, *, first: int | None = None, after: str | None = None
) -> Page[LoginSession]:
    """One page of the open logins of a person to this tenant, newest first.

    Args:
        user: whose; the caller's own when None. Others' are none for who may not manage members.
    """
    caller = context.principal(session)
    person = caller.person if user is None else user
    if person != caller.person and not caller.may("members:manage"):
        person = None
    query = select(LoginSession).where(
        LoginSession.user_id == person, LoginSession.revoked_at.is_(None), LoginSession.expires_at > func.now()
    )
    return pages.read(session, query, LoginSession.id, "login", first=first, after=after)


def get(session: Session, login: UUID) -> LoginSession:
    """A login to this tenant: the caller's own, or a member's for who may manage members.

    Raises:
        NotFound: there is none with this id.
    """
    caller = context.principal(session)
    row = session.scalar(select(LoginSession).where(LoginSession.id == login))
    if row is None or (row.user_id != caller.person and not caller.may("members:manage")):
        raise NotFound
    return row


def revoke(session: Session, login: UUID, families: Sequence[str]) -> LoginSession:
    """End a login, within seconds also on open sockets; one that has ended stays as it is.

    Raises:
        NotFound: as `get`.
        Forbidden: it is of somebody whose role is worth more than the caller's.
    """
    row = get(session, login)
    if row.user_id != context.principal(session).person:
        members.require_above(session, members.get(session, row.user_id), families)
    if end(session, LoginSession.id == login):
        session.refresh(row)
        audit.record(session, "login.revoke", ids.show("ses", row.id), user=ids.show("usr", row.user_id))
    return row


def _by_password(session: Session, user: UUID) -> bool:
    """Whether a member may log in without an identity provider."""
    required = session.scalar(select(Tenant.sso_only))
    return not required or session.scalar(members.OWNERS.where(Membership.user_id == user)) is not None


def _open(
    session: Session, auth: Auth, user: UUID, login: UUID, provider: str | None, agent: str | None
) -> Tokens | None:
    """The tokens of a new login; None where there has been one of this id."""
    token = RefreshToken(context.principal(session).tenant, login, 0)
    made = session.scalar(
        insert(LoginSession)
        .values(
            id=login,
            user_id=user,
            provider=provider,
            agent=agent[:_LONGEST_AGENT] if agent else None,
            token_hash=_digest(token),
            expires_at=datetime.now(UTC) + timedelta(days=auth.refresh_token_days),
        )
        .on_conflict_do_nothing()
        .returning(LoginSession.id)
    )
    if made is None:
        return None
    audit.record(session, "login.open", ids.show("ses", login), provider=provider)
    return _tokens(auth, token)


def _tokens(auth: Auth, token: RefreshToken) -> Tokens:
    sealed = signing.seal(auth.token_keys, _TOKEN.pack(token.tenant.bytes, token.session.bytes, token.generation))
    return Tokens(signing.issue(auth, token.tenant, token.session), sealed, auth.access_token_seconds)


def _digest(token: RefreshToken) -> str:
    """What is stored of the login's newest token; no secret, for a token is worth nothing without its signature."""
    return hashlib.sha256(_TOKEN.pack(token.tenant.bytes, token.session.bytes, token.generation)).hexdigest()
