"""The lease keeper: a worker's parent renews its children's leases, watches their time, ends them if need be.

Three threads: one only renews, so that nothing else it has to say delays it; one reports, and settles for the dead;
one never waits for the database, so that time limits and the self-fence hold also while it does not answer.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

import psycopg2
import structlog

from tasks import registry
from tasks.engine import execute, oom, processes
from tasks.engine.board import Board, Phase, Reason, Slot
from tasks.engine.ledger import Change, Holding, Ledger, Settlement
from tasks.engine.outcomes import Fenced
from tasks.engine.publish import Ended, Notice
from tasks.engine.refusals import Refusals
from tasks.engine.states import RunState
from tenants.settings import Engine

log = structlog.get_logger(__name__)
_WATCH_SECONDS = 0.1
_STOP_GRACE_SECONDS = 5.0
_WRONG_CLOCK_SECONDS = 5.0
_STOPS = {"cancelled": Reason.CANCELLED, "suspended": Reason.SUSPENDED}
"""Why the ledger has an attempt stopped."""
_STOPPED = {-signal.SIGTERM, -signal.SIGQUIT}
"""How a child ends that its worker stops."""


class Keeper:
    """Keeps the leases of one worker process.

    Args:
        worker: the worker's name.
        board: what its children do.
        leases: a connection for renewing alone.
        reports: another, for all else.
        engine: the engine's settings.
        queues: what the worker consumes, asked at every report.
        slots: how many attempts it runs at once, asked at every report.
        send: publish best effort.
        refusals: what the transport refused, to be reported.
        set_skew: told by how many seconds the database's clock is ahead of this machine's.
        kill: whether children are processes that can be signalled.
        patience: seconds that a worker which was told to stop may do nothing, before it is ended.
    """

    def __init__(
        self,
        worker: str,
        board: Board,
        leases: Ledger,
        reports: Ledger,
        engine: Engine,
        *,
        queues: Callable[[], list[str]],
        slots: Callable[[], int],
        send: Callable[[list[Notice]], None],
        refusals: Refusals,
        set_skew: Callable[[float], None],
        kill: bool,
        patience: float,
    ) -> None:
        self._worker = worker
        self._board = board
        self._leases = leases
        self._reports = reports
        self._engine = engine
        self._queues = queues
        self._slots = slots
        self._send = send
        self._refusals = refusals
        self._set_skew = set_skew
        self._kill = kill
        self._patience = patience
        self._stopping = threading.Event()
        self._draining = False
        self._wake: SimpleQueue[None] = SimpleQueue()  # A signal handler may put: an Event could lock itself out.
        self._deaths: SimpleQueue[tuple[Slot, str | None]] = SimpleQueue()
        self._renewed: dict[Holding, float] = {}
        self._deadlines: dict[Holding, float] = {}
        self._stopped: dict[Holding, float] = {}
        self._reported: set[Holding] = set()
        self._started = True
        self._oom_kills = oom.kills()
        self._threads = [
            threading.Thread(target=self._renew, name="lease-renewal", daemon=True),
            threading.Thread(target=self._talk, name="lease-report", daemon=True),
            threading.Thread(target=self._watch, name="lease-watch", daemon=True),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def drain(self) -> None:
        """Report no slots from now on: nothing more is to be released to this worker."""
        self._draining = True
        self._wake.put(None)

    def stop(self) -> None:
        """Stop the threads, give back what the pool has not ended, and report the worker as gone."""
        impatient = threading.Timer(self._patience, _give_up)
        impatient.daemon = True
        impatient.start()
        self._stopping.set()
        self._wake.put(None)
        for thread in self._threads:
            thread.join(timeout=2)
        try:
            self._bury()
            for slot in self._board.active():
                if self._kill and processes.is_child(slot.pid):
                    processes.kill(slot.pid, signal.SIGKILL)
                self._settle_dead(slot, None)
            self._reports.call("SELECT worker_gone(%s)", self._worker)
        except psycopg2.Error:
            log.warning("farewell_not_sent")
        self._leases.close()
        self._reports.close()
        impatient.cancel()

    def child_died(self, pid: int, exitcode: int | None) -> None:
        """A child process has ended; what it worked on is rescued at once."""
        for slot in self._board.active():
            if slot.pid == pid:
                stopped = self._draining and exitcode in _STOPPED
                self._deaths.put((slot, None if stopped else self._cause(exitcode)))
                self._board.leave(slot.index)
                self._wake.put(None)

    def _cause(self, exitcode: int | None) -> str:
        """What a child died of, for people."""
        if exitcode is None:
            return "lost: the process ended"
        if exitcode >= 0:
            return f"exit: the process ended with code {exitcode}"
        if exitcode != -signal.SIGKILL:
            return f"signal: the process was ended by {processes.signal_name(-exitcode)}"
        kills = oom.kills()
        if kills is not None and self._oom_kills is not None and kills > self._oom_kills:
            self._oom_kills += 1  # Each of them explains one death.
            return "out of memory: the process was ended by SIGKILL of the kernel's OOM killer"
        return "signal: the process was ended by SIGKILL (often: out of memory)"

    def _renew(self) -> None:
        """Renew, round after round."""
        while not self._stopping.is_set():
            with self._surviving(self._leases):
                self._renew_all()
            self._stopping.wait(self._engine.renew_seconds)

    @contextmanager
    def _surviving(self, ledger: Ledger) -> Iterator[None]:
        """One bad round must not end a thread that all attempts depend on."""
        try:
            yield
        except psycopg2.Error as error:
            ledger.close()
            log.warning("lease_keeper_waits", error=str(error).strip())
        except Exception:
            log.exception("lease_keeper_round_failed")

    def _renew_all(self) -> None:
        slots = self._board.active()
        if not slots:
            return
        asked = time.monotonic()
        answers = self._leases.renew(self._worker, [slot.run for slot in slots], [slot.fence for slot in slots])
        for slot in slots:
            holding = (slot.run, slot.fence)
            verdict, stop, seconds_left = answers[holding]
            if verdict == "gone":
                self._fence(slot)
                continue
            self._renewed[holding] = asked
            if verdict == "renewed":
                self._deadlines[holding] = asked + seconds_left
            if stop and holding not in self._stopped:
                self._stopped[holding] = time.monotonic()
                self._signal(slot, _STOPS[stop])
        for kept in (self._renewed, self._deadlines, self._stopped):
            for holding in kept.keys() - answers.keys():
                del kept[holding]

    def _talk(self) -> None:
        """Settle for the dead and report, round after round, and at once when a child has died."""
        while not self._stopping.is_set():
            with self._surviving(self._reports):
                self._bury()
                self._report()
                self._refusals.report(self._reports, self._worker)
            with contextlib.suppress(Empty):
                self._wake.get(timeout=self._engine.renew_seconds)

    def _bury(self) -> None:
        """Settle for the children that died: out of time, cancelled, or crashed."""
        while True:
            try:
                slot, cause = self._deaths.get_nowait()
            except Empty:
                return
            try:
                self._settle_dead(slot, cause)
            except psycopg2.OperationalError:
                self._deaths.put((slot, cause))
                raise

    def _settle_dead(self, slot: Slot, cause: str | None) -> None:
        """End the attempt of a process that is dead.

        Args:
            cause: what it died of; None when its worker stopped it, which does not count as an attempt.
        """
        if slot.reason is Reason.FENCED:
            return
        if slot.reason in {*_STOPS.values(), Reason.HARD_LIMIT}:
            self._end_dead(slot, execute.ended_by(slot.reason, slot))
        elif cause is None:
            self._end_dead(slot, Settlement(RunState.SCHEDULED, give_back=True, note="the worker was stopped"))
        elif change := self._reports.report_crash(slot.tenant, slot.run, slot.fence, cause):
            self._tell(slot, change, cause)

    def _end_dead(self, slot: Slot, settlement: Settlement) -> None:
        """Settle for a dead process, once its session is ended, which may still hold the run."""
        try:
            self._reports.call("SELECT end_backend(%s, %s)", slot.run, slot.fence)
            change = self._reports.settle(slot.tenant, slot.run, slot.fence, settlement)
        except Fenced:
            return
        self._tell(slot, change, settlement.note)

    def _tell(self, slot: Slot, change: Change, cause: str | None) -> None:
        log.warning("attempt_died", run=str(slot.run), cause=cause, state=change.state)
        self._send([change, Ended(slot.run, slot.fence, time.monotonic() - slot.started)])

    def _report(self) -> None:
        current = {(slot.run, slot.fence) for slot in self._board.active()}
        ((_, database_now),) = self._reports.call(
            "SELECT worker_seen(%s, %s, %s, %s, %s, %s, %s, %s), extract(epoch FROM clock_timestamp())::float8",
            self._worker,
            self._queues(),
            0 if self._draining else self._slots(),
            len(current),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            bool(current - self._reported),
            self._started,
            list(registry.definitions()),
        )
        skew = database_now - time.time()
        if self._started and abs(skew) > _WRONG_CLOCK_SECONDS:
            log.warning(
                "clock_differs", seconds=round(skew, 1), hint="The database's clock counts: set this machine's."
            )
        self._set_skew(skew)
        self._reported = current
        self._started = False

    def _watch(self) -> None:
        """The clock's side: time limits, the end of a cancelled attempt's grace, the self-fence. Never waits."""
        at_work = time.monotonic()
        while not self._stopping.wait(_WATCH_SECONDS):
            now = time.monotonic()
            with self._surviving(self._reports):
                for slot in self._board.active():
                    self._watch_slot(slot, now)
                    at_work = now
            if not self._draining:
                at_work = now
            elif self._kill and now - at_work > self._patience:
                _give_up()

    def _watch_slot(self, slot: Slot, now: float) -> None:
        holding = (slot.run, slot.fence)
        if now - self._renewed.get(holding, slot.started) > self._engine.lease_seconds:
            self._fence(slot)
            return
        deadline = max(self._deadlines.get(holding, 0.0), slot.started + slot.hard_seconds)
        if slot.reason in _STOPS.values() and now - self._stopped.get(holding, now) > _STOP_GRACE_SECONDS:
            self._end(slot, slot.reason)
        elif now > deadline:
            self._end(slot, Reason.HARD_LIMIT)
        elif slot.reason is Reason.NONE and now > deadline - (slot.hard_seconds - slot.soft_seconds):
            self._signal(slot, Reason.SOFT_LIMIT)

    def _signal(self, slot: Slot, reason: Reason) -> None:
        """Tell the attempt to stop: the reason on the board, then the soft signal."""
        if not slot.same(self._board.read(slot.index)):
            return
        self._board.give_reason(slot, reason)
        if self._kill:
            processes.kill(slot.pid, signal.SIGUSR1)

    def _fence(self, slot: Slot) -> None:
        """The lease is lost: nothing this attempt writes can be committed any more. Its own commit is left to end."""
        current = self._board.read(slot.index)
        if (
            current is not None
            and slot.same(current)
            and (current.phase is Phase.WORKING or slot.reason is Reason.FENCED)
        ):
            self._end(slot, Reason.FENCED)
        elif current is not None and slot.same(current):
            self._board.give_reason(slot, Reason.FENCED)

    def _end(self, slot: Slot, reason: Reason) -> None:
        """Kill the attempt's process, if it still works on it. A thread is told once, and stops where it looks."""
        if not slot.same(self._board.read(slot.index)) or (slot.reason is reason and not self._kill):
            return
        self._board.give_reason(slot, reason)
        log.warning("attempt_killed", run=str(slot.run), reason=reason.name)
        if self._kill:
            processes.kill(slot.pid, signal.SIGKILL)


def _give_up() -> None:
    log.error("worker_hangs", hint="It was told to stop, does nothing, and does not end: it is ended.")
    os._exit(os.EX_SOFTWARE)
