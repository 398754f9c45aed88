"""Waiting for the end of processes that are no children of this one."""

from __future__ import annotations

import os
import select


def await_end(pid: int, seconds: float = 10.0) -> bool:
    """Whether the process has ended, or ends within that time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
