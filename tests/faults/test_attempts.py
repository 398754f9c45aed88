"""Attempts that crash, hang, leak, are cancelled, or lose a provider's answer. Rows 13, 38–40, 45, 46."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from tasks.engine import runs
from tasks.engine.runs import TriggerRequest
from tenants.context import Principal
from tenants.errors import InvalidState
from tests.faults.invariants import assert_invariants
from tests.faults.messages import StandIn
from tests.support import peers
from tests.support.installations import Installation, eventually
from tests.support.peers import Answer, Dies, Peer
from tests.support.proxy import Proxy

WRITE = TriggerRequest("diagnostics.write", {"key": "k", "value": "v"})
MIB = 1024 * 1024


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A provider outside."""
    with closing(Peer()) as made:
        yield made


def _running(installation: Installation, *wanted: UUID) -> None:
    for run in wanted:
        eventually(lambda run=run: installation.rows("SELECT 1 FROM run_leases WHERE run_id = %s", str(run)))  # type: ignore[misc]


def _writes(installation: Installation, tenant: Principal, hold_seconds: float, count: int = 1) -> list[UUID]:
    request = TriggerRequest("diagnostics.write", {"key": "k", "value": "v", "hold_seconds": hold_seconds})
    return installation.trigger_many(tenant, [request] * count)


STOPS = {
    "soft, then cold": ({"REMAP_SIGTERM": "SIGQUIT"}, [signal.SIGTERM, signal.SIGTERM]),
    "quit": ({}, [signal.SIGQUIT]),
    "quit twice": ({}, [signal.SIGQUIT, signal.SIGQUIT]),
    "warm, then cold": ({}, [signal.SIGTERM, signal.SIGQUIT]),
}


@pytest.mark.parametrize(("environment", "signals"), STOPS.values(), ids=STOPS)
def test_row_13_a_worker_that_is_told_twice_or_roughly_gives_its_run_back(
    installation: Installation, tenant: Principal, environment: dict[str, str], signals: list[signal.Signals]
) -> None:
    installation.environment["TENANTRY_ENGINE__LEASE_SECONDS"] = "60"  # No rescue: it is given back.
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=1, TENANTRY_WORKER__GRACE_SECONDS="1", **environment)
    [run] = _writes(installation, tenant, 4)
    _running(installation, run)
    for number in signals:
        installation.kill("w1", number, group=False)
        eventually(lambda: installation.rows("SELECT 1 FROM workers WHERE slots > 0") == [])
    installation.processes["w1"].wait(20)
    installation.start_worker("w2")
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0)
    assert installation.states(run).count("RUNNING") == 2
    assert_invariants(installation)


def test_row_13_a_worker_that_quits_waits_for_a_slow_database_to_take_its_run_back(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    installation.environment["TENANTRY_ENGINE__LEASE_SECONDS"] = "60"  # No rescue: it is given back.
    installation.start_dispatcher()
    slowly = {"DATABASE_URL": database_proxy.through(installation.addresses.app), "TENANTRY_WORKER__GRACE_SECONDS": "1"}
    installation.start_worker("w1", concurrency=1, **slowly)
    [run] = _writes(installation, tenant, 4)
    _running(installation, run)
    database_proxy.slow(0.5, beginning=b"Q")
    installation.kill("w1", signal.SIGQUIT, group=False)
    installation.processes["w1"].wait(30)
    assert installation.states(run)[3:4] == ["SCHEDULED"]
    installation.start_worker("w2")
    assert installation.ended(tenant, run).attempt == 1
    assert_invariants(installation)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_row_13_a_worker_that_is_told_to_stop_while_the_database_is_frozen_ends(
    installation: Installation, tenant: Principal, database_proxy: Proxy, number: signal.Signals
) -> None:
    installation.start_dispatcher()
    slowly = {"DATABASE_URL": database_proxy.through(installation.addresses.app), "TENANTRY_WORKER__GRACE_SECONDS": "1"}
    installation.start_worker("w1", concurrency=1, **slowly)
    [run] = _writes(installation, tenant, 2)
    _running(installation, run)
    database_proxy.freeze()
    installation.kill("w1", number, group=False)
    assert installation.processes["w1"].wait(30) == os.EX_SOFTWARE
    installation.start_worker("w2")
    assert installation.ended(tenant, run).state == "SUCCEEDED"
    assert_invariants(installation)


POISONS = {
    ("signal", "KILL"): ("WorkerLost", "signal: the process was ended by SIGKILL (often: out of memory)"),
    ("signal", "RTMIN"): ("WorkerLost", "signal: the process was ended by SIGRTMIN"),
    ("segfault", ""): ("WorkerLost", "signal: the process was ended by SIGSEGV"),
    ("exit", ""): ("WorkerLost", "exit: the process ended with code 7"),
    ("memory", ""): ("MemoryError", "MemoryError"),
    ("recursion", ""): ("RecursionError", "maximum recursion depth exceeded"),
}


def test_row_38_poisons_end_as_dead_letters_with_their_causes_and_harm_no_neighbour(
    installation: Installation, tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=2)
    poisons = {
        installation.trigger(tenant, "diagnostics.crash", {"by": by, **({"signal": number} if number else {})}): told
        for (by, number), told in POISONS.items()
    }
    neighbours = _writes(installation, tenant, 0.2, 30)
    for run, (kind, message) in poisons.items():
        ended = installation.ended(tenant, run)
        assert ended.error is not None
        assert (ended.state, ended.attempt) == ("FAILED", 3)
        assert (ended.error["type"], ended.error["message"][: len(message)]) == (kind, message)
        assert ended.crashes == (3 if kind == "WorkerLost" else 0)
    for run in neighbours:
        ended = installation.ended(tenant, run)
        assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0)
    assert installation.processes["w1"].poll() is None
    assert_invariants(installation)


@contextmanager
def _small_group() -> Iterator[Path]:
    """A control group of its own, and its limit's file. Skips where none can be made."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        mounted = Path("/sys/fs/cgroup", "memory" if controllers else "")
        if controllers not in ("", "memory") or not (mounted / path.lstrip("/") / "cgroup.procs").exists():
            continue
        home = mounted / path.lstrip("/")
        group = home / f"tenantry-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        limit = "memory.limit_in_bytes" if controllers else "memory.max"
        try:
            if (group / limit).exists():
                yield group / limit
                return
        finally:
            eventually(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]
            group.rmdir()
    pytest.skip("no control group for memory can be made here")


def test_a_child_that_the_kernel_ended_for_want_of_memory_is_told_so(
    installation: Installation, tenant: Principal
) -> None:
    with _small_group() as limit:
        installation.start_dispatcher()
        installation.start_worker("w1", concurrency=1)
        for pid in (installation.processes["w1"].pid, *installation.children("w1")):
            (limit.parent / "cgroup.procs").write_text(str(pid))
        used = sum(int(line.split()[1]) for line in (limit.parent / "memory.stat").read_text().splitlines()[:2])
        limit.write_text(str(used + 200 * MIB))
        run = installation.trigger(tenant, "diagnostics.allocate", {"megabytes": 1000})
        ended = installation.ended(tenant, run)
        assert ended.error is not None
        assert (ended.state, ended.crashes) == ("FAILED", 3)
        assert ended.error["message"] == "out of memory: the process was ended by SIGKILL of the kernel's OOM killer"
        assert_invariants(installation)
        installation.stop()


def test_row_39_what_hears_no_soft_signal_is_killed_at_the_hard_limit_and_the_last_time_it_has_timed_out(
    installation: Installation, tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=2)
    deaf, longer = installation.trigger_many(
        tenant,
        [
            TriggerRequest("diagnostics.limited", {"seconds": 60, "native": True}),
            TriggerRequest("diagnostics.limited", {"seconds": 60, "native": True, "extend_seconds": 1}),
        ],
    )
    neighbours = _writes(installation, tenant, 0, 5)
    for run, seconds in ((deaf, 2), (longer, 3)):
        ended = installation.ended(tenant, run, 60)
        assert (ended.state, ended.attempt, ended.crashes) == ("TIMED_OUT", 4, 0)
        assert ended.error == {
            "type": "TimeLimitExceeded",
            "message": f"The attempt took longer than its time limit of {seconds} s.",
            "retryable": False,
        }
        assert ended.worker_seconds >= 4 * seconds
    for run in neighbours:
        assert installation.ended(tenant, run).attempt == 1
    assert_invariants(installation)


def test_an_attempt_that_asks_for_time_gets_it(installation: Installation, tenant: Principal) -> None:
    # The next renewal, which brings the lease's deadline, comes much later than the soft limit.
    installation.environment |= {"TENANTRY_ENGINE__RENEW_SECONDS": "20", "TENANTRY_ENGINE__LEASE_SECONDS": "60"}
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=1)
    run = installation.trigger(tenant, "diagnostics.limited", {"seconds": 4, "steps": 40, "extend_seconds": 60})
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt) == ("SUCCEEDED", 1)
    assert_invariants(installation)


@pytest.mark.parametrize(
    ("setting", "value"), [("MAX_MEMORY_PER_CHILD_KIB", str(256 * 1024)), ("MAX_TASKS_PER_CHILD", "3")]
)
def test_row_40_a_child_that_leaks_is_replaced_before_it_has_taken_much(
    installation: Installation, tenant: Principal, setting: str, value: str
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=1, **{f"TENANTRY_WORKER__{setting}": value})
    leaks = installation.trigger_many(
        tenant, [TriggerRequest("diagnostics.allocate", {"megabytes": 50, "leak": True})] * 40
    )
    children: set[int] = set()
    most = 0

    def ended() -> bool:
        nonlocal most
        for child in installation.children("w1"):
            children.add(child)
            most = max(most, _resident(child))
        return not installation.rows("SELECT 1 FROM runs WHERE finished_at IS NULL")

    eventually(ended, 60)
    for run in leaks:
        found = installation.run(tenant, run)
        assert (found.state, found.attempt, found.crashes) == ("SUCCEEDED", 1, 0)
    assert len(children) > 5
    assert most < 512 * MIB
    assert_invariants(installation)


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds; none once it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


HOLD_SECONDS = 0.3
MOMENTS = ("queued", "running", "finishing", "finished")


def test_row_45_a_cancel_at_any_moment_leaves_one_end_and_no_effect_after_it(
    installation: Installation, tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=2)
    chance = random.Random(45)
    pause = threading.Event()

    def race(moment: str) -> tuple[UUID, str]:
        [run] = _writes(installation, tenant, HOLD_SECONDS if moment in {"running", "finishing"} else 0)
        match moment:
            case "queued":
                pause.wait(chance.uniform(0, 0.1))
            case "running":
                eventually(lambda: installation.rows("SELECT 1 FROM runs WHERE id = %s AND attempt = 1", str(run)))
            case "finishing":
                eventually(lambda: installation.rows("SELECT 1 FROM runs WHERE id = %s AND attempt = 1", str(run)))
                pause.wait(chance.gauss(HOLD_SECONDS, 0.05))
            case "finished":
                installation.ended(tenant, run)
        try:
            return run, installation.write(tenant, runs.cancel, run).state
        except InvalidState:
            return run, "ENDED"

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(race, MOMENTS * 50))
    for run, answer in told:
        ended = installation.ended(tenant, run)
        states = installation.states(run)
        assert ended.state == states[-1]
        match answer:
            case "CANCELLED":
                assert states[-1] == "CANCELLED"
                assert "RUNNING" not in states
            case "RUNNING":
                assert ended.cancel_requested_at is not None
                assert states.count("RUNNING") == 1
                assert states[-1] in {"SUCCEEDED", "CANCELLED"}
            case "ENDED":
                assert states[-1] == "SUCCEEDED"
                assert ended.cancel_requested_at is None
    assert Counter(answer for _, answer in told).keys() == {"CANCELLED", "RUNNING", "ENDED"}
    assert_invariants(installation)


@pytest.mark.parametrize("first", ["cancel", "kill"])
def test_row_46_what_was_cancelled_while_its_worker_died_is_cancelled(
    installation: Installation, tenant: Principal, first: str
) -> None:
    """No worker is left, and none is needed."""
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=1)
    [run, waiting] = _writes(installation, tenant, 60, 2)
    eventually(lambda: installation.rows("SELECT 1 FROM run_leases"))
    if installation.run(tenant, waiting).state == "RUNNING":
        run, waiting = waiting, run
    if first == "kill":
        installation.kill("w1")
    installation.write(tenant, runs.cancel, run)
    if first == "cancel":
        installation.kill("w1")
    assert installation.write(tenant, runs.cancel, waiting).state == "CANCELLED"
    assert installation.ended(tenant, run).state == "CANCELLED"
    assert installation.states(run).count("RUNNING") == 1
    assert_invariants(installation)


def test_a_cancel_needs_no_redis(installation: Installation, tenant: Principal, redis_proxy: Proxy) -> None:
    installation.redis_url, direct = redis_proxy.through(installation.redis_url), installation.redis_url
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=1)
    [run] = _writes(installation, tenant, 60)
    _running(installation, run)
    [waiting] = _writes(installation, tenant, 60)
    redis_proxy.flow.clear()
    for wanted in (run, waiting):
        installation.write(tenant, runs.cancel, wanted)
        assert installation.ended(tenant, wanted, 40).state == "CANCELLED"
    redis_proxy.flow.set()
    redis_proxy.cut()
    installation.redis_url = direct
    assert_invariants(installation)


def test_in_a_pool_of_threads_an_attempt_stops_where_it_looks(installation: Installation, tenant: Principal) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", "-P", "threads", concurrency=2)
    run = installation.trigger(tenant, "diagnostics.sleep", {"seconds": 60, "steps": 600})
    limited = installation.trigger(tenant, "diagnostics.limited", {"seconds": 3, "steps": 1})
    _running(installation, run)
    installation.write(tenant, runs.cancel, run)
    assert installation.ended(tenant, run, 40).state == "CANCELLED"
    ended = installation.ended(tenant, limited)
    assert (ended.state, ended.attempt, ended.crashes) == ("TIMED_OUT", 4, 0)
    assert installation.log("w1").count("attempt_killed") == 4, "each is told once"
    [write] = _writes(installation, tenant, 0)
    assert installation.ended(tenant, write).state == "SUCCEEDED"
    assert_invariants(installation)


def test_in_a_pool_of_threads_sessions_held_for_long_hold_up_no_others(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", "-P", "threads", concurrency=3)
    for run in (held := _writes(installation, tenant, 60, 2)):
        _running(installation, run)
    [write] = _writes(installation, other_tenant, 0)
    assert installation.ended(other_tenant, write, 40).state == "SUCCEEDED"
    assert [installation.states(run)[-1] for run in held] == ["RUNNING", "RUNNING"]


@pytest.mark.parametrize(
    ("unconfirmed", "asked", "state", "calls"),
    [
        ("fail", 404, "FAILED", 1),
        ("repeat", 404, "SUCCEEDED", 2),
        ("look_up", 200, "SUCCEEDED", 1),
        ("look_up", 404, "SUCCEEDED", 2),
    ],
    ids=["nobody knows", "repeated under its key", "found", "not found"],
)
@pytest.mark.parametrize("dies", ["provider", "worker"])
def test_an_effect_whose_answer_was_lost_is_settled_and_never_repeated_blindly(
    installation: Installation,
    tenant: Principal,
    peer: Peer,
    dies: str,
    unconfirmed: str,
    asked: int,
    state: str,
    calls: int,
) -> None:
    called, killed = threading.Event(), threading.Event()

    def answers(method: str, key: str) -> Answer:
        if method == "GET":
            return asked, {}
        if not called.is_set():
            called.set()
            if dies == "worker":
                killed.wait(20)
            raise Dies
        return 200, {}

    peer.answers = answers
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=1)
    run = installation.trigger(
        tenant, "diagnostics.effect", {"key": "mail", "url": peer.url, "unconfirmed": unconfirmed}
    )
    assert called.wait(20)
    if dies == "worker":
        installation.kill("w1")
        killed.set()
        installation.start_worker("w2", concurrency=1)
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt) == (state, 2)
    assert list(peer.done.values()) == [calls]
    if state == "FAILED":
        assert ended.error is not None
        assert ended.error["message"].startswith("The effect 'mail' was begun by an earlier attempt")
        again = installation.write(tenant, runs.retry, run, repeat_effects=True).id
        installation.accepted[again] = tenant.tenant
        assert installation.ended(tenant, again).state == "SUCCEEDED"
        assert sorted(peer.done.values()) == [1, 1]
    assert_invariants(installation)


def test_a_provider_is_left_alone_for_as_long_as_it_asks(
    installation: Installation, tenant: Principal, peer: Peer
) -> None:
    peer.answers = peers.always(429, **{"Retry-After": "600"})
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=1)
    run = installation.trigger(tenant, "diagnostics.effect", {"key": "mail", "url": peer.url})
    eventually(lambda: installation.states(run)[-1] == "SCHEDULED")
    [(waits,)] = installation.rows(
        "SELECT extract(epoch FROM r.available_at - e.at)::float8 FROM runs r"
        " JOIN run_events e ON e.run_id = r.id AND e.sequence = r.sequence WHERE r.id = %s",
        str(run),
    )
    assert waits == pytest.approx(600, abs=1)
    assert installation.rows("SELECT 1 FROM effects") == []
    peer.answers = peers.always(200)
    installation.rows("UPDATE runs SET available_at = clock_timestamp() WHERE id = %s", str(run))
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt) == ("SUCCEEDED", 2)
    assert_invariants(installation)


def test_a_task_that_no_worker_knows_waits_until_one_does(installation: Installation, tenant: Principal) -> None:
    """A worker of other code refuses it; then it is released no more."""
    run = installation.trigger(tenant, "diagnostics.echo", {"value": 7}, queue="analytics")
    hand = StandIn(installation)
    installation.start_worker("old", concurrency=1, TENANTRY_DIAGNOSTICS="false")
    hand.send(hand.message(hand.release(run)), queue="analytics")
    eventually(lambda: hand.refused().get("unknown") == 1)
    assert "task_unknown" in installation.log("old")
    hand.resign()
    installation.start_dispatcher()
    eventually(lambda: installation.states(run)[-1] == "QUEUED")
    other = installation.trigger(tenant, "sales.update_customer_segments")
    installation.ended(tenant, other)
    assert installation.states(run) == ["QUEUED", "RELEASED", "QUEUED"]
    installation.kill("old", signal.SIGTERM, group=False)
    installation.processes["old"].wait(20)
    installation.start_worker("new", concurrency=1)
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.result, ended.attempt) == ("SUCCEEDED", 7, 1)
    assert installation.states(run)[3:] == ["RELEASED", "RUNNING", "SUCCEEDED"]
    assert_invariants(installation)


def test_a_worker_refuses_a_pool_whose_attempts_nothing_can_stop(installation: Installation) -> None:
    """Such as of greenlets, which one call to the database holds up all together."""
    variables = {
        **os.environ,
        **installation.variables,
        "CELERY_CUSTOM_WORKER_POOL": "celery.concurrency.base:BasePool",
    }
    command = [sys.executable, "-m", "celery", "-A", "tasks.worker", "worker", "--pool", "custom"]
    refused = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode != 0
    assert "its pool must be prefork, threads or solo" in refused.stderr
