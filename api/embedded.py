"""PostgreSQL and Valkey or Redis for one machine: found on PATH or in the `embedded` extra, started, watched, ended."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep
from typing import Literal

import psycopg2
import redis

from api import process, programs, state
from api.process import Account, Command, Process
from api.programs import Program
from tenants.errors import Unavailable

Kind = Literal["postgres", "redis"]
RedisUser = Literal["api", "worker", "dispatcher"]

_HOMES = Path("/var/lib/tenantry")
_START_SECONDS = 30.0
_STOP_SECONDS = 2.0
_POLL_SECONDS = 0.02
_PORT_TRIES = 5
_PREDECESSOR_SECONDS = 5.0
_IN_USE = b"Address already in use"
_ORDINARY = "+@all -@admin -@dangerous +info"
_USERS: dict[RedisUser, str] = {
    # Nothing of the queues, nor of results: the API reads and writes what belongs to tenants, and rings the bell.
    "api": f"~t:* ~sys:* &sys:* {_ORDINARY}",
    "worker": f"~* &* {_ORDINARY}",
    "dispatcher": f"~* &* {_ORDINARY}",
}


@dataclass(frozen=True, slots=True)
class Servers:
    """Running servers. The addresses are the administrators'; empty for a server that was not asked for."""

    admin_url: str
    redis_url: str
    processes: tuple[Process, ...]


@contextmanager
def start(
    folder: Path,
    *,
    kinds: Collection[Kind] = ("postgres", "redis"),
    durable: bool = True,
    source: programs.Source = "any",
) -> Iterator[Servers]:
    """Servers on loopback, with their data in the folder, until the block ends.

    Call it from a thread that lives as long as the servers should: they end with it, even after a SIGKILL.

    Args:
        folder: the state folder; a second start on it finds data, passwords and, when still free, ports unchanged.
        kinds: which servers.
        durable: False trades safety against loss of power for speed, and may leave no data behind: for tests.
        source: "wheels" leaves the servers on PATH aside.

    Raises:
        Conflict: another process runs the servers of this folder.
        Misconfigured: there is no usable program.
        Unavailable: a server doesn't start.
    """
    folder = state.open_folder(folder)
    with state.lock(folder, "servers"), ExitStack() as stack:
        site = _open_site(folder, durable, source)
        if not durable and site.home != folder:
            stack.callback(shutil.rmtree, site.home, ignore_errors=True)
        addresses: dict[Kind, str] = {}
        running: list[Process] = []
        stack.callback(process.stop_all, running, _STOP_SECONDS)
        for kind, begin in _STARTERS.items():
            if kind in kinds:
                started, addresses[kind] = begin(site)
                running.append(started)
        yield Servers(addresses.get("postgres", ""), addresses.get("redis", ""), tuple(running))


def redis_address(folder: Path, redis_url: str, user: RedisUser) -> str:
    """The address of the folder's Redis for one of its users, who may do no more than that part has to."""
    host = redis_url.rpartition("@")[2]
    return f"redis://{user}:{state.secret(folder, f'redis_{user}')}@{host}"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class _Site:
    """Where and how the servers of one state folder run."""

    folder: Path
    home: Path
    account: Account | None
    durable: bool
    source: programs.Source

    def data(self, name: str) -> Path:
        """A folder that belongs to the servers' account."""
        path = self.home / name
        path.mkdir(mode=0o700, exist_ok=True)
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)
        return path


def _open_site(folder: Path, durable: bool, source: programs.Source) -> _Site:
    account = process.unprivileged()
    home = folder
    if account is not None and not account.reaches(folder):
        # Root's own folders are closed to the account that PostgreSQL must run as, and are not for us to open.
        kept = state.read(folder, "home.json")
        home = state.open_folder(Path(kept.get("home") or (_HOMES / token_hex(8) if durable else tempfile.mkdtemp())))
        home.chmod(0o711)
        state.write(folder, "home.json", {"home": str(home)})
    return _Site(folder, home, account, durable, source)


def _start_postgres(site: _Site) -> tuple[Process, str]:
    data = site.home / "postgres"
    made_by = int((data / "PG_VERSION").read_text()) if data.exists() else None
    program = programs.find_postgres(site.home, site.account, site.source, made_by)
    password = state.secret(site.folder, "postgres")
    if made_by is None:
        _initialise(site, program, password)
    process.bury(data, data / "postmaster.pid", _PREDECESSOR_SECONDS)
    safety = () if site.durable else ("fsync=off", "synchronous_commit=off", "full_page_writes=off")

    def command(port: int) -> Command:
        options = (
            "listen_addresses=127.0.0.1",
            f"port={port}",
            "unix_socket_directories=",
            "max_connections=200",
            "timezone=UTC",
            "log_timezone=UTC",
            *safety,
        )
        return Command(
            "postgres",
            (str(program.path), "-D", str(data), *(part for option in options for part in ("-c", option))),
            programs.ENVIRONMENT,
            account=site.account,
            log=_log(site, "postgres"),
            stop_signal=signal.SIGINT,
            orphaned=signal.SIGINT,
        )

    def address(port: int) -> str:
        return f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"

    def probe(port: int) -> None:
        psycopg2.connect(address(port), connect_timeout=1).close()

    started, port = _serve(site, command, probe)
    return started, address(port)


def _initialise(site: _Site, program: Program, password: str) -> None:
    """Make the database files in a folder of another name first, so that a start cut short leaves nothing half made."""
    shutil.rmtree(site.home / "postgres.new", ignore_errors=True)
    draft = site.data("postgres.new")
    locale = (
        ("--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        if program.major >= 17
        else ("--locale=C.UTF-8",)
    )
    password_file = site.home / "postgres.password"
    password_file.touch(mode=0o600)
    password_file.write_text(password, encoding="utf-8")
    try:
        if site.account is not None:
            os.chown(password_file, site.account.uid, site.account.gid)
        options = ("-U", "postgres", "-E", "UTF8", "--auth=scram-sha-256", f"--pwfile={password_file}", *locale)
        initdb = (str(program.path.with_name("initdb")), "-D", str(draft), *options)
        sync = () if site.durable else ("--no-sync",)
        process.run(Command("initdb", (*initdb, *sync), programs.ENVIRONMENT, account=site.account))
    finally:
        password_file.unlink()
    draft.rename(site.home / "postgres")


def _start_redis(site: _Site) -> tuple[Process, str]:
    program = programs.find_redis(site.home, site.account, site.source)
    # Named after the program, because neither reads the files of a newer one.
    data = site.data(f"{program.path.name.removesuffix('-server')}-{program.major}")
    password = state.secret(site.folder, "redis")
    pid_file = data / "redis.pid"
    process.bury(data, pid_file, _PREDECESSOR_SECONDS)

    def command(port: int) -> Command:
        configuration = f"""
            bind 127.0.0.1
            port {port}
            requirepass {password}
            dir "{data}"
            pidfile "{pid_file}"
            appendonly yes
            appendfsync {"everysec" if site.durable else "no"}
            save ""
            maxmemory-policy noeviction
        """
        users = [f"user {user} on >{state.secret(site.folder, f'redis_{user}')} {may}" for user, may in _USERS.items()]
        return Command(
            "redis",
            (str(program.path), "-"),
            programs.ENVIRONMENT,
            account=site.account,
            standard_input="\n".join([configuration, *users, ""]).encode(),
            log=_log(site, "redis"),
            orphaned=signal.SIGTERM,
        )

    def address(port: int) -> str:
        return f"redis://:{password}@127.0.0.1:{port}/0"

    def probe(port: int) -> None:
        with redis.Redis.from_url(address(port), socket_timeout=1) as client:
            client.ping()

    started, port = _serve(site, command, probe)
    return started, address(port)


def _serve(site: _Site, command: Callable[[int], Command], probe: Callable[[int], None]) -> tuple[Process, int]:
    """Start a server on its former port, or else on a free one: that may be taken meanwhile, so it is tried again."""
    name = command(0).name
    port = state.read(site.folder, "ports.json").get(name) or free_port()
    for _ in range(_PORT_TRIES):
        log = _log(site, name)
        written = log.stat().st_size if log.exists() else 0
        server = Process(command(port))
        try:
            if _await(server, probe, port):
                state.write(site.folder, "ports.json", {**state.read(site.folder, "ports.json"), name: port})
                return server, port
            output = log.read_bytes()[written:]
        except BaseException:
            server.stop(_STOP_SECONDS)
            raise
        if _IN_USE not in output:
            break
        port = free_port()
    lines = output.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    cause = next((line for line in lines if "FATAL" in line), lines[-1])
    raise Unavailable(f"{name} does not start: {cause} (the whole story is in {log})")


def _await(server: Process, probe: Callable[[int], None], port: int) -> bool:
    """Whether the server answers, as soon as it does or has ended."""
    end = monotonic() + _START_SECONDS
    while True:
        sleep(_POLL_SECONDS)
        if server.poll() is not None:
            return False
        try:
            probe(port)
        except (psycopg2.OperationalError, redis.RedisError) as error:
            if monotonic() > end:
                raise Unavailable(f"{server.command.name} does not answer: {error}") from None
        else:
            return True


def _log(site: _Site, name: str) -> Path:
    folder = site.folder / "log"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{name}.log"


_STARTERS: dict[Kind, Callable[[_Site], tuple[Process, str]]] = {"postgres": _start_postgres, "redis": _start_redis}
