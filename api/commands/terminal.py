"""What all commands share: the options they have in common, and the two forms of an answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from sqlalchemy.orm import Session

from tenants import db, system
from tenants.settings import Settings

State = Annotated[
    Path | None,
    typer.Option("--state", help="The installation's state folder; else the environment, or .tenantry.", metavar="DIR"),
]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]
TenantSlug = Annotated[str, typer.Option("--tenant", help="The tenant's slug.", metavar="SLUG")]


def answer(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print the answer: the object for programs, or the text for people."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() if as_json else text)


def ask_password(*, from_input: bool) -> str:
    """A password: the first line of standard input, or what a person types."""
    if from_input:
        return sys.stdin.readline().rstrip("\r\n")
    typed: str = typer.prompt("Password", hide_input=True, err=True)
    return typed


@contextmanager
def inside(settings: Settings, slug: str, command: str) -> Iterator[Session]:
    """A session in a tenant for an operator on this machine; committed at the end.

    Args:
        slug: the tenant.
        command: named as the actor.

    Raises:
        NotFound: there is no such tenant.
    """
    principal = system.acting(settings, slug, command)
    engine = db.sync_engine(settings.database.url, pool_size=1, application="tenantry-command")
    try:
        with db.open_session(engine, principal) as session:
            yield session
            session.commit()
    finally:
        engine.dispose()
