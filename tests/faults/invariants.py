"""What holds after every fault, whatever happened: asked of the whole database, not of the runs of one test."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID

import redis

from tasks.engine.states import MOVES, TERMINAL, RunState
from tests.support import streams
from tests.support.installations import Installation, eventually

_FIRST = {RunState.SCHEDULED, RunState.QUEUED}
_TERMINAL = [state.value for state in TERMINAL]
_LEFT_SECONDS = 20.0
"""How long after its end a lease may still stand: a sweep, on a machine that is busy with other things."""
_HELD = {RunState.RELEASED, RunState.RUNNING}


def assert_invariants(installation: Installation, seconds: float = 60.0) -> None:
    """Wait until every accepted run has ended, then check all that must hold.

    Args:
        seconds: how long the runs may still take.
    """
    _every_accepted_run_has_ended(installation, seconds)  # I1
    _every_effect_was_done_once(installation)  # I2
    _no_tenant_holds_what_is_anothers(installation)  # I3
    _every_history_is_legal(installation)  # I4
    _subscribers_were_told_the_end(installation)  # I5
    _nothing_is_held_by_nobody(installation)  # I6
    _no_cap_was_exceeded(installation)


def _every_accepted_run_has_ended(installation: Installation, seconds: float) -> None:
    """And on the way there none is left in RUNNING: who runs holds a lease, and one that has ended is soon rescued."""

    def open_runs() -> list[tuple[Any, ...]]:
        assert not installation.rows(
            "SELECT r.id, r.state, l.expires_at FROM runs r FULL JOIN run_leases l ON l.run_id = r.id"
            " WHERE (r.state = 'RUNNING') <> (l.run_id IS NOT NULL)"
            " OR l.expires_at < clock_timestamp() - %s * interval '1 s'",
            _LEFT_SECONDS,
        )
        return installation.rows("SELECT id, task, state, attempt, fence FROM runs WHERE state <> ALL(%s)", _TERMINAL)

    _none_is_left(open_runs, seconds)
    ended = dict(installation.rows("SELECT id, tenant_id FROM runs"))
    missing = {run: tenant for run, tenant in installation.accepted.items() if ended.get(run) != tenant}
    assert not missing, f"accepted and lost: {missing}"
    assert len(ended) == len(installation.accepted), "a run that nobody triggered"


def _every_effect_was_done_once(installation: Installation) -> None:
    """One mark for a write that succeeded and none for another; one mark for each step that is done."""
    assert not installation.rows(
        "SELECT run_id, value, count(*) FROM diagnostics_marks GROUP BY run_id, value HAVING count(*) > 1"
    )
    assert not installation.rows(
        "SELECT r.id, r.state, (SELECT count(*) FROM diagnostics_marks m WHERE m.run_id = r.id) FROM runs r"
        " WHERE r.task = 'diagnostics.write' AND (SELECT count(*) FROM diagnostics_marks m WHERE m.run_id = r.id)"
        " <> CASE r.state WHEN 'SUCCEEDED' THEN 1 ELSE 0 END"
    )
    assert not installation.rows(
        "SELECT r.id FROM runs r WHERE r.task = 'diagnostics.steps' AND"
        " (SELECT count(*) FROM diagnostics_marks m WHERE m.run_id = r.id)"
        " <> (SELECT count(*) FROM run_steps s WHERE s.run_id = r.id)"
    )
    assert not installation.rows(
        "SELECT r.id FROM runs r WHERE r.task = 'diagnostics.steps' AND r.state = 'SUCCEEDED'"
        " AND (SELECT count(*) FROM run_steps s WHERE s.run_id = r.id) <> (r.args ->> 'count')::int"
    )


def _no_tenant_holds_what_is_anothers(installation: Installation) -> None:
    owners = dict(installation.rows("SELECT id, tenant_id FROM runs"))
    for table in ("run_events", "run_steps", "run_progress", "run_leases", "effects", "diagnostics_marks"):
        for run, tenant in installation.rows(f"SELECT DISTINCT run_id, tenant_id FROM {table}"):
            assert owners[run] == tenant, f"{table}: run {run}"
    client = redis.Redis.from_url(installation.redis_url)
    for tenant in set(owners.values()):
        for notice in streams.notices(client, tenant):
            assert owners[UUID(notice["r"])] == tenant
    client.close()


def _every_history_is_legal(installation: Installation) -> None:
    """From a first state, by legal moves, without a gap, to the state that the run is in."""
    histories: dict[UUID, list[tuple[int, RunState, int]]] = defaultdict(list)
    for run, sequence, state, attempt in installation.rows(
        "SELECT run_id, sequence, state, attempt FROM run_events ORDER BY run_id, sequence"
    ):
        histories[run].append((sequence, RunState(state), attempt))
    for run, state, sequence in installation.rows("SELECT id, state, sequence FROM runs"):
        history = histories.pop(run)
        assert [number for number, _, _ in history] == list(range(1, sequence + 1)), history
        assert history[0][1] in _FIRST, history
        assert history[-1][1] == state, history
        for (_, before, earlier), (_, after, later) in itertools.pairwise(history):
            assert after in MOVES[before], history
            given_back = (before, after) == (RunState.RUNNING, RunState.SCHEDULED) and later == earlier - 1
            assert given_back or later == earlier + (after is RunState.RUNNING), history
    assert not histories, "events of runs that do not exist"


def _subscribers_were_told_the_end(installation: Installation) -> None:
    """Each of the run's own tenant, and nothing that is not in its history."""
    ends = {
        run: (tenant, sequence, state)
        for run, tenant, sequence, state in installation.rows("SELECT id, tenant_id, sequence, state FROM runs")
    }
    _none_is_left(lambda: installation.told.items() ^ ends.items())


def _nothing_is_held_by_nobody(installation: Installation) -> None:
    assert not installation.rows("SELECT run_id, worker, expires_at FROM run_leases")
    # What nobody can tell of an effect is told of its run.
    assert not installation.rows(
        "SELECT e.key FROM effects e JOIN runs r ON r.tenant_id = e.tenant_id AND r.id = e.run_id"
        " WHERE NOT e.confirmed AND (r.state <> 'FAILED' OR r.error ->> 'type' <> 'Unconfirmed')"
    )
    _none_is_left(
        lambda: installation.rows(
            "SELECT pid, application_name, state FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name ~ '^[0-9a-f-]{36}/[0-9]+$'"
        )
    )


def _no_cap_was_exceeded(installation: Installation) -> None:
    """By the times of their events: from its release to its next state but RUNNING a run counts."""
    held: set[UUID] = set()
    for tenant, cap in installation.caps.items():
        held.clear()
        for run, state in installation.rows(
            "SELECT run_id, state FROM run_events WHERE tenant_id = %s ORDER BY at, xid", str(tenant)
        ):
            (held.add if state in _HELD else held.discard)(run)
            assert len(held) <= cap, f"tenant {tenant}: {len(held)} at once"


def _none_is_left(question: Callable[[], Collection[object]], seconds: float = 20.0) -> None:
    """Ask until the answer is empty; what is left then is the failure's text."""
    left: list[object] = []

    def none() -> bool:
        left[:] = question()
        return not left

    try:
        eventually(none, seconds, every=0.05)
    except AssertionError:
        raise AssertionError(f"left after {seconds} s: {left[:20]}") from None
