"""The supervisor: what dies comes back, what writes is heard, and in the end nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic

import pytest

from api import supervisor as supervision
from api.installation import ROOT
from api.journal import Journal
from api.process import Command, Process
from api.supervisor import Supervisor
from tests.support.endings import await_end

STUBBORN = "trap '' TERM INT; echo ready; while :; do sleep 60; done"
FAMILY = """
import os, signal, sys
from tenants import lifeline
parent = os.getpid()
if os.fork() == 0:
    lifeline.tie(parent)
    print(os.getpid(), flush=True)
signal.pause()
"""
SUPERVISE = """
import sys
from pathlib import Path
from api.journal import Journal
from api.process import Command
from api.supervisor import Supervisor
with Supervisor(Journal(sys.stdout.fileno())) as supervisor:
    supervisor.start(Command("family", (sys.executable, "-c", sys.argv[1]), {}, folder=Path.cwd()))
    supervisor.run(lambda: None)
"""


class Lines:
    """The reading end of a journal."""

    def __init__(self) -> None:
        self.descriptor, writing = os.pipe()
        self.journal = Journal(writing)
        self._writing = writing
        os.set_blocking(self.descriptor, False)
        self._read = b""

    @property
    def all(self) -> list[str]:
        """The lines so far."""
        with suppress(BlockingIOError):
            self._read += os.read(self.descriptor, 1 << 20)
        return self._read.decode().splitlines()

    def close(self) -> None:
        os.close(self._writing)
        os.close(self.descriptor)


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()


def _shell(name: str, script: str) -> Command:
    return Command(name, ("/bin/sh", "-c", script), {"PATH": os.defpath})


def _finish() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_process_that_was_killed_is_started_again_under_a_new_pid(lines: Lines) -> None:
    with Supervisor(lines.journal) as supervisor:
        supervisor.start(_shell("one", "echo started; exec sleep 60"))
        supervisor.start(_shell("two", "exec sleep 60"))
        before = supervisor.pids
        supervisor.run(lambda: _finish() if "one      | started" in lines.all else None)
        supervisor.signals = 0
        os.kill(before["one"], signal.SIGKILL)
        supervisor.run(lambda: _finish() if lines.all.count("one      | started") == 2 else None)
        after = supervisor.pids
        supervisor.stop(5)
    assert after["one"] != before["one"]
    assert after["two"] == before["two"]
    assert "one      | was ended by SIGKILL; starts again in 0.1 s" in lines.all
    assert await_end(after["one"], 0)
    assert await_end(after["two"], 0)


def test_the_delay_doubles_with_each_failure_up_to_a_cap_and_starts_over_after_a_steady_time(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(_shell("one", "exit 1"))
    process.wait(5)
    process.stop(0)
    watched = supervision._Watched(process)
    delays = [watched.next_delay() for _ in range(9)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-2:] == [10.0, 10.0]
    process.started = monotonic() - 31
    assert watched.next_delay() == 0.1


def test_output_comes_in_whole_lines_under_the_name_of_its_process(lines: Lines) -> None:
    with Supervisor(lines.journal) as supervisor:
        supervisor.start(_shell("halves", "printf 'one '; printf 'line\\nthe last'; exec sleep 60 >/dev/null 2>&1"))
        supervisor.run(lambda: _finish() if "halves   | the last" in lines.all else None)
        supervisor.stop(5)
    assert lines.all == ["halves   | one line", "halves   | the last"]


def test_a_reader_that_stops_reading_does_not_stop_the_stack(lines: Lines) -> None:
    for _ in range(1000):
        lines.journal.say("loud", "x" * 1000)
    assert 0 < len(lines.all) < 1000
    lines.journal.say("loud", "heard again")
    dropped, last = lines.all[-2:]
    assert "lines were dropped" in dropped
    assert last == "loud     | heard again"


def test_sigterm_ends_all_and_kills_who_does_not_listen_with_all_it_started(lines: Lines) -> None:
    with Supervisor(lines.journal) as supervisor:
        supervisor.start(_shell("deaf", f"({STUBBORN}) & echo $!; {STUBBORN}"))
        supervisor.start(_shell("polite", "exec sleep 60"))
        supervisor.run(lambda: _finish() if lines.all.count("deaf     | ready") == 2 else None)
        grandchild = int(next(line for line in lines.all if line.removeprefix("deaf     | ").isdigit()).split()[-1])
        pids = supervisor.pids
        supervisor.stop(0.2)
    assert all(await_end(pid) for pid in (*pids.values(), grandchild))
    assert "deaf     | did not stop in time and is killed" in lines.all
    assert "polite   | did not stop in time and is killed" not in lines.all


def test_one_more_signal_ends_the_waiting(lines: Lines) -> None:
    with Supervisor(lines.journal) as supervisor:
        supervisor.start(_shell("deaf", STUBBORN))
        supervisor.run(lambda: _finish() if "deaf     | ready" in lines.all else None)
        watched = supervisor._listen

        def impatient(seconds: float) -> None:
            _finish()
            watched(seconds)

        supervisor._listen = impatient  # type: ignore[method-assign]
        started = monotonic()
        supervisor.stop(60)
    assert monotonic() - started < 30


def test_an_adopted_process_is_watched_and_left_to_its_owner(lines: Lines) -> None:
    own = Process(_shell("server", "exec sleep 60"))
    with Supervisor(lines.journal) as supervisor:
        supervisor.adopt(own)
        first = own.pid
        os.kill(first, signal.SIGKILL)
        supervisor.run(lambda: _finish() if own.pid != first else None)
        supervisor.stop(5)
    assert own.poll() is None
    own.stop(5)


def test_a_killed_supervisor_takes_its_processes_and_theirs_along() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, FAMILY], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as supervisor:
        assert supervisor.stdout is not None
        grandchild = int(supervisor.stdout.readline().split()[-1])
        child = int(Path(f"/proc/{grandchild}/stat").read_text().split()[3])
        assert child != supervisor.pid
        supervisor.kill()
    assert await_end(child)
    assert await_end(grandchild)
