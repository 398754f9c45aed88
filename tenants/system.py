"""The cross-tenant door: what operators, commands and ticks do before or above a tenant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from tenants import db, identity, ids, passwords
from tenants.context import ActorKind, Principal
from tenants.errors import Conflict, Misconfigured, NotFound
from tenants.settings import Settings

OPERATORS_ID = UUID("00000000-0000-7000-8000-000000000001")
"""The reserved tenant whose keys are the operators'; the first migration makes it. `operators()` in the database."""

OPERATORS = "_operator"
"""Its slug, for commands that stand in it."""

_CREATE_TENANT = text("SELECT create_tenant(:id, :slug, :name, :timezone, :families, :kind, :actor)")
_FIND_TENANT = text("SELECT id FROM tenants WHERE slug = :slug")
_EVERY_TENANT = text("SELECT id, slug FROM tenants ORDER BY slug")
_ENROLL = text("SELECT * FROM enroll_user(:id, :email, :hash)")


@dataclass(frozen=True, slots=True)
class NewTenant:
    """A tenant that has just been made."""

    id: UUID
    slug: str


@contextmanager
def connect(settings: Settings) -> Iterator[Connection]:
    """A connection under the system login; each transaction on it is its caller's.

    Raises:
        Misconfigured: no address is set.
    """
    if not settings.database.system_url:
        raise Misconfigured("DATABASE_SYSTEM_URL is not set: this looks across tenants.")
    engine = db.sync_engine(settings.database.system_url, pool_size=1, application="tenantry-system")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def create_tenant(
    settings: Settings,
    slug: str,
    *,
    name: str | None = None,
    timezone: str = "UTC",
    families: Sequence[str] = (),
    actor: str = "tenantry",
) -> NewTenant:
    """Make a tenant.

    Args:
        slug: its short name: lower case letters, digits, `-` and `_`, beginning with a letter.
        name: for people; the slug when None.
        timezone: the IANA name of its local time.
        families: what it has switched on from the start; the caller checks that they exist.
        actor: who is named in its audit log as having made it.

    Raises:
        InvalidInput: a value is wrong.
        Conflict: the slug is taken.
    """
    identity.check_tenant(slug, timezone)
    made = NewTenant(ids.new(), slug)
    with connect(settings) as connection, connection.begin():
        free = connection.scalar(
            _CREATE_TENANT,
            {
                "id": made.id,
                "slug": slug,
                "name": name or slug,
                "timezone": timezone,
                "families": sorted(set(families)),
                "kind": ActorKind.OPERATOR.value,
                "actor": actor,
            },
        )
    if not free:
        raise Conflict(f"There is a tenant {slug!r} already.")
    return made


def desk(name: str) -> Principal:
    """Who serves people that are in no tenant yet, in the operators' tenant, where it may do nothing but that.

    Args:
        name: who is named as the actor, such as `sign-up`.
    """
    return Principal(tenant=OPERATORS_ID, kind=ActorKind.OPERATOR, actor=name)


def acting(settings: Settings, slug: str, name: str) -> Principal:
    """An operator inside a tenant, for commands on this machine.

    Args:
        slug: the tenant.
        name: who is named as the actor, such as `tenantry key create`.

    Raises:
        NotFound: there is no such tenant.
    """
    with connect(settings) as connection, connection.begin():
        tenant = connection.scalar(_FIND_TENANT, {"slug": slug})
    if tenant is None:
        raise NotFound(f"There is no tenant {slug!r}.")
    return _operator(tenant, name)


def acting_everywhere(settings: Settings, name: str) -> list[tuple[str, Principal]]:
    """An operator inside each tenant, by slug, for commands on this machine.

    Args:
        name: who is named as the actor.
    """
    with connect(settings) as connection, connection.begin():
        return [(slug, _operator(tenant, name)) for tenant, slug in connection.execute(_EVERY_TENANT).tuples()]


def enroll(settings: Settings, email: str, password: str | None) -> UUID:
    """The person behind an e-mail address, made when there is none.

    Raises:
        InvalidInput: no address, or a password too short or too long.
        Conflict: the person has another password, which stays as it is.
    """
    address = identity.normalise(email)
    password_hash = None if password is None else passwords.digest(password)
    with connect(settings) as connection, connection.begin():
        row = connection.execute(_ENROLL, {"id": ids.new(), "email": address, "hash": password_hash}).one()
    kept = row.password_hash
    if password is not None and kept != password_hash and not passwords.verify(kept, password):
        raise Conflict(f"{address} has a password already: leave it out to make the same person a member here.")
    user: UUID = row.user_id
    return user


def _operator(tenant: UUID, name: str) -> Principal:
    return Principal(tenant=tenant, kind=ActorKind.OPERATOR, actor=name, scopes=frozenset({"*"}))
