"""Servers of a row's own, to be killed, frozen, emptied and started again."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import redis

from api import embedded
from api.embedded import Kind
from api.process import Process
from tests.support import folders
from tests.support.installations import eventually

_REDIS: tuple[Kind, ...] = ("redis",)
_POSTGRES: tuple[Kind, ...] = ("postgres",)


class Server:
    """One server process.

    Args:
        address: the administrator's.
        process: what runs it.
        ask: raises as long as the server does not answer.
    """

    def __init__(self, address: str, process: Process, ask: Callable[[str], None]) -> None:
        self.address = address
        self._process = process
        self._ask = ask

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it by a signal, and wait for its end."""
        self._process.signal(number)
        assert self._process.wait(10) is not None

    def start(self) -> None:
        """Start it again where it was, and wait until it answers."""
        self._process.start()
        eventually(self._answers)

    def freeze(self) -> None:
        """It keeps its connections and answers no more."""
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It answers again, what was asked meanwhile first."""
        self._process.signal(signal.SIGCONT)

    def fill(self) -> None:
        """It may write no file any more, as on a disk that is full; after its next start it may again."""
        pid = self._process.pid
        owner = Path(f"/proc/{pid}").stat()  # Only processes of its own account may do that to it.
        for process in (str(pid), *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            subprocess.run(
                ["prlimit", "--pid", process, "--fsize=0"], user=owner.st_uid, group=owner.st_gid, check=False
            )

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"{self._process.command.name} has ended"
        try:
            self._ask(self.address)
        except (psycopg2.OperationalError, redis.RedisError):
            return False
        return True


@contextmanager
def redis_server(folder: Path) -> Iterator[Server]:
    """A Redis that keeps its data over a SIGKILL."""
    with embedded.start(folder, kinds=_REDIS, durable=False) as running:
        made = Server(running.redis_url, running.processes[0], _ping)
        try:
            yield made
        finally:
            made.thaw()


@contextmanager
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL that keeps what it has committed."""
    with folders.passable() as folder, embedded.start(folder, kinds=_POSTGRES) as running:
        yield Server(running.admin_url, running.processes[0], _connect)


def empty(server: Server) -> None:
    """Kill a Redis, take its files away, start it again."""
    with closing(redis.Redis.from_url(server.address)) as client:
        folder = Path(str(client.config_get("dir")["dir"]))
    server.kill()
    shutil.rmtree(folder / "appendonlydir")
    server.start()


def _ping(address: str) -> None:
    with closing(redis.Redis.from_url(address, socket_timeout=1)) as client:
        client.ping()


def _connect(address: str) -> None:
    psycopg2.connect(address, connect_timeout=1).close()
