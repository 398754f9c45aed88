"""`./dev up`: the whole stack in one command, and nothing of it left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support import folders
from tests.support.endings import await_end
from tests.support.folders import ROOT
from tests.support.installations import eventually

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("TENANTRY_", "DATABASE_", "REDIS_"))}
PLAIN["PYTHONPATH"] = str(ROOT)
PARTS = {"api", "worker", "operator", "beat", "postgres", "redis"}
STARTED = {"api": "startup complete", "worker": "worker@", "operator": "operator@", "beat": "leading"}


class Stack:
    """A running `./dev up`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        with self.log.open("ab") as log:
            environment = {**PLAIN, "TMPDIR": str(folder.parent)}
            self.process = subprocess.Popen(_up(folder), env=environment, stdout=log, stderr=log, cwd="/")

    @property
    def state(self) -> dict[str, Any]:
        """What `state.json` says."""
        found: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return found

    def pid(self, part: str) -> int:
        """A part's process id."""
        return int(self.state["pids"][part])

    def ready(self) -> bool:
        """Whether `/health/ready` answers 200."""
        try:
            with urllib.request.urlopen(f"{self.state['url']}/health/ready", timeout=5) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def started(self) -> bool:
        """Whether each of our processes has said since its last start that it is at work."""
        log = self.log.read_text().splitlines()
        return all(sentence in _since_start(log, part) for part, sentence in STARTED.items())

    def command(self, *arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `tenantry` on it."""
        return subprocess.run(
            [sys.executable, "-m", "api.cli", *arguments, "--state", str(self.folder), "--json"],
            env={**PLAIN, **environment},
            cwd=ROOT,
            input=given,
            text=True,
            capture_output=True,
            check=False,
        )

    def descendants(self) -> set[int]:
        """The ids of all processes it has started, and theirs."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
        found = {self.process.pid}
        while grown := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= grown
        return found - {self.process.pid}


def _since_start(log: list[str], part: str) -> str:
    said = "\n".join(line for line in log if line.partition("|")[0].strip() == part)
    return said.rpartition("starts again")[2]


def _up(folder: Path, port: int = 0) -> list[str]:
    return [str(ROOT / "dev"), "up", "--state", str(folder), "--port", str(port)]


@contextmanager
def _running(folder: Path) -> Iterator[Stack]:
    stack = Stack(folder)
    try:
        eventually(lambda: (folder / "state.json").exists() and stack.ready(), 60)
        yield stack
    finally:
        left = stack.descendants()
        stack.process.kill()
        stack.process.wait()
        assert all(await_end(pid) for pid in left)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with folders.passable() as path:
        yield path


@pytest.fixture(scope="module")
def stack(place: Path) -> Iterator[Stack]:
    with _running(place / "shared") as running:
        yield running


@pytest.fixture(autouse=True)
def _at_work_before_each(stack: Stack) -> None:
    """What is only just starting may end when its server is killed, and starts again: no test begins before it has."""
    eventually(lambda: stack.ready() and stack.started())


def test_the_state_file_names_all_and_is_its_owners(stack: Stack) -> None:
    assert (stack.folder / "state.json").stat().st_mode & 0o777 == 0o600
    assert stack.state["url"].startswith("http://127.0.0.1:")
    assert stack.state["database_url"].startswith("postgresql://tenantry_app:")
    assert stack.state["database_system_url"].startswith("postgresql://tenantry_system:")
    assert stack.state["database_owner_url"].startswith("postgresql://tenantry_owner:")
    assert stack.state["redis_url"].startswith("redis://:")
    assert set(stack.state["pids"]) == PARTS
    eventually(lambda: "an API key for operators, shown this once: tnt_live_" in stack.log.read_text())


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_part_that_is_killed_comes_back(stack: Stack, part: str) -> None:
    before = stack.state["pids"]
    os.kill(before[part], signal.SIGKILL)
    eventually(lambda: stack.pid(part) != before[part])
    eventually(lambda: stack.ready() and stack.started())
    others = {name: pid for name, pid in stack.state["pids"].items() if name != part}
    assert others == {name: pid for name, pid in before.items() if name != part}


def test_each_part_is_told_no_secret_that_it_has_no_use_for(stack: Stack) -> None:
    known = {
        part: {
            entry.partition("=")[0]
            for entry in Path(f"/proc/{stack.pid(part)}/environ").read_text().split("\0")
            if entry
        }
        for part in ("api", "worker", "operator", "beat")
    }
    assert [part for part, names in known.items() if "TENANTRY_ENGINE__GRANT_KEYS" in names] == [
        "worker",
        "operator",
        "beat",
    ]
    assert [part for part, names in known.items() if "TENANTRY_AUTH__TOKEN_KEYS" in names] == ["api"]
    for ring in ("LINK_KEYS", "CREDENTIAL_KEYS"):
        assert [part for part, names in known.items() if f"TENANTRY_AUTH__{ring}" in names] == [
            "api",
            "worker",
            "operator",
        ]
    assert [part for part, names in known.items() if "DATABASE_SYSTEM_URL" in names] == ["operator", "beat"]
    assert not [part for part, names in known.items() if "DATABASE_OWNER_URL" in names]


def test_a_second_up_is_refused_and_the_first_goes_on(stack: Stack) -> None:
    before = stack.state
    second = subprocess.run(_up(stack.folder), env=PLAIN, cwd="/", text=True, capture_output=True, check=False)
    assert second.returncode == 1
    assert f"in use by process {stack.process.pid}, which serves {stack.state['url']}" in second.stderr
    assert stack.state == before
    eventually(stack.ready)


def test_a_taken_port_is_refused_in_a_sentence_and_nothing_stays(place: Path) -> None:
    folder = place / "taken"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(_up(folder, port), env=PLAIN, cwd="/", text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"./dev up: Port {port} cannot be used")
    assert not (folder / "state.json").exists()
    assert not (folder / "postgres" / "postmaster.pid").exists()


def test_doctor_finds_nothing_wrong_and_then_what_is(stack: Stack) -> None:
    found = stack.command("doctor")
    assert found.returncode == 0, found.stdout
    assert json.loads(found.stdout)["refused_messages"] == {}

    broken = stack.command("doctor", TENANTRY_REDIS__URL="redis://127.0.0.1:1/0")
    checks = {check["name"]: check for check in json.loads(broken.stdout)["checks"]}
    assert broken.returncode == 1
    assert [name for name, check in checks.items() if not check["ok"]] == ["redis"]
    assert checks["redis"]["remedy"] == "check REDIS_URL and the server"


def test_a_task_is_triggered_and_followed_to_its_end_with_what_a_login_gives(stack: Stack) -> None:
    stack.command("tenant", "create", "watched", "--family", "diagnostics")
    person = ("--tenant", "watched", "--email", "ann@example.com", "--password-stdin")
    assert stack.command("user", "create", *person, "--role", "owner", given="a good password\n").returncode == 0
    refused = stack.command("login", *person, given="a wrong password\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    token = json.loads(stack.command("login", *person, given="a good password\n").stdout)["accessToken"]

    slept = ("task", "trigger", "diagnostics.sleep", "--args", '{"seconds": 0.2}', "--watch")
    run = json.loads(stack.command(*slept, TENANTRY_API_KEY=token).stdout)
    assert run["state"] == "SUCCEEDED"
    assert json.loads(stack.command("run", "show", run["id"], TENANTRY_API_KEY=token).stdout) == run

    failed = ("task", "trigger", "fail", "--args", '{"message": "no", "retryable": false}', "--watch")
    ended = stack.command(*failed, TENANTRY_API_KEY=token)
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["state"] == "FAILED"


def test_sigterm_stops_all_in_ten_seconds_and_a_new_start_finds_everything(place: Path) -> None:
    folder = place / "stopped"
    with _running(folder) as first:
        assert json.loads(first.command("tenant", "create", "acme").stdout)["slug"] == "acme"
        processes = first.descendants()
        assert len(processes) > len(PARTS)
        started = monotonic()
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(15) == 0
        assert monotonic() - started < 10
        assert all(await_end(pid, 0) for pid in processes)
        assert first.state["pids"] == {}
        urls = {name: value for name, value in first.state.items() if name.endswith("_url")}
    with _running(folder) as second:
        assert {name: value for name, value in second.state.items() if name.endswith("_url")} == urls
        again = second.command("tenant", "create", "acme")
        assert again.returncode == 1
        assert again.stderr == "tenantry: There is a tenant 'acme' already.\n"
        assert second.log.read_text().count("shown this once") == 1


def test_a_killed_supervisor_leaves_nothing_running_not_even_a_task(place: Path) -> None:
    with _running(place / "killed") as stack:
        stack.command("tenant", "create", "acme", "--family", "diagnostics")
        key = json.loads(stack.command("key", "create", "--tenant", "acme", "--name", "k", "--scope", "*").stdout)
        arguments = ("task", "trigger", "diagnostics.spin", "--args", '{"seconds": 60}')
        run = json.loads(stack.command(*arguments, TENANTRY_API_KEY=key["secret"]).stdout)["taskId"]
        eventually(
            lambda: (
                json.loads(stack.command("run", "show", run, TENANTRY_API_KEY=key["secret"]).stdout)["state"]
                == "RUNNING"
            )
        )
        processes = stack.descendants()
        stack.process.kill()
        assert all(await_end(pid) for pid in processes)
