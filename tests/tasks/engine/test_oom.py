"""Whether the kernel ended a process for want of memory is told by its own count, wherever that stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.engine import oom

V2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"


@pytest.mark.parametrize(
    ("groups", "file", "content", "kills"),
    [
        ("0::/system.slice/w.service\n", "system.slice/w.service/memory.events", V2, 2),
        ("0::/\n", "memory.events", V2, 2),
        ("0::/docker/abc\n", "memory.events", V2, 2),
        ("4:cpu,memory:/jobs/a\n0::/\n", "memory/jobs/a/memory.oom_control", V1, 5),
        ("4:memory:/elsewhere\n", "memory/memory.oom_control", V1, 5),
        ("1:cpu:/jobs/a\n", "memory/jobs/a/memory.oom_control", V1, None),
        ("0::/\n", "memory.events", "low 0\n", None),
        ("", "memory.events", V2, None),
        ("what", "memory.events", V2, None),
    ],
)
def test_it_is_counted_for_the_control_group(
    tmp_path: Path, groups: str, file: str, content: str, kills: int | None
) -> None:
    listed = tmp_path / "cgroup"
    listed.write_text(groups)
    place = tmp_path / "mounted" / file
    place.parent.mkdir(parents=True)
    place.write_text(content)
    assert oom.kills(listed, tmp_path / "mounted") == kills


def test_where_nothing_is_told_nothing_is_known(tmp_path: Path) -> None:
    assert oom.kills(tmp_path / "nowhere", tmp_path) is None
