"""Who somebody is here whom an identity provider has vouched for: a member, known by issuer and subject."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from tenants import audit, context, identity, ids, logins, members
from tenants.context import Role
from tenants.errors import InvalidInput, QuotaExceeded
from tenants.models import Identity, IdentityProvider, LoginSession, Membership, User
from tenants.providers import NoProvider

_BRING_IN = text("SELECT bring_in(:provider, :user, :email)")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a provider says of a person, once it has been verified that it is the provider who does.

    Args:
        issuer: the provider.
        subject: what it calls the person, and nobody else, ever.
        email: an address, which may be another's tomorrow.
        email_verified: whether the provider has made sure that the address is the person's.
        groups: those the provider counts the person in.
    """

    issuer: str
    subject: str
    email: str | None = None
    email_verified: bool = False
    groups: Collection[str] = ()


class NotVouched(Exception):
    """The provider vouched for nobody in a way that can be believed, or for nobody whom the tenant lets in.

    Args:
        reason: a word or two for the audit log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def admit(session: Session, provider: str, claims: Claims) -> UUID:
    """The member whom the provider has vouched for, with the role that their groups are worth.

    Who comes for the first time is found by their address: only if the provider has verified it, and only in a domain
    that the tenant lets it vouch for. After that the subject alone counts.

    Args:
        provider: the provider's name in the tenant.

    Raises:
        NotVouched: the tenant doesn't let them in.
        NoProvider: it is not there any more.
    """
    row = session.scalar(select(IdentityProvider).where(IdentityProvider.name == provider).with_for_update(read=True))
    if row is None or row.issuer != claims.issuer:
        raise NoProvider
    role = _role(row, claims.groups)
    known = session.get(Identity, (context.principal(session).tenant, claims.issuer, claims.subject))
    if known is not None:
        known.used_at = func.clock_timestamp()
        user = known.user_id
        joined = False
    else:
        user, joined = _meet(session, row, claims, role)
        session.add(Identity(issuer=claims.issuer, subject=claims.subject, user_id=user))
    session.flush()
    if row.roles and not joined:
        _follow(session, user, role)
    shown = {"subject": claims.subject, "linked": known is None, "joined": joined}
    audit.record(session, "login.accept", ids.show("usr", user), provider=provider, **shown)
    return user


def refuse(session: Session, provider: str, reason: str, claims: Claims | None) -> None:
    """Note in the audit log that a login was refused, and end the logins of a known person who has no role any more.

    Args:
        claims: what the provider says of them, where it came so far.
    """
    subject = None if claims is None else claims.subject
    if claims is not None and reason == "role":
        known = session.get(Identity, (context.principal(session).tenant, claims.issuer, claims.subject))
        if known is not None:
            logins.end(session, LoginSession.user_id == known.user_id, LoginSession.provider == provider)
    audit.record(session, "login.refuse", None, reason=reason, provider=provider, subject=subject)


def _role(row: IdentityProvider, groups: Collection[str]) -> Role | None:
    """The highest role among those of the person's groups, or else the default."""
    worth = {row.roles[group] for group in groups if group in row.roles}
    found = next((role for role in Role if role.value in worth), None)
    if found is None and row.default_role is not None:
        found = Role(row.default_role)
    return found


def _meet(session: Session, row: IdentityProvider, claims: Claims, role: Role | None) -> tuple[UUID, bool]:
    """The user behind a subject who has not been here before, and whether they have just become a member."""
    address = _address(row, claims)
    user = session.scalar(select(User.id).join(Membership, Membership.user_id == User.id).where(User.email == address))
    joined = False
    if user is None:
        if not row.just_in_time:
            raise NotVouched("no member")
        if role is None:
            raise NotVouched("role")
        user = session.scalar(_BRING_IN, {"provider": row.name, "user": ids.new(), "email": address})
        if user is None:
            raise NotVouched("no member")
        try:
            joined = members.add(session, user, role)
        except QuotaExceeded:
            raise NotVouched("no room") from None
    elif session.scalar(select(Identity).where(Identity.issuer == claims.issuer, Identity.user_id == user)):
        # The address has come to another person there, who is not the member it once led to.
        raise NotVouched("another subject")
    found: UUID = user
    return found, joined


def _address(row: IdentityProvider, claims: Claims) -> str:
    if claims.email is None or not claims.email_verified:
        raise NotVouched("address not verified")
    try:
        address = identity.normalise(claims.email)
    except InvalidInput:
        raise NotVouched("address not verified") from None
    if address != claims.email and not claims.email.isascii():
        # What has been verified is another address than the one that it is kept as, and may be another's.
        raise NotVouched("address not verified")
    if address.rpartition("@")[2] not in row.domains:
        raise NotVouched("domain")
    return address


def _follow(session: Session, user: UUID, role: Role | None) -> None:
    """Give a member the role that their groups are worth. Owners are made and unmade by owners alone."""
    row = members.lock(session, user)
    assert row is not None
    if row.role == Role.OWNER:
        return
    if role is None:
        raise NotVouched("role")
    if row.role != role:
        members.give(session, row, role)
