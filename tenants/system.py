"""The cross-tenant door, under the system login: for the command line and for what no tenant's caller may reach."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import Connection, create_engine, pool, text

from tenants import ids
from tenants.context import ActorKind, Principal
from tenants.errors import Misconfigured, NotFound
from tenants.settings import Settings


@contextmanager
def connect(current: Settings) -> Iterator[Connection]:
    """One connection under the system login, in autocommit.

    Raises:
        Misconfigured: this process was not given the login.
    """
    address = current.database.system_url
    if not address:
        raise Misconfigured("DATABASE_SYSTEM_URL is not set: this looks across tenants and needs the system login.")
    engine = create_engine(
        address.replace("postgresql://", "postgresql+psycopg2://", 1),
        poolclass=pool.NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"connect_timeout": 5},
    )
    with engine.connect() as connection:
        yield connection


def acting(current: Settings, slug: str, actor: str) -> Principal:
    """An operator inside a tenant, with every scope.

    Args:
        slug: the tenant's.
        actor: the operator's name, for the record.

    Raises:
        NotFound: there is no such tenant.
    """
    with connect(current) as connection:
        tenant = connection.scalar(text("SELECT id FROM tenants WHERE slug = :slug"), {"slug": slug})
    if tenant is None:
        raise NotFound(f"There is no tenant {slug!r}.")
    return Principal(tenant, ActorKind.OPERATOR, actor, frozenset({"*"}))


def create_tenant(
    current: Settings, slug: str, *, name: str | None = None, timezone: str = "UTC", families: Collection[str] = ()
) -> UUID:
    """Make a tenant and switch families on in it. Returns its id.

    Args:
        slug: its short name, unique in the installation.
        name: its name for people; the slug when None.
        timezone: an IANA name.
        families: names of families.
    """
    made = ids.new()
    with connect(current) as connection:
        connection.execute(
            text("SELECT create_tenant(:id, :slug, :name, :timezone, :families)"),
            {"id": made, "slug": slug, "name": name or slug, "timezone": timezone, "families": list(families)},
        )
    return made
