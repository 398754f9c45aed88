"""Other processes of this machine: whose they are, and signals to them."""

from __future__ import annotations

import contextlib
import os
import signal


def is_child(pid: int) -> bool:
    """Whether the process lives and is this one's child: the pool has reaped most, and their ids may be others' now."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def kill(pid: int, number: int) -> None:
    """Send a signal; nothing happens where there is no such process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def signal_name(number: int) -> str:
    """The signal's name; most of the real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
