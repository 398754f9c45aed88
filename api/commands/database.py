"""Commands about the database itself: its logins, and its migrations."""

from __future__ import annotations

import os
import secrets
from typing import Annotated

import alembic.command
import typer
from alembic.config import Config
from sqlalchemy import make_url

from api import installation
from api.commands import terminal
from api.commands.terminal import Json, State
from tenants import roles
from tenants.roles import Passwords

database = typer.Typer(help="The database server.", no_args_is_help=True)


@database.command("init")
def initialise(
    admin_url: Annotated[
        str,
        typer.Option(envvar="DATABASE_ADMIN_URL", help="A login that may create roles and databases.", metavar="URL"),
    ],
    name: Annotated[str | None, typer.Option("--database", help="The database's name.")] = None,
    as_json: Json = False,
) -> None:
    """Make the database, its three logins and their grants; repeating it does no harm.

    Passwords are those in DATABASE_URL, DATABASE_SYSTEM_URL and DATABASE_OWNER_URL where these are set, else new ones.
    """
    known = {variable: os.environ.get(variable, "") for variable in _VARIABLES}
    app, system, owner = (_password(known[variable]) for variable in _VARIABLES)
    chosen = name or (known["DATABASE_URL"] and make_url(known["DATABASE_URL"]).database) or "tenantry"
    made = roles.create(admin_url, Passwords(owner=owner, app=app, system=system), database=chosen)
    value = dict(zip(_VARIABLES, (made.app, made.system, made.owner), strict=True))
    if all(known.values()) and not as_json:
        terminal.answer(value, f"The database {chosen} and its three logins are ready.", as_json=False)
        return
    terminal.answer(value, "\n".join(f"{variable}={address}" for variable, address in value.items()), as_json=as_json)


def migrate(
    revision: Annotated[str, typer.Argument(help="Where to go to.")] = "head",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Bring the database's tables up to date, under the owner's login."""
    installation.settle(state)
    alembic.command.upgrade(Config(installation.ROOT / "alembic.ini"), revision)
    terminal.answer({"revision": revision}, f"The database is at {revision}.", as_json=as_json)


_VARIABLES = ("DATABASE_URL", "DATABASE_SYSTEM_URL", "DATABASE_OWNER_URL")


def _password(address: str) -> str:
    given = make_url(address).password if address else None
    return given or secrets.token_hex(32)
