"""Starts the project's commands from a process that has imported what they import: that is most of their start.

What runs is `python -m <command>` in a process of its own, with its own environment, session and output; only the
modules are there before. They are imported without settings, threads or connections.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import random
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.folders import ROOT

_WARM = (
    "celery.bin.celery",
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.concurrency.prefork",
    "celery.worker.consumer",
    "kombu.asynchronous.hub",
    "uvicorn",
    "api.graphql",
    "tasks.dispatcher",
    "tasks.engine.broker",
    "tasks.engine.calls",
    "tasks.engine.execute",
    "tasks.engine.leases",
    "tasks.engine.transport",
    "tasks.families.diagnostics.tasks",
    "tasks.families.sales.tasks",
)
_READ_AT_IMPORT = {"REMAP_SIGTERM"}
"""Variables that modules look at when they are imported: who has one imports them anew."""


class Process:
    """A process that was started, as `subprocess.Popen` has it.

    Args:
        pid: its id, which is its group's too.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended: its code, or less than zero the signal that ended it. None while it runs."""
        if self.returncode is None:
            self.returncode = _server().ask({"ended": self.pid})
        return self.returncode

    def wait(self, seconds: float) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended within this time.
        """
        until = time.monotonic() + seconds
        while self.poll() is None:
            descriptor = os.pidfd_open(self.pid)  # Not reaped yet, so the id is its own.
            try:
                ended, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
            finally:
                os.close(descriptor)
            if not ended and self.poll() is None:
                raise subprocess.TimeoutExpired([str(self.pid)], seconds)
        assert self.returncode is not None
        return self.returncode


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """Start `python -m` with this command line, in a session of its own.

    Args:
        environment: all of it.
        log: where its output is added.
    """
    wanted = {"start": list(command), "environment": dict(environment), "log": str(log)}
    return Process(_server().ask(wanted))


class _Server:
    """The process that the others are forked from. It ends when nobody is left to ask it."""

    def __init__(self) -> None:
        mine, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(its.fileno())],
                cwd=ROOT,
                pass_fds=[its.fileno()],
                start_new_session=True,
            )
        self._lines = mine.makefile("rw")
        mine.close()
        self._lock = threading.Lock()

    def ask(self, question: dict[str, Any]) -> Any:
        """Its answer."""
        with self._lock:
            self._lines.write(json.dumps(question) + "\n")
            self._lines.flush()
            return json.loads(self._lines.readline())

    def close(self) -> None:
        """End it."""
        self._lines.close()
        self._process.wait(10)


@functools.cache
def _server() -> _Server:
    return _Server()


def stop() -> None:
    """End the process that others are started from, if there is one."""
    if _server.cache_info().currsize:
        _server().close()


def _serve(descriptor: int) -> list[str]:
    """Answer until nobody asks any more. Returns in a forked process, with the command it is to run."""
    connection = socket.socket(fileno=descriptor)
    lines = connection.makefile("rw")
    for line in lines:
        question = json.loads(line)
        if "ended" in question:
            pid, status = os.waitpid(question["ended"], os.WNOHANG)
            answer: Any = os.waitstatus_to_exitcode(status) if pid else None
        else:
            alone, tell = os.pipe()
            answer = os.fork()
            if answer == 0:
                os.setsid()
                os.close(alone)
                os.close(tell)
                os.close(connection.detach())
                _become(question)
                return list(question["start"])
            os.close(tell)
            os.read(alone, 1)  # It ends when the process is the leader of its own group, which may then be signalled.
            os.close(alone)
        lines.write(json.dumps(answer) + "\n")
        lines.flush()
    os._exit(0)


def _become(wanted: dict[str, Any]) -> None:
    """Be the process that was asked for."""
    os.environ.clear()
    os.environ.update(wanted["environment"])
    tempfile.tempdir = None
    random.seed()
    log = os.open(wanted["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for output in (1, 2):
        os.dup2(log, output)
    os.close(log)
    if _READ_AT_IMPORT & os.environ.keys():
        os.execv(sys.executable, [sys.executable, "-m", *wanted["start"]])


def _warm_up() -> None:
    for module in _WARM:
        importlib.import_module(module)
    settings = importlib.import_module("tenants.settings")
    assert settings.current.cache_info().currsize == 0, "settings were read before the environment was there"
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork takes one thread along and leaves the others"
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _warm_up()
    module, *arguments = _serve(int(sys.argv[1]))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
