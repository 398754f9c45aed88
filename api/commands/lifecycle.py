"""Commands that suspend, resume, export and erase a tenant, on the machine of the installation."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import orjson
import typer

from api import installation
from api.commands import terminal
from api.commands.terminal import Json, State
from tasks.engine import erasure, publish
from tasks.gateways import storage
from tenants import audit, context, export, ids, lifecycle, system
from tenants.errors import InvalidInput, InvalidState

Slug = Annotated[str, typer.Argument(help="The tenant's slug.")]


def suspend(
    slug: Slug,
    note: Annotated[str | None, typer.Option(help="Why, for its audit log.")] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Stop a tenant: nothing of it starts, what runs is stopped and waits; its people may read and change nothing."""
    settings = installation.settle(state)
    found = system.acting(settings, slug, "tenantry tenant suspend")
    with system.connect(settings) as connection:
        lifecycle.suspend(connection, found.tenant, found.actor, note)
    terminal.answer({"slug": slug, "suspended": True}, f"{slug} is suspended.", as_json=as_json)


def resume(slug: Slug, state: State = None, as_json: Json = False) -> None:
    """Let a suspended tenant go on where it stopped."""
    settings = installation.settle(state)
    found = system.acting(settings, slug, "tenantry tenant resume")
    with system.connect(settings) as connection:
        lifecycle.resume(connection, found.tenant, found.actor)
    terminal.answer({"slug": slug, "suspended": False}, f"{slug} goes on.", as_json=as_json)


def export_tenant(
    slug: Slug,
    folder: Annotated[Path, typer.Argument(help="A folder that is empty or not there yet.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Write all that a tenant owns into files: one JSON object a line for its rows, and its objects as they are."""
    settings = installation.settle(state)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty: name a folder that is.")
    with installation.inside(settings, slug, "tenantry tenant export", snapshot=True) as session:
        rows = dict(export.write(session, folder))
        audit.record(session, "tenant.export")
        owner = context.principal(session).tenant
    objects = 0
    for path in storage.paths(settings.storage, str(owner)):
        to = folder / "objects" / path.partition("/")[2]
        to.parent.mkdir(parents=True, exist_ok=True)
        with to.open("wb") as file:
            storage.get(settings.storage, path, file)
        objects += 1
    value = {"slug": slug, "id": ids.show("ten", owner), "rows": rows, "objects": objects}
    (folder / "manifest.json").write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))
    told = f"{sum(rows.values())} rows of {len(rows)} tables and {objects} objects of {slug} are in {folder}."
    terminal.answer(value, told, as_json=as_json)


def erase(
    slug: Slug,
    confirm: Annotated[str, typer.Option(help="The slug once more: this has no way back.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Erase a tenant with all it owns: its rows, its keys in Redis, its objects. Begun, it can only be carried on."""
    settings = installation.settle(state)
    if confirm != slug:
        raise InvalidInput(f"--confirm must be {slug}: erasing has no way back.")
    found = system.acting(settings, slug, "tenantry tenant erase")
    owner = found.tenant
    terminal.tell("Waiting until nobody is inside …")
    with (
        system.connect(settings) as connection,
        closing(publish.connect(settings.redis.dispatcher_address, timeout_seconds=10)) as client,
    ):
        lifecycle.begin_erasure(connection, owner, found.actor)
        for runs in lifecycle.runs(connection, owner):
            erasure.erase_results(client, runs)
        rows = 0
        for portion in lifecycle.erase_rows(connection, owner):
            rows += portion
            terminal.tell(f"{rows} rows erased …")
        redis_keys = erasure.erase(client, owner)
        paths = list(storage.paths(settings.storage, str(owner)))
        storage.delete(settings.storage, paths)
        lifecycle.end(connection, owner)
        left = {
            "rows": lifecycle.rows_left(connection, owner),
            "keys": [key.decode() for key in erasure.left(client, owner)],
            "objects": list(storage.paths(settings.storage, str(owner))),
        }
    value = {
        "slug": slug,
        "id": ids.show("ten", owner),
        "rows": rows,
        "keys": redis_keys,
        "objects": len(paths),
        "left": left,
    }
    told = f"Erased {slug}: {rows} rows, {redis_keys} keys, {len(paths)} objects."
    terminal.answer(value, told, as_json=as_json)
    if any(left.values()):
        raise InvalidState(f"This is left of it: {left}. Erase it again.", state="erasing")
