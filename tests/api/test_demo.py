"""`./dev demo`: the main job from end to end, and nothing of it left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tests.support import folders
from tests.support.folders import ROOT
from tests.tasks.families.sales.conftest import RETAIL

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("TENANTRY_", "DATABASE_", "REDIS_"))}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A state folder with a path short enough for sockets."""
    with folders.passable() as path:
        yield path / "state"


ENVIRONMENT = {**PLAIN, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


def command(folder: Path, *arguments: str) -> list[str]:
    return [str(ROOT / "dev"), "demo", "--state", str(folder), *arguments]


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments),
        env=ENVIRONMENT,
        cwd="/",
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


def left_behind(folder: Path) -> list[str]:
    """The command lines of processes that name the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def test_made_up_orders_are_refreshed_and_shown(folder: Path) -> None:
    done = demo(folder)

    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        'mutation { triggerBackgroundTask(taskName: "refresh_all_materialized_views") { success taskId message } }'
        in done.stdout
    )
    assert re.search(r'"taskId": "run_\w{26}"', done.stdout)
    states = re.findall(r"^\d\d:\d\d:\d\d\.\d{3}  \w+ +(\w+)", done.stdout, re.MULTILINE)
    assert states[-1] == "SUCCEEDED"
    assert "6/6" in done.stdout
    revenue = re.search(r"Revenue +([\d,.]+)", done.stdout)
    assert revenue is not None
    assert Decimal(revenue[1].replace(",", "")) > 0
    assert left_behind(folder) == []


def test_a_file_that_is_none_ends_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text("a,b\n1,2\n")

    done = demo(folder, "--data", str(file))

    assert done.returncode == 1
    assert done.stderr.startswith("./dev demo: The file has no column InvoiceNo")
    assert "Traceback" not in done.stderr + done.stdout
    assert left_behind(folder) == []
    assert json.loads((folder / "state.json").read_text())["pids"] == {}


class Kept(NamedTuple):
    """A demo that leaves its stack up, and what it said about how to log in."""

    process: subprocess.Popen[str]
    said: dict[str, str]


@pytest.fixture(scope="module")
def kept(folder: Path) -> Iterator[Kept]:
    """For the last tests here: those before start stacks of their own in the same folder."""
    said: dict[str, str] = {}
    arguments = command(folder, "--keep")
    with subprocess.Popen(arguments, env=ENVIRONMENT, cwd="/", text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.fullmatch(r"  (GraphQL|API key|person) +(.+)\n", line):
                    said[found[1]] = found[2]
                if "person" in said:
                    break
            yield Kept(process, said)
        finally:
            process.terminate()


def test_a_file_of_orders_is_shown_as_of_its_own_time_on_a_stack_that_runs_already(
    kept: Kept, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "order_lines.csv"
    file.write_bytes(subprocess.run(["gzip", "-dc", str(RETAIL)], capture_output=True, check=True).stdout)

    done = demo(folder, "--data", str(file))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "31,285 order lines of order_lines.csv" in done.stdout
    assert "18,761 were refused" in done.stdout
    assert re.search(r"2010-12-11 to 2011-01-09 +GBP", done.stdout)
    assert re.search(r"United Kingdom +\d+ +2\d\d,\d{3}\.\d\d", done.stdout)
    assert kept.process.poll() is None


def test_a_stack_that_is_kept_lets_people_in_until_it_is_told_to_stop(kept: Kept, folder: Path) -> None:
    tenant, email, password = kept.said["person"].removeprefix("tenant ").split(", ")

    with httpx2.Client(trust_env=False) as client:
        login = client.post(
            kept.said["GraphQL"].replace("/graphql", "/auth/login"),
            json={"tenant": tenant, "email": email, "password": password},
        )
        for credential in (kept.said["API key"], login.json()["accessToken"]):
            headers = {"authorization": f"Bearer {credential}"}
            answer = client.post(
                kept.said["GraphQL"], json={"query": "{ viewer { tenant { slug } } }"}, headers=headers
            )
            assert answer.json()["data"] == {"viewer": {"tenant": {"slug": "demo"}}}
    kept.process.send_signal(signal.SIGTERM)

    assert kept.process.wait(15) == 0
    assert left_behind(folder) == []
