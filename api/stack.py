"""What `./dev up` runs: servers where none are given, migrations, api, workers and beat, on one machine."""

from __future__ import annotations

import argparse
import http
import http.client
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import make_url

from api import embedded, installation, process, state
from api.installation import Installation, Part
from api.journal import Journal
from api.process import Command
from api.supervisor import Supervisor
from tasks import registry
from tenants import ids, keys, roles, settings, system
from tenants.errors import Conflict, Misconfigured, TenantryError
from tenants.roles import Addresses, Passwords
from tenants.settings import Settings

HOST = "127.0.0.1"

_NAME = "tenantry"
_OPERATOR = "operator.json"
_STOP_SECONDS = 7.5
_PROBE_SECONDS = 0.5


def run(folder: Path, port: int, journal: Journal) -> None:
    """Run the stack until SIGINT or SIGTERM.

    Args:
        folder: the state folder.
        port: where the API listens; 0 for any free port.
        journal: takes what there is to say.

    Raises:
        Conflict: the folder's stack runs already.
        Misconfigured: the settings are wrong, or the port is taken.
        Unavailable: a server doesn't start.
    """
    folder = state.open_folder(folder)
    with ExitStack() as stack:
        _take(stack, folder)
        given = settings.load()
        url = f"http://{HOST}:{_reserve(port)}"
        supervisor = stack.enter_context(Supervisor(journal))
        servers = stack.enter_context(embedded.start(folder, kinds=_missing(given)))
        for server in servers.processes:
            supervisor.adopt(server)
        made = Installation(
            folder,
            url,
            database=_prepare_database(given, servers.admin_url, folder),
            redis_url=servers.redis_url or given.redis.url,
            redis_users=bool(servers.redis_url),
        )
        process.run(_command(made, "migrate", "-m", "api.cli", "migrate"))
        key = _make_operator_key(made)
        stack.callback(made.save, {})
        stack.callback(supervisor.stop, _STOP_SECONDS)
        for command in _commands(made, given.api.bulk_body_bytes):
            supervisor.start(command)
        supervisor.run(_Watch(made, supervisor, journal, key))


def is_ready(url: str) -> bool:
    """Whether the stack at this address can do its work."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class _Watch:
    """What is looked after at each turn: that `state.json` is true, and whether the stack is ready."""

    def __init__(self, made: Installation, supervisor: Supervisor, journal: Journal, key: str | None) -> None:
        self._made = made
        self._supervisor = supervisor
        self._journal = journal
        self._key = key
        self._saved: dict[str, int] = {}
        self._ready = False

    def __call__(self) -> None:
        pids = self._supervisor.pids
        if pids != self._saved:
            self._made.save(pids)
            self._saved = pids
        if not self._ready and is_ready(self._made.url):
            self._ready = True
            self._journal.say(_NAME, f"ready at {self._made.url}/graphql (Ctrl-C stops everything)")
            if self._key:
                self._journal.say(_NAME, f"an API key for operators, shown this once: {self._key}")


def _take(stack: ExitStack, folder: Path) -> None:
    try:
        stack.enter_context(state.lock(folder, "up"))
    except Conflict as error:
        url = state.read(folder, state.ADDRESSES).get("url", "an address it has yet to choose")
        raise Conflict(f"{error.message.removesuffix('.')}, which serves {url}.") from None
    (folder / state.ADDRESSES).unlink(missing_ok=True)


def _missing(given: Settings) -> list[embedded.Kind]:
    missing: list[embedded.Kind] = []
    if not given.database.url:
        missing.append("postgres")
    if "url" not in given.redis.model_fields_set:
        missing.append("redis")
    return missing


def _prepare_database(given: Settings, admin_url: str, folder: Path) -> Addresses:
    database = given.database
    if database.url and database.system_url and database.owner_url:
        return Addresses(database.url, database.system_url, database.owner_url)
    passwords = Passwords(*(state.secret(folder, login) for login in ("owner", "app", "system")))
    if admin_url:
        return roles.create(admin_url, passwords)
    admin = make_url(database.url)
    maintenance = admin.set(database="postgres").render_as_string(hide_password=False)
    try:
        return roles.create(maintenance, passwords, database=admin.database or _NAME)
    except Misconfigured as error:
        raise Misconfigured(
            "DATABASE_URL without DATABASE_SYSTEM_URL and DATABASE_OWNER_URL has to be an administrator's, "
            f"who makes the three logins: {error.message}"
        ) from None


def _make_operator_key(made: Installation) -> str | None:
    """The secret of a key for operators, made at the folder's first start only."""
    if state.read(made.folder, _OPERATOR):
        return None
    current = settings.load(database={"url": made.database.app, "system_url": made.database.system})
    pepper = current.auth.key_pepper.get_secret_value() or state.secret(made.folder, "key_pepper")
    with installation.inside(current, system.OPERATORS, "./dev up") as session:
        created = keys.create(session, SecretStr(pepper), name="first start", scopes=["*"])
        state.write(made.folder, _OPERATOR, {"id": ids.show("key", created.key.id)})
    return created.secret


def _reserve(port: int) -> int:
    """The port, seen to be free, or any free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise Misconfigured(f"Port {port} cannot be used ({error.strerror}): choose another by --port.") from None
        reserved: int = probe.getsockname()[1]
        return reserved


def _commands(made: Installation, frame_bytes: int) -> Iterator[Command]:
    port = made.url.rpartition(":")[2]
    uvicorn = ("-m", "uvicorn", "--factory", "api.app:create", "--host", HOST, "--port", port, "--no-access-log")
    yield _command(made, "api", *uvicorn, "--ws-max-size", str(frame_bytes), "--timeout-graceful-shutdown", "5")
    # Celery warns root of messages that run code when they are read; these are JSON.
    celery = ("-W", "ignore:You're running the worker with superuser", "-m", "celery", "-q", "-A", "tasks.worker")
    worker = (*celery, "worker", "--without-gossip", "--without-mingle")
    yield _command(made, "worker", *worker, "-n", "worker@%h", "-X", registry.OPERATOR_QUEUE)
    yield _command(made, "operator", *worker, "-n", "operator@%h", "-Q", registry.OPERATOR_QUEUE, "-c", "1")
    yield _command(made, "beat", *celery, "beat", "--pidfile=")


def _command(made: Installation, part: Part, *arguments: str) -> Command:
    # SIGTERM means Celery's soft shutdown: running tasks are told, and what is left is released for other workers.
    environment = {**made.environment(part), "REMAP_SIGTERM": "SIGQUIT", "PYTHONUNBUFFERED": "1"}
    return Command(part, (sys.executable, "-P", *arguments), environment, folder=Path.cwd())


def _main() -> None:
    parser = argparse.ArgumentParser(prog="./dev up", description=__doc__)
    parser.add_argument("--state", type=Path, help="TENANTRY_STATE, or .tenantry, without")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    arguments = parser.parse_args()
    try:
        run(arguments.state or settings.load().state, arguments.port, Journal(sys.stdout.fileno()))
    except TenantryError as error:
        sys.exit(f"./dev up: {error.message}")


if __name__ == "__main__":
    _main()
