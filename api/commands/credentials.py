"""Commands about tenants' integration credentials, on the machine of the installation."""

from __future__ import annotations

import typer

from api import installation
from api.commands import terminal
from api.commands.terminal import Json, State
from tenants import credentials as service

credential = typer.Typer(help="Integration credentials.", no_args_is_help=True)


@credential.callback()
def _group() -> None:
    """A group, also while it has one command."""


@credential.command("rotate")
def rotate(state: State = None, as_json: Json = False) -> None:
    """Encrypt all tenants' credentials anew, under the newest key; then the older keys can go."""
    settings = installation.settle(state)
    ring = settings.auth.credential_keys
    done = {
        slug: service.rotate(session, ring)
        for slug, session in installation.everywhere(settings, "tenantry credential rotate")
    }
    value = {"rotated": sum(done.values()), "tenants": len(done)}
    terminal.answer(value, f"{value['rotated']} credentials stand under the newest key now.", as_json=as_json)
