"""`./dev demo`: the main job from end to end. Orders, the mutation, its updates as they arrive, the fresh dashboard."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api import dashboard, installation, stack, state
from api.commands.remote import Server
from api.process import Command, Process
from tasks.engine import switches
from tasks.families.sales.service import samples
from tasks.gateways import storage
from tenants import db, keys, members, names, settings, system
from tenants.context import Principal, Role
from tenants.errors import Conflict, TenantryError, Unavailable
from tenants.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
SLUG, EMAIL, CURRENCY = "demo", "demo@tenantry.example", "GBP"
TRIGGER = 'mutation { triggerBackgroundTask(taskName: "refresh_all_materialized_views") { success taskId message } }'
_TRIGGER_AS_OF = """
mutation ($args: JSON) {
  triggerBackgroundTask(taskName: "refresh_all_materialized_views", args: $args) { success taskId message }
}"""
_IMPORT = """
mutation ($file: String!, $currency: String) {
  importSalesOrders(file: $file, currency: $currency) { success taskId message }
}"""
_COUNT = "mutation ($counts: [SalesStockInput!]!) { recordSalesStock(counts: $counts) { success message } }"
_FOLLOW = """
subscription ($id: ID!) {
  taskUpdates(taskId: $id) { kind state attempt at progress { current total message } run { result error { message } } }
}"""
_READY_SECONDS = 60.0
_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Login:
    """How to get into the demo's tenant."""

    url: str
    email: str
    password: str
    api_key: str


@dataclass(frozen=True, slots=True)
class Shop:
    """The demo's tenant, from the inside."""

    engine: Engine
    principal: Principal

    def write(self, service: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a service in a transaction of its own."""
        with db.open_session(self.engine, self.principal) as session:
            found = service(session, *args, **kwargs)
            session.commit()
        return found


def run(folder: Path, console: Console, *, data: Path | None, keep: bool) -> bool:
    """Run the demo; says whether the run succeeded.

    Args:
        folder: the state folder of the stack; one that runs already is used and left running.
        data: a CSV file of order lines; made-up orders up to now if None.
        keep: leave the stack up until Ctrl-C or SIGTERM.

    Raises:
        TenantryError: something doesn't start, or the file can't be read.
    """
    folder = state.open_folder(folder)
    with ExitStack() as opened:
        with console.status("starting PostgreSQL, Redis, API, worker and beat …"):
            process = opened.enter_context(_stack(folder))
            url = _await_ready(folder, process)
        console.print(f"[green]ready[/] {url}/graphql")
        current = installation.settle(folder)
        shop = opened.enter_context(_open_shop(current))
        login = opened.enter_context(_log_in(shop, current, folder, url, keep=keep))
        server = Server(url, login.api_key)
        file = _upload(shop, current, data)
        as_of = _bring_orders(server, console, file, data)
        succeeded = _refresh(server, console, as_of)
        if keep:
            _show_login(console, login)
            _wait(process)
    return succeeded


@contextmanager
def _stack(folder: Path) -> Iterator[Process | None]:
    """The stack of the folder: started, and stopped at the end, unless it runs already."""
    if _is_ready(folder):
        yield None
        return
    command = Command(
        "stack",
        (sys.executable, "-P", "-m", "api.stack", "--state", str(folder), "--port", "0"),
        {**os.environ, "PYTHONPATH": str(installation.ROOT)},
        folder=Path.cwd(),
        log=folder / "demo.log",
        orphaned=signal.SIGTERM,
    )
    process = Process(command)
    try:
        yield process
    finally:
        process.stop(_STOP_SECONDS)


def _await_ready(folder: Path, process: Process | None) -> str:
    """The stack's address, once it serves."""
    end = time.monotonic() + _READY_SECONDS
    while process is not None and not _is_ready(folder):
        if process.poll() is not None or time.monotonic() > end:
            last = (folder / "demo.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise Unavailable(f"The stack did not start: {''.join(last)} (see {folder / 'demo.log'})")
        time.sleep(0.05)
    return _url(folder)


def _url(folder: Path) -> str:
    return str(state.read(folder, state.ADDRESSES).get("url", ""))


def _is_ready(folder: Path) -> bool:
    url = _url(folder)
    return bool(url) and stack.is_ready(url)


@contextmanager
def _open_shop(current: Settings) -> Iterator[Shop]:
    """The tenant `demo`, made at the first time."""
    with suppress(Conflict):  # It is there from an earlier demo.
        system.create_tenant(current, SLUG, name="Demo", timezone="Europe/London", families=["sales"])
    engine = db.sync_engine(current.database.url, pool_size=1, application="tenantry-demo")
    shop = Shop(engine, system.acting(current, SLUG, "./dev demo"))
    try:
        shop.write(switches.enable, "sales")
        yield shop
    finally:
        engine.dispose()


@contextmanager
def _log_in(shop: Shop, current: Settings, folder: Path, url: str, *, keep: bool) -> Iterator[Login]:
    """The tenant's owner, and an API key that is revoked at the end unless it is to be kept."""
    password = state.secret(folder, "demo_password")
    shop.write(members.join, system.enroll(current, EMAIL, password), Role.OWNER)
    made = shop.write(keys.create, current.auth.key_pepper, name="demo", scopes=["*"])
    yield Login(url, EMAIL, password, made.secret)
    if not keep:
        shop.write(keys.revoke, made.key.id)


def _upload(shop: Shop, current: Settings, data: Path | None) -> str:
    """Put the file among the tenant's uploads. Returns its name there."""
    name = "orders.csv.gz" if data and data.suffix == ".gz" else "orders.csv"
    path = names.object_path(shop.principal.tenant, "uploads", name)
    try:
        with data.open("rb") if data else io.BytesIO(samples.orders(datetime.now(UTC)).encode()) as content:
            storage.put(current.storage, path, content)
    except OSError as error:
        raise TenantryError(f"{data} cannot be read: {error.strerror}.") from None
    return name


def _bring_orders(server: Server, console: Console, file: str, data: Path | None) -> datetime | None:
    """Import the file over HTTP. Returns the moment to look back from; None for now."""
    began = time.perf_counter()
    ended = _run(server, console, _IMPORT, {"file": file, "currency": CURRENCY})
    if ended["state"] != "SUCCEEDED":
        raise TenantryError(((ended["run"] or {}).get("error") or {}).get("message") or "The orders were not imported.")
    done = ended["run"]["result"]
    refused = f"; {done['refused']:,} were refused, each with a reason" if done["refused"] else ""
    console.print(
        f"[green]orders[/] {done['kept']:,} order lines of {data.name if data else 'a made-up shop'}"
        f" in {time.perf_counter() - began:.1f} s{refused}",
        soft_wrap=True,
    )
    if data is None:
        counts = [{"sku": c.sku, "stock": c.stock, "reorderPoint": c.reorder_point} for c in samples.counts()]
        _change(server, _COUNT, {"counts": counts})
        return None
    return done["last"] and datetime.fromisoformat(done["last"]) + timedelta(minutes=1)


def _refresh(server: Server, console: Console, as_of: datetime | None) -> bool:
    """Trigger the refresh over HTTP, follow it to its end, show what has become of the dashboard."""
    document, variables = (TRIGGER, {}) if as_of is None else (_TRIGGER_AS_OF, {"args": {"as_of": as_of.isoformat()}})
    ended = _run(server, console, document, variables)
    if ended["state"] != "SUCCEEDED":
        console.print(f"[red]{ended['state']}[/] {(ended['run'] or {}).get('error') or ''}")
        return False
    dashboard.show(console, server.ask(dashboard.QUERY, {})["salesDashboard"])
    return True


def _run(server: Server, console: Console, document: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Trigger a run over HTTP and follow it to its end; returns its last update. Errors as for `_change`."""
    console.print(f"[bold]{document.strip()}[/]", highlight=False, soft_wrap=True)
    accepted = _change(server, document, variables)
    console.print_json(data=accepted)
    return _follow(server, console, accepted["taskId"])


def _change(server: Server, document: str, variables: dict[str, Any]) -> dict[str, Any]:
    """What a mutation answers.

    Raises:
        TenantryError: it was refused.
    """
    answer: dict[str, Any]
    [answer] = server.ask(document, variables).values()
    if not answer["success"]:
        raise TenantryError(answer["message"])
    return answer


def _follow(server: Server, console: Console, task_id: str) -> dict[str, Any]:
    """Print the run's updates as they arrive, with a bar of its progress; returns the last."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    update: dict[str, Any] = {"state": "UNKNOWN", "run": None}
    with Progress(*columns, console=console) as bar:
        job = bar.add_task("waiting", total=None)
        for data in server.follow(_FOLLOW, {"id": task_id}):
            update = data["taskUpdates"]
            progress = update["progress"] or {}
            message = progress.get("message") or ""
            bar.console.print(f"{update['at'][11:23]}  {update['kind']:<8}  {update['state']:<9}  {message}")
            if progress:
                bar.update(job, completed=progress["current"], total=progress["total"])
            if update["state"] == "SUCCEEDED":
                total = bar.tasks[job].total or 1
                bar.update(job, completed=total, total=total)
            bar.update(job, description=update["state"].lower())
    return update


def _show_login(console: Console, login: Login) -> None:
    console.print(
        "\nThe stack stays up until Ctrl-C. To log in:\n"
        f"  GraphQL   {login.url}/graphql\n"
        f"  API key   {login.api_key}\n"
        f"  person    tenant {SLUG}, {login.email}, {login.password}",
        highlight=False,
        soft_wrap=True,
    )


def _wait(process: Process | None) -> None:
    """Until Ctrl-C, SIGTERM, or the stack's end."""
    try:
        while process is not None and process.poll() is None:
            time.sleep(0.2)
    except KeyboardInterrupt:
        return


def _main() -> None:
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    parser.add_argument("--state", type=Path, help="TENANTRY_STATE, or .tenantry, without")
    parser.add_argument("--data", type=Path, help="a CSV file of order lines; made-up orders without")
    parser.add_argument("--keep", action="store_true", help="leave the stack up until Ctrl-C, and say how to log in")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        folder = arguments.state or settings.load().state
        succeeded = run(folder, Console(), data=arguments.data, keep=arguments.keep)
    except TenantryError as error:
        sys.exit(f"./dev demo: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    _main()
