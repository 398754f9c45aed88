"""Commands about tenants' audit logs, on the machine of the installation."""

from __future__ import annotations

import sys

import orjson
import typer

from api import installation
from api.commands import terminal
from api.commands.terminal import Json, State, TenantSlug
from tenants import audit as service
from tenants import ids
from tenants.models import AuditEntry

audit = typer.Typer(help="The audit log.", no_args_is_help=True)


@audit.command("export")
def export(tenant: TenantSlug, state: State = None) -> None:
    """Print all entries, oldest first: one JSON object a line."""
    with installation.inside(installation.settle(state), tenant, "tenantry audit export") as session:
        for entry in service.export(session):
            sys.stdout.buffer.write(orjson.dumps(_value(entry), option=orjson.OPT_APPEND_NEWLINE))


@audit.command("verify")
def verify(tenant: TenantSlug, state: State = None, as_json: Json = False) -> None:
    """Compute the chain of hashes again; exit 1 where an entry was altered, added or taken out."""
    with installation.inside(installation.settle(state), tenant, "tenantry audit verify") as session:
        verdict = service.verify(session)
    value = {"sealed": verdict.sealed, "waiting": verdict.waiting, "head": verdict.head, "broken": verdict.broken}
    if verdict.broken is None:
        told = (
            f"{verdict.sealed} entries fit together; {verdict.waiting} wait for their seal. The last is {verdict.head}."
        )
    else:
        told = f"The chain is broken at entry {verdict.broken} of {verdict.sealed}."
    terminal.answer(value, told, as_json=as_json)
    if verdict.broken is not None:
        raise typer.Exit(1)


def _value(entry: AuditEntry) -> dict[str, object]:
    return {
        "id": ids.show("aud", entry.id),
        "at": entry.at,
        "actorKind": entry.actor_kind,
        "actor": entry.actor,
        "action": entry.action,
        "target": entry.target,
        "detail": entry.detail,
        "position": entry.position,
        "hash": entry.hash.hex() if entry.hash else None,
    }
