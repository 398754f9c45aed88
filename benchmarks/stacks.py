"""The stack under measurement: the one that `./dev up` starts, in a folder of its own, with a tenant and its key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import orjson
import psycopg2

from benchmarks import floors
from tenants.errors import Unavailable

ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 60.0
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack.

    Args:
        url: of the API.
        key: an API key of the tenant.
        tenant: its slug.
        state: what stands in `state.json`.
    """

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

    @contextmanager
    def still(self, *parts: str) -> Iterator[None]:
        """Hold parts still, so that what is measured has the machine for itself."""
        for part in parts:
            os.killpg(self.pid(part), signal.SIGSTOP)
        try:
            yield
        finally:
            for part in parts:
                os.killpg(self.pid(part), signal.SIGCONT)

    @contextmanager
    def floor(self, *command: str, url: str | None = None) -> Iterator[int]:
        """A process of the floor on the same servers; its process id."""
        with closing(psycopg2.connect(self.state["database_owner_url"])) as connection, connection:
            connection.cursor().execute(
                f"{floors.TABLE}; TRUNCATE benchmark_floor; GRANT INSERT ON benchmark_floor TO tenantry_app"
            )
        environment = {
            **os.environ,
            "BENCHMARK_DATABASE_URL": self.state["database_url"],
            "BENCHMARK_REDIS_URL": self.state["redis_url"],
        }
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            if url:
                _await(lambda: httpx2.post(url, content=b"{}").status_code > 0)
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)


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
                env={**os.environ, "TENANTRY_LOG_JSON": "true"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        stack.callback(process.wait, 20)
        stack.callback(process.send_signal, signal.SIGTERM)
        _await(lambda: (folder / "state.json").exists())
        state = _ready(folder)
        command = [sys.executable, "-m", "api.cli"]
        _run(command, folder, "tenant", "create", "bench", "--family", "diagnostics")
        made = _run(command, folder, "key", "create", "--tenant", "bench", "--name", "bench", "--scope", "*")
        yield Stack(state["url"], str(made["secret"]), "bench", state)


def _ready(folder: Path) -> dict[str, Any]:
    def ready() -> bool:
        url = orjson.loads((folder / "state.json").read_bytes())["url"]
        return bool(httpx2.get(f"{url}/health/ready").status_code == 200)

    _await(ready)
    return dict(orjson.loads((folder / "state.json").read_bytes()))


def _run(command: list[str], folder: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [*command, *arguments, "--state", str(folder), "--json"], cwd=ROOT, capture_output=True, check=True
    )
    return dict(orjson.loads(done.stdout))


def _await(question: Any) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        try:
            if question():
                return
        except (httpx2.HTTPError, OSError, KeyError, ValueError):
            pass
        time.sleep(_PAUSE_SECONDS)
    raise Unavailable(f"The stack was not ready within {_START_SECONDS:.0f} s.")
