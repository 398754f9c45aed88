"""The cross-tenant door: what operators, commands and ticks do before or above a tenant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import Connection, text

from tenants import db, identity, ids
from tenants.context import ActorKind, Principal
from tenants.errors import Conflict, InvalidInput, Issue, Misconfigured, NotFound
from tenants.settings import Settings

OPERATORS = "_operator"
"""Slug of the reserved tenant whose keys are the operators'."""

_CREATE_TENANT = text("SELECT create_tenant(:id, :slug, :name, :timezone, :families)")
_FIND_TENANT = text("SELECT id FROM tenants WHERE slug = :slug")
_ENROLL = text("SELECT * FROM enroll_user(:id, :email, :hash)")
_SLUG_LENGTH = 63


@dataclass(frozen=True, slots=True)
class NewTenant:
    """A tenant that has just been made."""

    id: UUID
    slug: str


@contextmanager
def connect(settings: Settings) -> Iterator[Connection]:
    """A connection under the system login, in one transaction.

    Raises:
        Misconfigured: no address is set.
    """
    if not settings.database.system_url:
        raise Misconfigured("DATABASE_SYSTEM_URL is not set: this looks across tenants.")
    engine = db.sync_engine(settings.database.system_url, pool_size=1, application="tenantry-system")
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def create_tenant(
    settings: Settings, slug: str, *, name: str | None = None, timezone: str = "UTC", families: Sequence[str] = ()
) -> NewTenant:
    """Make a tenant.

    Args:
        slug: its short name: lower case letters, digits, `-` and `_`, beginning with a letter.
        name: for people; the slug when None.
        timezone: the IANA name of its local time.
        families: what it has switched on from the start; the caller checks that they exist.

    Raises:
        InvalidInput: a value is wrong.
        Conflict: the slug is taken.
    """
    if not _is_slug(slug):
        message = f"must be at most {_SLUG_LENGTH} of a-z, 0-9, - and _, beginning with a letter"
        raise InvalidInput(f"slug {message}.", issues=[Issue(("slug",), message)])
    _check_timezone(timezone)
    made = NewTenant(ids.new(), slug)
    with connect(settings) as connection:
        free = connection.scalar(
            _CREATE_TENANT,
            {
                "id": made.id,
                "slug": slug,
                "name": name or slug,
                "timezone": timezone,
                "families": sorted(set(families)),
            },
        )
    if not free:
        raise Conflict(f"There is a tenant {slug!r} already.")
    return made


def acting(settings: Settings, slug: str, name: str) -> Principal:
    """An operator inside a tenant, for commands on this machine.

    Args:
        slug: the tenant.
        name: who is named as the actor, such as `tenantry key create`.

    Raises:
        NotFound: there is no such tenant.
    """
    with connect(settings) as connection:
        tenant = connection.scalar(_FIND_TENANT, {"slug": slug})
    if tenant is None:
        raise NotFound(f"There is no tenant {slug!r}.")
    return Principal(tenant=tenant, kind=ActorKind.OPERATOR, actor=name, scopes=frozenset({"*"}))


def enroll(settings: Settings, email: str, password: str | None) -> UUID:
    """The person behind an e-mail address, made when there is none.

    Raises:
        InvalidInput: no address, or a password too short or too long.
        Conflict: the person has another password, which stays as it is.
    """
    address = identity.normalise(email)
    password_hash = None if password is None else identity.hash_password(password)
    with connect(settings) as connection:
        row = connection.execute(_ENROLL, {"id": ids.new(), "email": address, "hash": password_hash}).one()
    kept = row.password_hash
    if password is not None and kept != password_hash and not identity.verify_password(kept, password):
        raise Conflict(f"{address} has a password already: leave it out to make the same person a member here.")
    user: UUID = row.user_id
    return user


def _is_slug(slug: str) -> bool:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-_")
    return 0 < len(slug) <= _SLUG_LENGTH and slug[0].isalpha() and set(slug) <= allowed


def _check_timezone(timezone: str) -> None:
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInput(
            f"timezone: {timezone!r} is not an IANA name such as Europe/Berlin.",
            issues=[Issue(("timezone",), "is not an IANA name such as Europe/Berlin")],
        ) from None
