"""Whether the kernel's OOM killer has ended processes of this one's control group: evidence, where a signal is none."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_GROUPS = Path("/proc/self/cgroup")
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def kills(groups: Path = _GROUPS, root: Path = _ROOT) -> int | None:
    """How many processes of the control group it has ended so far; None where that is not told.

    Args:
        groups: the process's groups, as the kernel lists them.
        root: where control groups are mounted.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (memory.events) and cgroup-v1/memory.rst (oom_control).
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return None
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        inside = path.lstrip("/")
        if controllers == "":
            places = [root / inside / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            places = [root / "memory" / inside / "memory.oom_control", root / "memory" / "memory.oom_control"]
        else:
            continue
        for place in places:
            try:
                found = _KILLS.search(place.read_text())
            except OSError:
                continue
            if found:
                return int(found[1])
    return None
