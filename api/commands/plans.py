"""Commands about plans, on the machine of the installation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from api import installation
from api.commands import terminal
from api.commands.terminal import Json, State
from tenants import models, quotas, system
from tenants.errors import InvalidInput
from tenants.quotas import Quota

plan = typer.Typer(help="Plans.", no_args_is_help=True)

_Limits = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=N|none", help=f"A limit; several may be named. NAME is {', '.join(Quota)}; runs are a month's."
    ),
]


@plan.command("set")
def set_plan(
    name: Annotated[str, typer.Argument(help="The plan's name; one of this name is replaced.")],
    quota: _Limits = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a plan, or replace one. What is left out has no limit. It holds at once for the tenants that have it."""
    wanted = read(quota)
    with installation.inside(installation.settle(state), system.OPERATORS, "tenantry plan set") as session:
        made = quotas.set_plan(session, name, wanted)
        terminal.answer(_value(made), _line(made), as_json=as_json)


@plan.command("list")
def list_plans(state: State = None, as_json: Json = False) -> None:
    """Show all plans."""
    with installation.inside(installation.settle(state), system.OPERATORS, "tenantry plan list") as session:
        found = quotas.plans(session)
        terminal.answer({"plans": [_value(one) for one in found]}, "\n".join(map(_line, found)), as_json=as_json)


@plan.command("remove")
def remove_plan(
    name: Annotated[str, typer.Argument(help="The plan's name.")], state: State = None, as_json: Json = False
) -> None:
    """Take away a plan that no tenant has."""
    with installation.inside(installation.settle(state), system.OPERATORS, "tenantry plan remove") as session:
        quotas.remove_plan(session, name)
    terminal.answer({"removed": name}, f"{name} is gone.", as_json=as_json)


@plan.command("assign")
def assign_plan(
    slug: Annotated[str, typer.Argument(help="The tenant's slug.")],
    plan: Annotated[str, typer.Argument(help="The plan's name.")],
    quota: _Limits = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Give a tenant a plan. Limits that are named here are its own in place of the plan's: none for no limit."""
    own = read(quota)
    with installation.inside(installation.settle(state), system.OPERATORS, "tenantry plan assign") as session:
        quotas.assign(session, slug, plan, own)
    limits = {name.value: most for name, most in own.items()}
    value = {"slug": slug, "plan": plan, "quotas": limits}
    terminal.answer(value, f"{slug} has the plan {plan}{_told(limits)}.", as_json=as_json)


def read(given: list[str] | None) -> dict[Quota, float | None]:
    """Limits as they are typed, `NAME=N` or `NAME=none`.

    Raises:
        InvalidInput: one is not of this form, or names no quota.
    """
    wanted: dict[Quota, float | None] = {}
    for text in given or ():
        name, _, amount = text.partition("=")
        if name not in set(Quota):
            raise InvalidInput(f"There is no quota {name!r}: there are {', '.join(Quota)}.")
        if amount != "none" and not (amount.isascii() and amount.isdigit()):
            raise InvalidInput(f"{name}: {amount!r} is neither a whole number nor none.")
        wanted[Quota(name)] = None if amount == "none" else float(amount)
    return wanted


def _value(row: models.Plan) -> dict[str, object]:
    return {"name": row.name, "quotas": row.quotas}


def _line(row: models.Plan) -> str:
    return f"{row.name}{_told(row.quotas)}"


def _told(limits: Mapping[str, float | None]) -> str:
    told = ", ".join(f"{name} {'unlimited' if most is None else f'{most:g}'}" for name, most in limits.items())
    return f": {told}" if told else ""
