"""One child process and everything it starts: a group that ends together, and with its parent."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic, sleep

from tenants import lifeline
from tenants.errors import Misconfigured

_UNPRIVILEGED = ("postgres", "nobody")
_POLL_SECONDS = 0.01
_EXIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine."""

    name: str
    uid: int
    gid: int

    def reaches(self, path: Path) -> bool:
        """Whether this user may pass through every folder down to the path, by the folders' mode bits."""
        return all(self._passes(part.stat()) for part in (path, *path.parents) if part.is_dir())

    def _passes(self, folder: os.stat_result) -> bool:
        if folder.st_uid == self.uid:
            return bool(folder.st_mode & stat.S_IXUSR)
        if folder.st_gid == self.gid:
            return bool(folder.st_mode & stat.S_IXGRP)
        return bool(folder.st_mode & stat.S_IXOTH)


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a process, and how to end it.

    `orphaned` is the signal it gets when its parent is gone. `log` takes its output; without one it goes to a pipe.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    account: Account | None = None
    folder: Path | None = None
    standard_input: bytes = field(default=b"", repr=False)
    log: Path | None = None
    stop_signal: int = signal.SIGTERM
    orphaned: int = signal.SIGKILL


class Process:
    """A started command, which can be started again once it has ended."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.start()

    def start(self) -> None:
        """Start it, the first time or once more."""
        self.started = monotonic()
        self._child = _spawn(self.command)
        self.pid = self._child.pid
        self.output = self._child.stdout

    def poll(self) -> int | None:
        """Its exit status, negative for a signal, or None while it runs. What is left of its group is killed."""
        if self._child.returncode is None and os.waitid(
            os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):  # Not yet reaped, so the group's number can't have been given to anybody else.
            self.kill()
            self._child.wait()
        return self._child.returncode

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int | None:
        """Wait for its end. Returns its exit status, or None when it still runs after that time."""
        end = monotonic() + seconds
        while self.poll() is None and monotonic() < end:
            sleep(_POLL_SECONDS)
        return self.poll()

    def read(self) -> str:
        """All it writes until it closes its output."""
        return "" if self.output is None else self.output.read().decode(errors="replace")

    def stop(self, seconds: float) -> int:
        """Ask it to end, and kill its whole group when it hasn't after that time. Returns its exit status."""
        self.signal(self.command.stop_signal)
        if self.wait(seconds) is None:
            self.kill()
        status = self._child.wait()
        if self.output is not None:
            self.output.close()
        return status

    def kill(self) -> None:
        """Kill its whole group, unless it was seen to have ended."""
        if self._child.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


def unprivileged() -> Account | None:
    """The account for servers that refuse to run as root, or None when this process isn't root.

    Raises:
        Misconfigured: this process is root, and there is no other account.
    """
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise Misconfigured("PostgreSQL does not run as root, and this machine has neither a user postgres nor nobody.")


def run(command: Command) -> str:
    """Run a command to its end and return its output.

    Raises:
        Misconfigured: it failed; the message ends with the last line it wrote.
    """
    process = Process(command)
    output = process.read()
    process.wait(_EXIT_SECONDS)
    status = process.stop(0)
    if status:
        last = (output.strip() or "no output").splitlines()[-1]
        raise Misconfigured(f"{command.name} failed with status {status}: {last}")
    return output


def stop_all(processes: Iterable[Process], seconds: float) -> None:
    """Ask all to end at once, and kill the groups of those that haven't after that time."""
    end = monotonic() + seconds
    for process in (asked := list(processes)):
        process.signal(process.command.stop_signal)
    for process in asked:
        process.wait(end - monotonic())
        process.kill()
        process.stop(0)


def bury(folder: Path, pid_file: Path, seconds: float) -> None:
    """See to it that no process which a killed predecessor left behind still works in a folder.

    Args:
        folder: the working folder of the process.
        pid_file: its process id; removed, because the number may belong to somebody else by now.
        seconds: how long to wait before it is killed.
    """
    if not pid_file.exists():
        return
    [pid] = pid_file.read_text().split()[:1] or [""]
    end = monotonic() + seconds
    while pid and _works_in(pid, folder):
        if monotonic() > end:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        sleep(_POLL_SECONDS)
    pid_file.unlink(missing_ok=True)


def _works_in(pid: str, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    except OSError:
        return False


def _spawn(command: Command) -> subprocess.Popen[bytes]:
    account = command.account
    log = None if command.log is None else os.open(command.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = subprocess.Popen(
            command.argv,
            env=dict(command.environment),
            cwd=command.folder or "/",
            stdin=subprocess.PIPE if command.standard_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE if log is None else log,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=partial(lifeline.tie, os.getpid(), command.orphaned),
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
    finally:
        if log is not None:
            os.close(log)
    if child.stdin is not None:
        with suppress(BrokenPipeError), child.stdin as pipe:
            pipe.write(command.standard_input)
    return child
