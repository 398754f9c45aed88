"""Commands about tenants' limits, on the machine of the installation."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from api import installation
from api.commands import terminal
from api.commands.terminal import Json, State, TenantSlug
from tasks.engine import limits as service
from tasks.engine import models
from tasks.engine.admission import LimitKind
from tasks.engine.limits import LimitRequest
from tenants import ids
from tenants.errors import InvalidInput, NotFound

limits = typer.Typer(help="Limits.", no_args_is_help=True)
_RATE = re.compile(r"(\d+(?:\.\d+)?)/([smh])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@limits.command("set")
def set_limits(
    tenant: TenantSlug,
    name: Annotated[str, typer.Option(help="The limit's name; one of this name is replaced.")],
    weight: Annotated[float | None, typer.Option(help="Share under contention.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="So many at once.")] = None,
    rate: Annotated[str | None, typer.Option(help="So many per second, minute or hour.", metavar="N/s|m|h")] = None,
    burst: Annotated[int | None, typer.Option(help="So many at once within the rate.")] = None,
    backlog: Annotated[int | None, typer.Option(help="So many waiting.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only for this queue.")] = None,
    task: Annotated[str | None, typer.Option(help="Only for this task.")] = None,
    key: Annotated[str | None, typer.Option(help="Only for this concurrency key; * for each key by itself.")] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Set limits of a tenant, as an operator: the tenant itself can't change them."""
    wanted = [LimitRequest(name, LimitKind.WEIGHT, weight)] if weight is not None else []
    for kind, amount in ((LimitKind.CONCURRENCY, concurrency), (LimitKind.BACKLOG, backlog)):
        if amount is not None:
            wanted.append(LimitRequest(name, kind, amount, task_name=task, queue=queue, concurrency_key=key))
    if rate is not None:
        starts, period = _read_rate(rate)
        wanted.append(LimitRequest(name, LimitKind.RATE, starts, period, burst, task, queue, key))
    elif burst is not None:
        raise InvalidInput("--burst is of a --rate.")
    if not wanted:
        raise InvalidInput("Say what to limit: --weight, --concurrency, --rate or --backlog.")
    with installation.inside(installation.settle(state), tenant, "tenantry limits set") as session:
        made = [service.put(session, request) for request in wanted]
    terminal.answer({"limits": [_value(row) for row in made]}, "\n".join(map(_line, made)), as_json=as_json)


@limits.command("list")
def show_limits(tenant: TenantSlug, state: State = None, as_json: Json = False) -> None:
    """Show a tenant's limits, and how far each is used."""
    with installation.inside(installation.settle(state), tenant, "tenantry limits list") as session:
        found = service.every(session)
        used = service.used(session)
    values = [{**_value(row), "used": used.get(row.id)} for row in found]
    lines = [f"{_line(row)}{f', used {used[row.id]:g}' if row.id in used else ''}" for row in found]
    terminal.answer({"limits": values}, "\n".join(lines) or "No limits.", as_json=as_json)


@limits.command("remove")
def remove_limits(
    tenant: TenantSlug,
    name: Annotated[str, typer.Option(help="The name; all limits of this name are taken away.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Take a tenant's limits of one name away."""
    with installation.inside(installation.settle(state), tenant, "tenantry limits remove") as session:
        gone = [row for row in service.every(session) if row.name == name]
        if not gone:
            raise NotFound(f"{tenant} has no limit {name!r}.")
        for row in gone:
            service.remove(session, row.id)
    terminal.answer({"removed": [_value(row) for row in gone]}, f"{name} is gone.", as_json=as_json)


def _read_rate(rate: str) -> tuple[float, float]:
    read = _RATE.fullmatch(rate)
    if read is None:
        raise InvalidInput("--rate is a number per s, m or h, such as 100/m.")
    return float(read[1]), _SECONDS[read[2]]


def _value(row: models.Limit) -> dict[str, Any]:
    return {
        "id": ids.show("lim", row.id),
        "name": row.name,
        "kind": row.kind,
        "amount": row.amount,
        "perSeconds": row.per_seconds,
        "burst": row.burst,
        "taskName": row.task,
        "queue": row.queue,
        "concurrencyKey": row.concurrency_key,
    }


def _line(row: models.Limit) -> str:
    period = "" if row.per_seconds is None else f" per {row.per_seconds:g} s, burst {row.burst:g}"
    named = [name for name in (row.task, row.queue, row.concurrency_key and f"key {row.concurrency_key}") if name]
    return f"{row.name}: {row.kind.lower()} {row.amount:g}{period}" + (f" ({', '.join(named)})" if named else "")
