"""Who somebody is here whom an identity provider has vouched for: a member, known by issuer and subject."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from tenants import audit, context, identity, ids, quotas
from tenants.context import Role
from tenants.errors import InvalidInput, QuotaExceeded
from tenants.people import Identity, IdentityProvider, LoginSession, Membership, User
from tenants.providers import NoProvider
from tenants.quotas import Quota

_BRING_IN = text("SELECT bring_in(:provider, :user, :email, :role)")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody as a provider describes them, once it has been verified that it is the provider who does.

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


def admit(session: Session, provider: str, person: Person) -> UUID:
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
    if row is None or row.issuer != person.issuer:
        raise NoProvider
    role = _role(row, person.groups)
    known = session.get(Identity, (context.principal(session).tenant, person.issuer, person.subject))
    if known is not None:
        known.used_at = func.clock_timestamp()
        user = known.user_id
        joined = False
    else:
        user, joined = _meet(session, row, person, role)
        session.add(Identity(issuer=person.issuer, subject=person.subject, user_id=user))
    session.flush()
    if row.roles and not joined:
        _follow(session, user, role)
    shown = {"subject": person.subject, "linked": known is None, "joined": joined}
    audit.record(session, "login.accept", ids.show("usr", user), provider=provider, **shown)
    return user


def refuse(session: Session, provider: str, reason: str, person: Person | None) -> None:
    """Note in the audit log that a login was refused, and end the logins of a known person who has no role any more.

    Args:
        person: whom the provider vouched for, where it came so far.
    """
    subject = None if person is None else person.subject
    if person is not None and reason == "role":
        known = session.get(Identity, (context.principal(session).tenant, person.issuer, person.subject))
        if known is not None:
            session.execute(
                update(LoginSession)
                .where(LoginSession.user_id == known.user_id, LoginSession.provider == provider)
                .where(LoginSession.revoked_at.is_(None))
                .values(revoked_at=func.now())
            )
    audit.record(session, "login.refuse", subject, provider=provider, reason=reason)


def _role(row: IdentityProvider, groups: Collection[str]) -> Role | None:
    """The highest role among those of the person's groups, or else the default."""
    worth = {row.roles[group] for group in groups if group in row.roles}
    found = next((role for role in Role if role.value in worth), None)
    if found is None and row.default_role is not None:
        found = Role(row.default_role)
    return found


def _meet(session: Session, row: IdentityProvider, person: Person, role: Role | None) -> tuple[UUID, bool]:
    """The user behind a subject who has not been here before, and whether they have just become a member."""
    address = _address(row, person)
    user = session.scalar(select(User.id).join(Membership, Membership.user_id == User.id).where(User.email == address))
    joined = user is None
    if user is None:
        if not row.just_in_time:
            raise NotVouched("no member")
        if role is None:
            raise NotVouched("role")
        try:
            quotas.take(session, Quota.MEMBERS, identity.MEMBERS)
        except QuotaExceeded:
            raise NotVouched("no room") from None
        user = session.scalar(
            _BRING_IN, {"provider": row.name, "user": ids.new(), "email": address, "role": role.value}
        )
        if user is None:
            raise NotVouched("no member")
    elif session.scalar(select(Identity).where(Identity.issuer == person.issuer, Identity.user_id == user)):
        # The address has come to another person there, who is not the member it once led to.
        raise NotVouched("another subject")
    found: UUID = user
    return found, joined


def _address(row: IdentityProvider, person: Person) -> str:
    if person.email is None or not person.email_verified:
        raise NotVouched("address not verified")
    try:
        address = identity.normalise(person.email)
    except InvalidInput:
        raise NotVouched("address not verified") from None
    if address.rpartition("@")[2] not in row.domains:
        raise NotVouched("domain")
    return address


def _follow(session: Session, user: UUID, role: Role | None) -> None:
    """Give a member the role that their groups are worth. Owners are made and unmade by owners alone."""
    row = session.scalar(select(Membership).where(Membership.user_id == user).with_for_update())
    assert row is not None
    if row.role == Role.OWNER:
        return
    if role is None:
        raise NotVouched("role")
    if row.role != role:
        before = row.role
        row.role = role.value
        session.flush()
        audit.record(session, "member.role", ids.show("usr", user), before={"role": before}, after={"role": role.value})
