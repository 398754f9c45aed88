"""A child process's tie to its parent: the kernel ends the child when the parent is gone, however it went."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1
_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None


def tie(parent: int, number: int = signal.SIGKILL) -> None:
    """Have this process sent a signal when its parent ends. Call it in the child, after any change of user.

    The kernel forgets the tie at a change of user, doesn't hand it on to grandchildren, and follows the thread that
    forked rather than its process. Elsewhere than on Linux this does nothing. Source: prctl(2), PR_SET_PDEATHSIG.

    Args:
        parent: process id of the parent, so that one which ended before the tie was made is noticed too.
        number: the signal.
    """
    if _LIBRARY is None:
        return
    _LIBRARY.prctl(_SET_PARENT_DEATH_SIGNAL, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
