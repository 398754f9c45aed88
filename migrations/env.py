"""Runs migrations under the owner's login."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from alembic import context
from sqlalchemy import create_engine, pool, text
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.engine import Connection

import tasks.engine.models
import tasks.families
import tenants.models
from tenants import db, settings
from tenants.errors import Misconfigured

for _family in pkgutil.iter_modules(tasks.families.__path__):
    if importlib.util.find_spec(f"tasks.families.{_family.name}.models"):
        importlib.import_module(f"tasks.families.{_family.name}.models")

ischema_names["xid8"] = tenants.models.Xid8


def run() -> None:
    """Upgrade or downgrade over one connection, in one transaction for each step."""
    address = context.get_x_argument(as_dictionary=True).get("url") or settings.load().database.owner_url
    if not address:
        raise Misconfigured("DATABASE_OWNER_URL is not set: migrations run under the owner's login.")
    engine = create_engine(address.replace("postgresql://", "postgresql+psycopg2://", 1), poolclass=pool.NullPool)
    with engine.connect() as connection:
        partitions = _partitions(connection)
        context.configure(
            connection=connection,
            target_metadata=db.Base.metadata,
            transaction_per_migration=True,
            compare_type=True,
            include_name=lambda name, kind, _: not (kind == "table" and name in partitions),
            include_object=lambda thing, _, kind, *__: (
                kind != "foreign_key_constraint"
                or thing.elements[0].target_fullname.partition(".")[0] not in partitions
            ),
        )
        with context.begin_transaction():
            context.run_migrations()


def _partitions(connection: Connection) -> set[Any]:
    """Tables that are made and dropped by the owner's functions as time passes."""
    found = {row[0] for row in connection.execute(text("SELECT relname FROM pg_class WHERE relispartition"))}
    connection.rollback()
    return found


run()
