"""Commands about runs, over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import typer

from api.commands import remote, terminal
from api.commands.remote import Server
from api.commands.terminal import Json, State, TenantSlug
from tasks.engine.states import TERMINAL
from tenants.errors import InvalidInput, TenantryError, Unavailable

task = typer.Typer(help="Tasks.", no_args_is_help=True)
run = typer.Typer(help="Runs.", no_args_is_help=True)

_TRIGGER = """
mutation ($taskName: String!, $args: JSON, $key: String) {
  triggerBackgroundTask(taskName: $taskName, args: $args, idempotencyKey: $key) { success taskId message }
}"""
_RUN = """
query ($id: ID!) {
  run(id: $id) {
    id taskName state queue priority args attempt maxAttempts result createdAt startedAt finishedAt workerSeconds
    progress { current total message fraction } error { type message retryable }
  }
}"""
_FOLLOW = """
subscription ($id: ID!, $after: Cursor) {
  taskUpdates(taskId: $id, after: $after) { cursor state attempt progress { fraction message } }
}"""
_RECONNECTIONS = 5


@task.command("trigger")
def trigger(
    name: Annotated[str, typer.Argument(help="The task, such as sales.refresh_all_materialized_views.")],
    args: Annotated[str, typer.Option(help="Its arguments, a JSON object.")] = "{}",
    idempotency_key: Annotated[str | None, typer.Option(help="A repeat with the same key is the same run.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the run to its end; exit 1 unless it succeeds.")
    ] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Trigger a task."""
    try:
        arguments = orjson.loads(args)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"--args is not JSON: {error}.") from None
    server = remote.connect(state)
    variables = {"taskName": name, "args": arguments, "key": idempotency_key}
    accepted = server.ask(_TRIGGER, variables)["triggerBackgroundTask"]
    if not accepted["success"]:
        raise TenantryError(accepted["message"])
    if not watch:
        terminal.answer(accepted, f"{accepted['taskId']}\n{accepted['message']}", as_json=as_json)
        return
    _follow(server, accepted["taskId"], quiet=as_json)
    ended = _find(server, accepted["taskId"])
    _show(ended, as_json=as_json)
    if ended["state"] != "SUCCEEDED":
        raise typer.Exit(1)


@run.command("show")
def show(
    id: Annotated[str, typer.Argument(help="The run, run_….")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show a run."""
    _show(_find(remote.connect(state), id), as_json=as_json)


def login(
    tenant: TenantSlug,
    email: Annotated[str, typer.Option(help="E-mail address.")],
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read it from standard input.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Log in with a password, and print the tokens."""
    server = Server(remote.address(state))
    password = terminal.ask_password(from_input=password_stdin)
    tokens = server.post("/auth/login", {"tenant": tenant, "email": email, "password": password})
    text = f"export TENANTRY_API_KEY={tokens['accessToken']}\n# valid for {tokens['expiresIn']} s"
    terminal.answer(tokens, text, as_json=as_json)


def _follow(server: Server, run: str, *, quiet: bool) -> None:
    """Print the run's updates until it has ended, over as many connections as it takes."""
    cursor: str | None = None
    for remaining in range(_RECONNECTIONS, -1, -1):
        try:
            for event in server.follow(_FOLLOW, {"id": run, "after": cursor}):
                update = event["taskUpdates"]
                cursor = update["cursor"]
                if not quiet:
                    _print(update)
                if update["state"] in TERMINAL:
                    return
        except Unavailable:
            if not remaining:
                raise


def _print(update: dict[str, Any]) -> None:
    progress = update["progress"] or {}
    share = "" if progress.get("fraction") is None else f" {progress['fraction']:.0%}"
    typer.echo(f"{update['state']}{share} {progress.get('message') or ''}".rstrip(), err=True)


def _find(server: Server, id: str) -> dict[str, Any]:
    found: dict[str, Any] | None = server.ask(_RUN, {"id": id})["run"]
    if found is None:
        raise TenantryError(f"There is no run {id!r}.")
    return found


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    lines = [f"{found['id']}  {found['taskName']}  {found['state']}  attempt {found['attempt']}/{found['maxAttempts']}"]
    if found["error"]:
        lines.append(f"{found['error']['type']}: {found['error']['message']}")
    if found["result"] is not None:
        lines.append(orjson.dumps(found["result"], option=orjson.OPT_INDENT_2).decode())
    terminal.answer(found, "\n".join(lines), as_json=as_json)
