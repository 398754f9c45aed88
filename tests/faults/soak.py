"""Row 50: a random mix of all faults over real processes under load, chosen by a seed.

`python -m tests.faults.soak --runs 10000 --faults 500 --seeds 1 2 3 4 5` shares runs and faults among the seeds, prints
one line for each, and ends with 1 if any invariant is broken.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import redis

from api.embedded import Servers
from tasks.engine.messages import Release
from tenants import ids
from tenants.context import Principal
from tests.conftest import installed, migrated
from tests.faults import messages, servers
from tests.faults.callers import Patient
from tests.faults.conftest import QUICKLY
from tests.faults.invariants import assert_invariants
from tests.faults.messages import QUEUE, Pen
from tests.faults.servers import Server
from tests.support import apis, proxy, subscribers
from tests.support.apis import Api
from tests.support.installations import Installation, eventually
from tests.support.peers import Peer
from tests.support.proxy import Proxy

_TENANTS = 3
_CALLERS = 3
_WAITING = 60
"""How many accepted runs may be on their way at once."""
_DRAINED_SECONDS = 300.0
_STOPPED_SECONDS = 3.0
"""Longer than a lease of the fault rows."""
_WORKERS = ("w1", "w2")
_DISPATCHERS = ("d1", "d2")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one seed."""

    seed: int
    faults: int
    accepted: int
    ended: int
    effects: int
    fenced: int
    drained_seconds: float

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.faults} faults, {self.accepted} accepted, {self.ended} terminal,"
            f" {self.effects} effects, {self.fenced} fenced, drained in {self.drained_seconds:.1f} s"
        )


class Mix:
    """One seed's processes, load and faults."""

    def __init__(
        self, installation: Installation, database: Server, broker: Server, ways: tuple[Proxy, Proxy], seed: int
    ) -> None:
        self.installation = installation
        self._database = database
        self._broker = broker
        self._ways = ways
        self._chance = random.Random(seed)
        self._starts: dict[str, Callable[[], object]] = {}

    def start(self, api: Api) -> None:
        """Start every process, and know how to start it again."""
        environment = {
            "DATABASE_URL": self._ways[0].through(self.installation.addresses.app),
            "DATABASE_SYSTEM_URL": self._ways[0].through(self.installation.addresses.system),
            "REDIS_URL": self._ways[1].through(self.installation.redis_url),
        }
        self._api = api
        for name in _DISPATCHERS:
            self._starts[name] = lambda name=name: self.installation.start_dispatcher(name, **environment)  # type: ignore[misc]
        for name in _WORKERS:
            self._starts[name] = lambda name=name: self.installation.start(  # type: ignore[misc]
                name, "celery", "-A", "tasks.worker", "worker", "-n", f"{name}@test", "-c", "2", "--without-mingle",
                "--without-gossip", "-l", "INFO", **environment,
            )  # fmt: skip
        for start in self._starts.values():
            start()
        self._starts[api.name] = lambda: apis.launch(api)

    def revive(self) -> None:
        """What a supervisor does: start again what has ended."""
        for name, start in self._starts.items():
            process = self.installation.processes.get(name)
            if process is None or process.poll() is not None:
                start()

    def faults(self, number: int) -> list[tuple[str, Callable[[], None], float]]:
        """The faults of this seed: name, what it does, and seconds until the next one."""
        kinds = self._kinds()
        return [(*self._chance.choice(kinds), self._chance.uniform(1.0, 3.0)) for _ in range(number)]

    def _kinds(self) -> list[tuple[str, Callable[[], None]]]:
        kinds: list[tuple[str, Callable[[], None]]] = []
        for name in (self._api.name, *_WORKERS, *_DISPATCHERS):
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
                kinds.append((f"{name} {number.name}", lambda name=name, number=number: self._hit(name, number)))  # type: ignore[misc]
        for name in _WORKERS:
            for number in (signal.SIGKILL, signal.SIGSTOP):
                kinds += [
                    (f"{name} main {number.name}", lambda name=name, number=number: self._hit(name, number, False)),  # type: ignore[misc]
                    (f"{name} child {number.name}", lambda name=name, number=number: self._hit_child(name, number)),  # type: ignore[misc]
                ]
        kinds += [
            ("redis killed", lambda: _restart(self._broker, signal.SIGKILL)),
            ("redis emptied", lambda: servers.empty(self._broker)),
            ("redis flushed", self._flush),
            ("redis frozen", self._freeze_redis),
            ("garbage", lambda: self._put(self._garbage())),
            ("duplicates", lambda: self._put(self._duplicates())),
            ("forgeries", lambda: self._put(self._forgeries())),
            ("database crashed", lambda: _restart(self._database, signal.SIGQUIT)),
            ("database cut", self._ways[0].cut),
            ("redis cut", self._ways[1].cut),
        ]
        return kinds

    def _hit(self, name: str, number: signal.Signals, group: bool = True) -> None:
        """A process, or the group of it; who is stopped wakes after more than a lease or less."""
        process = self.installation.processes.get(name)
        if process is None or process.poll() is not None:
            return
        self._signal(os.killpg if group and number is not signal.SIGTERM else os.kill, process.pid, number)

    def _hit_child(self, name: str, number: signal.Signals) -> None:
        with suppress(KeyError, FileNotFoundError, IndexError):
            self._signal(os.kill, self.installation.children(name)[-1], number)

    def _signal(self, send: Callable[[int, int], None], pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            send(pid, number)
            if number is signal.SIGSTOP:
                threading.Event().wait(_STOPPED_SECONDS)
                send(pid, signal.SIGCONT)

    def _flush(self) -> None:
        with closing(redis.Redis.from_url(self._broker.address)) as client:
            client.flushall()

    def _freeze_redis(self) -> None:
        self._broker.freeze()
        threading.Event().wait(_STOPPED_SECONDS)
        self._broker.thaw()

    def _put(self, elements: list[bytes]) -> None:
        with closing(redis.Redis.from_url(self._broker.address)) as client:
            if elements:
                client.lpush(QUEUE, *elements)

    def _releases(self) -> list[Release]:
        """Releases there have been lately, of runs in any state."""
        rows = self.installation.rows("SELECT tenant_id, id, task, queue, fence FROM runs ORDER BY id DESC LIMIT 50")
        return [Release(*row) for row in rows]

    def _duplicates(self) -> list[bytes]:
        pen = Pen(self.installation)
        return [pen.message(release) for release in self._releases()] * 3

    def _garbage(self) -> list[bytes]:
        return [bytes([number]) * 100 for number in range(100)]

    def _forgeries(self) -> list[bytes]:
        pen = Pen(self.installation)
        forged = [messages.falsified(pen, release, ids.new(), QUEUE) for release in self._releases()[:3]]
        return [bad.element for cases in forged for bad in cases]


def _restart(server: Server, number: signal.Signals) -> None:
    server.kill(number)
    server.start()


def run(seed: int, runs: int, faults: int, folder: Path, say: Callable[[str], object] = lambda line: None) -> Outcome:
    """One seed from the start of its servers to its last invariant.

    Args:
        runs: how many at least; there are more if the faults take longer.
        folder: for the logs of its processes.
        say: told of each fault.

    Raises:
        AssertionError: an invariant is broken.
    """
    with ExitStack() as stack:
        database = stack.enter_context(servers.postgres_server())
        broker = stack.enter_context(servers.redis_server(folder / "redis"))
        there = Servers(database.address, broker.address, ())
        installation = stack.enter_context(installed(there, migrated(there), folder))
        installation.environment.update(QUICKLY)
        ways = (stack.enter_context(proxy.to(database.address)), stack.enter_context(proxy.to(broker.address)))
        counter = stack.enter_context(closing(Peer()))
        subscriber = stack.enter_context(subscribers.to(installation))
        tenants = [installation.tenant(f"t{number}") for number in range(_TENANTS)]
        for tenant in tenants:
            subscriber.follow(tenant)
        api = stack.enter_context(apis.running(installation))
        mix = Mix(installation, database, broker, ways, seed)
        mix.start(api)
        _under_load(mix, api, tenants, counter, seed, runs, faults, say)
        drained = time.monotonic()
        _keep_up(mix, lambda: not _open(installation))
        drained_seconds = time.monotonic() - drained
        assert_invariants(installation)
        _effects_outside_happened_once(installation, counter)
        return _outcome(installation, counter, seed, faults, drained_seconds)


def _under_load(
    mix: Mix,
    api: Api,
    tenants: list[Principal],
    counter: Peer,
    seed: int,
    runs: int,
    faults: int,
    say: Callable[[str], object],
) -> None:
    over = threading.Event()
    with ThreadPoolExecutor(_CALLERS) as pool:
        callers = [Patient(mix.installation, tenant, [api], 300) for tenant in tenants]
        loads = [
            pool.submit(_call, mix.installation, caller, counter, random.Random(f"{seed}/{number}"), over)
            for number, caller in enumerate(callers)
        ]
        try:
            for number, (name, fault, pause) in enumerate(mix.faults(faults), 1):
                say(f"seed {seed}: fault {number} of {faults}: {name}")
                fault()
                until = time.monotonic() + pause
                while time.monotonic() < until:
                    mix.revive()
                    threading.Event().wait(0.1)
            _keep_up(mix, lambda: all(load.done() for load in loads) or len(mix.installation.accepted) >= runs)
        finally:
            over.set()
            _keep_up(mix, lambda: all(load.done() for load in loads))
        for load in loads:
            load.result()


def _call(
    installation: Installation, caller: Patient, counter: Peer, chance: random.Random, over: threading.Event
) -> None:
    """Trigger runs of every kind, evenly, as long as there are not too many on their way."""
    while not over.wait(0.02):
        if _open(installation) > _WAITING:
            continue
        caller.trigger(*_work(chance, counter))


def _work(chance: random.Random, counter: Peer) -> tuple[str, dict[str, Any]]:
    key = f"k{chance.getrandbits(64):x}"
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("diagnostics.write", {"key": key, "value": "v", "hold_seconds": chance.choice([0, 0, 0.05, 0.5])}),
        ("diagnostics.write", {"key": key, "value": "v"}),
        ("diagnostics.steps", {"key": key, "count": 3, "seconds": 0.1}),
        ("diagnostics.fail", {"message": "once", "times": 1}),
        ("diagnostics.effect", {"key": key, "url": f"{counter.url}{key}"}),
        ("diagnostics.echo", {"value": 1}),
    ]
    return chance.choice(kinds)


def _keep_up(mix: Mix, reached: Callable[[], bool]) -> None:
    def ask() -> bool:
        mix.revive()
        return reached()

    eventually(ask, _DRAINED_SECONDS, every=0.1)


def _open(installation: Installation) -> int:
    return len(installation.accepted) - _ended_count(installation)


def _ended_count(installation: Installation) -> int:
    """How many runs have ended; none as long as the database does not say."""
    try:
        ((count,),) = installation.rows("SELECT count(*) FROM runs WHERE finished_at IS NOT NULL")
    except psycopg2.OperationalError:
        return 0
    return int(count)


def _effects_outside_happened_once(installation: Installation, counter: Peer) -> None:
    """Once where the run succeeded; once or not at all where it could not tell."""
    told = installation.rows("SELECT args ->> 'key', state FROM runs WHERE task = 'diagnostics.effect'")
    for key, state in told:
        done = counter.places.get(f"/{key}", 0)
        assert done == 1 or (done == 0 and state == "FAILED"), f"effect {key}: {done} times, {state}"
    assert len(counter.places) <= len(told)


def _outcome(installation: Installation, counter: Peer, seed: int, faults: int, drained_seconds: float) -> Outcome:
    ((marks,),) = installation.rows("SELECT count(*) FROM diagnostics_marks")
    names = (*_WORKERS, *_DISPATCHERS)
    fenced = sum(installation.log(name).count('"attempt_fenced"') for name in names)
    return Outcome(
        seed,
        faults,
        len(installation.accepted),
        _ended_count(installation),
        int(marks) + sum(counter.places.values()),
        fenced,
        drained_seconds,
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="./dev soak", description="Random faults over a real stack, by seeds.")
    parser.add_argument("--runs", type=int, default=10_000, help="in all, shared by the seeds")
    parser.add_argument("--faults", type=int, default=500, help="in all, shared by the seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    asked = parser.parse_args()
    failed = False
    for seed in asked.seeds:
        with tempfile.TemporaryDirectory(prefix="tenantry-soak-") as folder:
            each = len(asked.seeds)
            try:
                outcome = run(seed, -(-asked.runs // each), -(-asked.faults // each), Path(folder), _say)
            except AssertionError as error:
                failed = True
                sys.stdout.write(f"seed {seed}: BROKEN: {error}\n")
            else:
                sys.stdout.write(f"{outcome}\n")
            sys.stdout.flush()
    return int(failed)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
