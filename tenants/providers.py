"""Identity providers: how a tenant's members log in elsewhere, and whether they may only do so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from tenants import audit, context, credentials, db, identity, logins, members
from tenants.context import Role
from tenants.errors import Conflict, InvalidInput, InvalidState, Issue, NotFound
from tenants.models import Identity, IdentityProvider, LoginSession, Tenant
from tenants.settings import Settings

CREDENTIAL_KIND = "oidc_client_secret"
SCOPES = ("openid", "email", "profile")

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_DOMAIN = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,100}")
"""Source: RFC 6749, section 3.3."""
_LONGEST = 500
_MOST = 100
_FIND = text("SELECT find_provider(:slug, :name)")


class NoProvider(NotFound):
    """There is no such identity provider."""


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """What an identity provider is to be.

    Args:
        name: what it is called in the addresses of its logins.
        issuer: the address it calls itself, exactly.
        client_id: what it calls us.
        client_secret: None leaves the one there is, or none.
        scopes: what it is asked for; `openid` is added.
        domains: whose e-mail addresses it may vouch for, when somebody comes for the first time.
        groups_claim: the claim that lists a person's groups.
        roles: group → role. Where there are any, they decide at each login.
        default_role: of people in no group that is named, and of new ones where no group is.
        just_in_time: whether it makes new members.
    """

    name: str
    issuer: str
    client_id: str
    client_secret: SecretStr | None = None
    scopes: Sequence[str] = SCOPES
    domains: Sequence[str] = ()
    groups_claim: str = "groups"
    roles: Mapping[str, Role] = field(default_factory=dict)
    default_role: Role | None = None
    just_in_time: bool = False


def put(session: Session, settings: Settings, request: ProviderRequest) -> IdentityProvider:
    """Set up an identity provider, or change the one of this name. Another issuer makes everybody there a stranger.

    Raises:
        InvalidInput: a value is wrong.
        Conflict: another provider has this issuer.
    """
    domains = [domain.strip().casefold() for domain in request.domains]
    _check(request, domains, plain=settings.environment == "development")
    other = session.scalar(
        select(IdentityProvider.name).where(
            IdentityProvider.issuer == request.issuer, IdentityProvider.name != request.name
        )
    )
    if other is not None:
        raise Conflict(f"The provider {other!r} has this issuer.")
    row = _find(session, request.name)
    before = None if row is None else shown(row)
    if row is None:
        row = IdentityProvider(name=request.name)
        session.add(row)
    elif row.issuer != request.issuer:
        session.execute(delete(Identity).where(Identity.issuer == row.issuer))
        logins.end(session, LoginSession.provider == row.name)
    row.issuer = request.issuer
    row.client_id = request.client_id
    row.scopes = list(dict.fromkeys(["openid", *request.scopes]))
    row.domains = sorted(set(domains))
    row.groups_claim = request.groups_claim
    row.roles = {group: role.value for group, role in request.roles.items()}
    row.default_role = None if request.default_role is None else request.default_role.value
    row.just_in_time = request.just_in_time
    row.changed_at = func.clock_timestamp()
    session.flush()
    session.refresh(row)
    if request.client_secret is not None:
        ring = settings.auth.credential_keys
        credentials.put(session, ring, credential_name(row.name), CREDENTIAL_KIND, request.client_secret)
    audit.record(session, "provider.set", row.name, before=before, after=shown(row))
    return row


def every(session: Session) -> list[IdentityProvider]:
    """The tenant's identity providers, by name."""
    return list(session.scalars(select(IdentityProvider).order_by(IdentityProvider.name)))


def remove(session: Session, name: str) -> None:
    """Take a provider away, with its client secret, who is who there, and the logins it vouched for.

    Raises:
        NoProvider: there is none of this name.
        InvalidState: it is the only one, and nobody may log in without.
    """
    row = _find(session, name)
    if row is None:
        raise NoProvider
    if identity.tenant(session).sso_only and len(every(session)) == 1:
        raise InvalidState("Nobody could log in: let people log in with a password first.", state="SSO_ONLY")
    session.execute(delete(Identity).where(Identity.issuer == row.issuer))
    session.delete(row)
    session.flush()
    logins.end(session, LoginSession.provider == name)
    with suppress(NotFound):  # It needs no client secret.
        credentials.remove(session, credential_name(name))
    audit.record(session, "provider.remove", name, before=shown(row))


def require(session: Session, required: bool) -> None:
    """Let members log in through a provider only, or with a password too.

    Owners keep their passwords, so that a provider that fails shuts nobody out for good. The other logins that were
    opened without a provider end.

    Raises:
        InvalidState: there is no provider.
    """
    if required and not every(session):
        raise InvalidState("Nobody could log in: set up an identity provider first.", state="NO_PROVIDER")
    before = identity.tenant(session).sso_only
    session.execute(update(Tenant).values(sso_only=required))
    if required:
        logins.end(session, LoginSession.provider.is_(None), LoginSession.user_id.not_in(members.OWNERS))
    audit.record(session, "sso.require", None, before={"required": before}, after={"required": required})


@db.single_statement
def find(session: Session, slug: str, name: str) -> UUID:
    """The tenant that has a provider of this name, before the tenant is known.

    Raises:
        NoProvider: there is no such tenant, or it has no such provider.
    """
    [row] = db.fetch(session, _FIND, {"slug": slug, "name": name})
    found: UUID | None = row["find_provider"]
    if found is None:
        raise NoProvider
    return found


@dataclass(frozen=True, slots=True)
class Client:
    """What is needed to ask a provider who somebody is."""

    name: str
    issuer: str
    client_id: str
    client_secret: SecretStr | None
    scopes: tuple[str, ...]
    groups_claim: str | None
    """None where groups don't count."""


def client(session: Session, settings: Settings, name: str) -> Client:
    """A provider as its logins go by it.

    Raises:
        NoProvider: there is none of this name.
        Misconfigured: its client secret does not open.
    """
    row = session.get(IdentityProvider, (context.principal(session).tenant, name))
    if row is None:
        raise NoProvider
    try:
        secret = credentials.reveal(session, settings.auth.credential_keys, credential_name(name))
    except NotFound:
        secret = None
    groups_claim = row.groups_claim if row.roles else None
    return Client(row.name, row.issuer, row.client_id, secret, tuple(row.scopes), groups_claim)


def credential_name(provider: str) -> str:
    """The credential that is a provider's client secret."""
    return f"{credentials.OF_PROVIDERS}{provider}"


def shown(row: IdentityProvider) -> dict[str, Any]:
    """What may be told of a provider."""
    return {
        "issuer": row.issuer,
        "clientId": row.client_id,
        "scopes": row.scopes,
        "domains": row.domains,
        "groupsClaim": row.groups_claim,
        "roles": row.roles,
        "defaultRole": row.default_role,
        "justInTime": row.just_in_time,
    }


def _find(session: Session, name: str) -> IdentityProvider | None:
    row: IdentityProvider | None = session.scalar(
        select(IdentityProvider).where(IdentityProvider.name == name).with_for_update()
    )
    return row


def _check(request: ProviderRequest, domains: Sequence[str], *, plain: bool) -> None:
    issues = []
    if not _NAME.fullmatch(request.name):
        issues.append(Issue(("name",), "must be 1 to 40 of a-z, 0-9 and -, beginning with a letter"))
    if not _is_issuer(request.issuer, plain=plain):
        issues.append(Issue(("issuer",), "must be an https address without user, query and fragment"))
    for path, value in (("clientId", request.client_id), ("groupsClaim", request.groups_claim)):
        if not 1 <= len(value) <= _LONGEST or not value.isprintable():
            issues.append(Issue((path,), f"must be 1 to {_LONGEST} printable characters"))
    if len(request.scopes) > _MOST or not all(map(_SCOPE.fullmatch, request.scopes)):
        issues.append(Issue(("scopes",), f"must be at most {_MOST} words"))
    if len(domains) > _MOST or not all(map(_DOMAIN.fullmatch, domains)):
        issues.append(Issue(("domains",), f"must be at most {_MOST} names such as example.org"))
    if len(request.roles) > _MOST or not all(1 <= len(group) <= _LONGEST for group in request.roles):
        issues.append(Issue(("roles",), f"must be at most {_MOST} groups"))
    if Role.OWNER in {*request.roles.values(), request.default_role}:
        issues.append(Issue(("roles",), "no provider makes owners: owners do"))
    if request.just_in_time and not domains:
        issues.append(Issue(("domains",), "must name whose addresses the provider may vouch for"))
    if request.just_in_time and not request.roles and request.default_role is None:
        issues.append(Issue(("defaultRole",), "must say what new members are, where no group does"))
    if issues:
        raise InvalidInput(issues=issues)


def _is_issuer(issuer: str, *, plain: bool) -> bool:
    """Source: OpenID Connect Discovery 1.0, section 3."""
    if len(issuer) > _LONGEST or not re.fullmatch(r"[\x21-\x7e]+", issuer) or set('\\"<>^`{|}?#@') & set(issuer):
        return False
    try:
        parts = urlsplit(issuer)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ({"http", "https"} if plain else {"https"}) and bool(parts.hostname) and port != 0
