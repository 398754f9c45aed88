"""Commands that make tenants, people and keys, on the machine of the installation."""

from __future__ import annotations

from typing import Annotated

import typer

from api import installation
from api.commands import terminal
from api.commands.terminal import Json, State, TenantSlug
from tasks import registry
from tenants import identity, ids, keys, members, system
from tenants.context import Role
from tenants.errors import InvalidInput

tenant = typer.Typer(help="Tenants.", no_args_is_help=True)
user = typer.Typer(help="People.", no_args_is_help=True)
key = typer.Typer(help="API keys.", no_args_is_help=True)


@tenant.command("create")
def create_tenant(
    slug: Annotated[str, typer.Argument(help="Short name: a-z, 0-9, - and _.")],
    name: Annotated[str | None, typer.Option(help="For people; the slug when left out.")] = None,
    timezone: Annotated[str, typer.Option(help="IANA name of its local time.")] = "UTC",
    family: Annotated[list[str] | None, typer.Option(help="A family to switch on; several may be named.")] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a tenant."""
    settings = installation.settle(state)
    families = family or []
    for chosen in families:
        if chosen not in registry.offered():
            raise InvalidInput(f"There is no family {chosen!r}: there are {', '.join(registry.offered())}.")
    made = system.create_tenant(settings, slug, name=name, timezone=timezone, families=families)
    value = {"id": ids.show("ten", made.id), "slug": made.slug}
    terminal.answer(value, f"Made the tenant {made.slug} ({value['id']}).", as_json=as_json)


@user.command("create")
def create_user(
    tenant: TenantSlug,
    email: Annotated[str, typer.Option(help="E-mail address.")],
    role: Annotated[Role, typer.Option(case_sensitive=False)] = Role.MEMBER,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input; without, there is none.")
    ] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a person a member of a tenant."""
    settings = installation.settle(state)
    with installation.inside(settings, tenant, "tenantry user create") as session:
        password = terminal.ask_password(from_input=True) if password_stdin else None
        made = system.enroll(settings, email, password)
        members.join(session, made, role)
    value = {"id": ids.show("usr", made), "email": identity.normalise(email), "role": role.value, "tenant": tenant}
    terminal.answer(value, f"{value['email']} is {role.value.lower()} of {tenant}.", as_json=as_json)


@key.command("create")
def create_key(
    tenant: TenantSlug,
    name: Annotated[str, typer.Option(help="For people.")],
    scope: Annotated[list[str], typer.Option(help="What it may do, such as runs:write or *; several may be named.")],
    task: Annotated[list[str] | None, typer.Option(help="The only tasks it may trigger, by full name.")] = None,
    address: Annotated[
        list[str] | None, typer.Option(help="The only addresses it is taken from, such as 192.0.2.0/24.")
    ] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make an API key. Its secret is shown this once and never again."""
    settings = installation.settle(state)
    with installation.inside(settings, tenant, "tenantry key create") as session:
        made = keys.create(
            session,
            settings.auth.key_pepper,
            name=name,
            scopes=scope,
            task_names=task or None,
            address_ranges=address or None,
        )
        value = {"id": ids.show("key", made.key.id), "secret": made.secret}
    terminal.answer(value, f"{value['secret']}\n(shown this once: keep it safe)", as_json=as_json)
