"""The stack under measurement: the one that `./dev up` starts, in a folder of its own, with a tenant and its key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import orjson
import psycopg2

from api.installation import Installation
from benchmarks import floors
from tenants import ids
from tenants.errors import Unavailable
from tenants.roles import Addresses

ROOT = Path(__file__).resolve().parent.parent
_STARTED = """
SELECT id::text, extract(epoch FROM created_at)::float8, extract(epoch FROM started_at)::float8
FROM runs WHERE id = ANY (%s::uuid[]) AND started_at IS NOT NULL
"""
_START_SECONDS = 120.0
_UNBOUNDED = {
    "TENANTRY_API__BUDGET_POINTS": "1e9",
    "TENANTRY_API__BUDGET_POINTS_PER_SECOND": "1e9",
    "TENANTRY_API__CALLER_REQUESTS_PER_SECOND": "1e9",
    "TENANTRY_API__ADDRESS_REQUESTS_PER_SECOND": "1e9",
    "TENANTRY_API__SOCKETS_PER_TENANT": "20000",
}
"""One caller does here what many do elsewhere: it is counted as it is there, and never refused."""
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack.

    Args:
        folder: its state folder.
        url: of the API.
        key: an API key of the tenant.
        tenant: its slug.
        state: what stands in `state.json`.
    """

    folder: Path
    url: str
    key: str
    tenant: str
    state: dict[str, Any]

    @property
    def authorization(self) -> dict[str, str]:
        """The header that carries the key."""
        return {"Authorization": f"Bearer {self.key}"}

    def pid(self, part: str) -> int:
        """The process id of one part."""
        return int(self.state["pids"][part])

    def rows(self, statement: str, *values: Any, **named: Any) -> list[tuple[Any, ...]]:
        """Ask the database as its owner, by values in order or by name."""
        with closing(psycopg2.connect(self.state["database_owner_url"])) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, named or values)
                return cursor.fetchall() if cursor.description else []

    def started(self, runs: Sequence[str]) -> dict[str, tuple[float, float]]:
        """When each run that has started was accepted, and when it started: Unix seconds by the database's clock."""
        rows = self.rows(_STARTED, [str(ids.read("run", run)) for run in runs])
        return {ids.show("run", UUID(run)): (accepted, started) for run, accepted, started in rows}

    def command(self, *arguments: str) -> dict[str, Any]:
        """What a command of `tenantry` answers."""
        command = [sys.executable, "-m", "api.cli", *arguments, "--state", str(self.folder), "--json"]
        return dict(orjson.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout))

    @contextmanager
    def worker(self, queue: str, **environment: str) -> Iterator[int]:
        """A worker more, with two children and one queue; its process id."""
        addresses = Addresses(*(self.state[f"database_{login}url"] for login in ("", "system_", "owner_")))
        made = Installation(self.folder, self.url, addresses, self.state["redis_url"])
        name = f"{queue}@benchmark"
        command = ("celery", "-q", "-A", "tasks.worker", "worker", "--without-gossip", "--without-mingle")
        with process(*command, "-n", name, "-c", "2", "-Q", queue, **made.environment("worker") | environment) as pid:
            await_(lambda: bool(self.rows("SELECT 1 FROM workers WHERE name = %s", name)))
            yield pid

    @contextmanager
    def still(self, *parts: str) -> Iterator[None]:
        """Hold parts still, so that what is measured has the machine for itself."""
        with held(*(self.pid(part) for part in parts)):
            yield

    @contextmanager
    def floor(self, *command: str, url: str | None = None) -> Iterator[int]:
        """A process of the floor on the same servers; its process id."""
        with closing(psycopg2.connect(self.state["database_owner_url"])) as connection, connection:
            connection.cursor().execute(
                f"{floors.TABLE}; TRUNCATE benchmark_floor; GRANT INSERT ON benchmark_floor TO tenantry_app"
            )
        addresses = {
            "BENCHMARK_DATABASE_URL": self.state["database_url"],
            "BENCHMARK_REDIS_URL": self.state["redis_url"],
        }
        with process(*command, **os.environ | addresses) as pid:
            if url:
                await_(lambda: httpx2.post(url, content=b"{}").status_code > 0)
            yield pid


@contextmanager
def start() -> Iterator[Stack]:
    """Start a stack in a temporary folder, and end it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tenantry-bench-")))
        folder.chmod(0o711)  # Or servers that root starts would keep their data elsewhere, beyond the folder's end.
        with (folder / "stack.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "api.stack", "--state", str(folder), "--port", "0"],
                cwd=ROOT,
                env={**_UNBOUNDED, **os.environ, "TENANTRY_LOG_JSON": "true"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        stack.callback(process.wait, 20)
        stack.callback(process.send_signal, signal.SIGTERM)
        await_(lambda: (folder / "state.json").exists())
        state = _ready(folder)
        made = Stack(folder, state["url"], "", "bench", state)
        made.command("tenant", "create", "bench", "--family", "diagnostics")
        key = made.command("key", "create", "--tenant", "bench", "--name", "bench", "--scope", "*")
        yield replace(made, key=str(key["secret"]))


def _ready(folder: Path) -> dict[str, Any]:
    def ready() -> bool:
        url = orjson.loads((folder / "state.json").read_bytes())["url"]
        return bool(httpx2.get(f"{url}/health/ready").status_code == 200)

    await_(ready)
    return dict(orjson.loads((folder / "state.json").read_bytes()))


@contextmanager
def held(*pids: int) -> Iterator[None]:
    """Stop process groups, and let them go on afterwards."""
    for pid in pids:
        os.killpg(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.killpg(pid, signal.SIGCONT)


@contextmanager
def process(*command: str, **environment: str) -> Iterator[int]:
    """A Python module as a process of its own group; its id."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def await_(question: Callable[[], bool], seconds: float = _START_SECONDS) -> None:
    """Ask until the answer is yes.

    Raises:
        Unavailable: it was not within this time.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if question():
                return
        except (httpx2.HTTPError, OSError, KeyError, ValueError):
            pass
        time.sleep(_PAUSE_SECONDS)
    raise Unavailable(f"Not within {seconds:.0f} s.")
