"""What all commands share: the options they have in common, and the two forms of an answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

State = Annotated[
    Path | None,
    typer.Option("--state", help="The installation's state folder; else the environment, or .tenantry.", metavar="DIR"),
]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]
TenantSlug = Annotated[str, typer.Option("--tenant", help="The tenant's slug.", metavar="SLUG")]


def answer(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print the answer: the object for programs, or the text for people."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() if as_json else text)


def tell(text: str) -> None:
    """Tell a person who waits how far it is."""
    if sys.stderr.isatty():
        typer.echo(text, err=True)


def ask_password(*, from_input: bool) -> str:
    """A password: the first line of standard input, or what a person types."""
    if from_input:
        return sys.stdin.readline().rstrip("\r\n")
    typed: str = typer.prompt("Password", hide_input=True, err=True)
    return typed
