"""The Celery app: one Celery task for each definition. The composition root of workers.

`celery -A tasks.worker worker|beat|inspect|events|flower` work as Celery's documentation says; what a task does when it
is called, in which order and how often, is the engine's.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

from celery import Celery, Task, bootsteps, signals
from celery.exceptions import Ignore, Retry
from celery.result import AsyncResult

from tasks import registry
from tasks.engine import broker, calls, execute, grants, pool, publish, results, transport
from tasks.engine.announcer import Announcer
from tasks.engine.attempts import Desk
from tasks.engine.board import Board
from tasks.engine.execute import Ending
from tasks.engine.leases import Keeper
from tasks.engine.ledger import Change, Ledger, Settlement
from tasks.engine.publish import Notice
from tasks.engine.refusals import Refusals
from tenants import db, ids, lifeline, log, roles, settings
from tenants.errors import InvalidInput
from tenants.settings import Settings

_SLOTS = 1024
_SESSIONS = 2
"""How many an attempt may hold at once: its own, and that of a step."""
_ANSWER_SHARE = 0.6
"""Of a lease, how long a worker may wait for the answer to a call of its own."""
_POOLS = {f"celery.concurrency.{name}" for name in ("prefork", "thread", "solo")}


class RunTask(Task):  # type: ignore[misc]
    """A definition as Celery sees it. Calling it directly makes a run, and only where a tenant is named."""

    abstract = True

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult:
        """Trigger a run of this task; see `Tenantry.send_task`."""
        return cast("Tenantry", self.app).send_task(self.name, args=args, kwargs=kwargs, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Execute one released attempt: called by Celery's tracer in a child, never by hand."""
        request = self.request
        if request.called_directly:
            raise InvalidInput("Call a task through triggerBackgroundTask, .delay() or send_task: it then makes a run.")
        bench = _bench()
        bench.listen()
        ending, settlement = execute.perform(
            bench.desk, registry.definition(self.name), _headers(request), str(request.hostname), bench.finished
        )
        error = settlement.error if settlement else None
        if ending is Ending.FAILED:
            raise results.RunError((error or {}).get("type", "RunError"))
        if ending is Ending.RETRY:
            raise Retry(str((error or {}).get("type", "later")), when=settlement.delay_seconds if settlement else 0)
        if ending is Ending.IGNORE:
            raise Ignore


class Tenantry(Celery):  # type: ignore[misc]
    """Celery, whose every way to send a task goes through the ledger."""

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        countdown: float | None = None,
        eta: Any = None,
        task_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Trigger a run.

        Args:
            name: a task's full or bare name.
            args: values for the task's input in the order of its fields.
            kwargs: the task's input by name.
            countdown: seconds until it may start.
            eta: when it may start.
            headers: `tenant` names the tenant's slug; else TENANTRY_TENANT does.
            options: `queue` and `priority` are honoured, the dispatcher decides the rest.

        Raises:
            calls.NotSent: no tenant is named, or the run is refused.
        """
        current = settings.current()
        run = calls.send(
            current,
            name,
            args or (),
            kwargs or {},
            tenant=(headers or {}).get("tenant") or current.tenant,
            delay_seconds=countdown,
            eta=eta,
            task_id=task_id,
            priority=options.get("priority"),
            queue=options.get("queue"),
        )
        return self.AsyncResult(ids.show("run", run))


def create(current: Settings) -> Tenantry:
    """The Celery app of an installation."""
    made = Tenantry("tenantry", task_cls=RunTask, set_as_current=True)
    made.conf.update(broker.configuration(current))
    for definition in registry.definitions().values():
        made.task(
            name=definition.name,
            base=RunTask,
            ignore_result=True,
        )(_body)
    made.steps["worker"].add(KeeperStep)
    return made


def _body() -> None:
    """Stands for every task: what is done stands in the family's bodies, and `RunTask.__call__` finds it."""


class Bench:
    """What this worker process works with: the board is shared with its children, the rest each opens for itself."""

    def __init__(self, current: Settings) -> None:
        self.settings = current
        self.board = Board(_SLOTS)
        self.refusals = Refusals()
        self._listens = False
        self.open()

    def ledger(self, application: str) -> Ledger:
        """One that gives a dead line up while a lease can still be renewed, or a claim be repeated, over another."""
        engine = self.settings.engine
        answer_seconds = min(engine.answer_seconds, engine.lease_seconds * _ANSWER_SHARE)
        return Ledger(self.settings.database.url, engine, application=application, answer_seconds=answer_seconds)

    def after_fork(self) -> None:
        """In a child: drop what the parent holds open."""
        self.desk.ledger.abandon()
        self.desk.engine.dispose(close=False)
        self.open()

    def listen(self) -> None:
        """Take the soft signal over from the pool, which sets its own handler after a child has been initialised."""
        if not self._listens and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, lambda number, frame: execute.interrupt())
            self._listens = True

    def finished(self, change: Change, settlement: Settlement, notices: list[Notice]) -> None:
        """Tell the result backend, the tenant's stream and the dispatcher, best effort, one pipeline a server."""
        pipeline = self.client.pipeline(transaction=False)
        outcome = pipeline if self.results is self.client else self.results.pipeline(transaction=False)
        results.add(outcome, app.backend, change, settlement.result, settlement.error, self.settings.redis.result_days)
        publish.add(pipeline, notices, self.settings.redis.stream_length)
        publish.execute(pipeline)
        if outcome is not pipeline:
            publish.execute(outcome)

    def send(self, notices: list[Notice]) -> None:
        """Publish best effort."""
        publish.send(self.client, notices, self.settings.redis.stream_length)

    def open(self, attempts: int = 1) -> None:
        """Make everything anew that connects to a server.

        Args:
            attempts: how many run in this process at once.
        """
        database = self.settings.database
        addresses = self.settings.redis
        self.client = self.results = publish.connect(
            addresses.worker_address, timeout_seconds=addresses.timeout_seconds
        )
        if addresses.result_address != addresses.worker_address:
            self.results = publish.connect(addresses.result_address, timeout_seconds=addresses.timeout_seconds)
        self.desk = Desk(
            settings=self.settings,
            ledger=self.ledger("tenantry-worker"),
            engine=db.sync_engine(database.url, pool_size=_SESSIONS * attempts, application="tenantry-worker"),
            board=self.board,
            slot=_slot,
            send=self.send,
            system_engine=db.sync_engine(database.system_url, pool_size=attempts) if database.system_url else None,
        )


class KeeperStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts the lease keeper and the announcer beside the pool, and tells the keeper of every child that ends."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        if parent.pool_cls.__module__ not in _POOLS:
            raise SystemExit("The worker can't start: its pool must be prefork, threads or solo.")
        super().__init__(parent, **kwargs)

    def start(self, parent: Any) -> None:
        """Start the keeper."""
        bench = _bench()
        current = bench.settings
        if not _has_children(parent.pool):
            bench.open(attempts=parent.pool.num_processes)
        self.keeper = Keeper(
            parent.hostname,
            bench.board,
            bench.ledger("tenantry-keeper"),
            bench.ledger("tenantry-reporter"),
            current.engine,
            queues=lambda: sorted(parent.app.amqp.queues.consume_from),
            slots=lambda: int(parent.pool.num_processes),
            send=bench.send,
            refusals=bench.refusals,
            set_skew=transport.set_skew,
            kill=_has_children(parent.pool),
            patience=current.worker.grace_seconds + current.engine.lease_seconds,
        )
        self.keeper.start()
        self.announcer = Announcer(bench.board, bench.send)
        self.announcer.start()
        for number in (signal.SIGTERM, signal.SIGQUIT):
            self._drain_at(number)
        if _has_children(parent.pool):
            pool.await_deaths(parent.pool._pool)
            pool.finish_reading(parent.pool._pool, parent.hub)

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:
        """Called again at every connection to the broker; the pool sets its own handlers in the same turn."""
        if _has_children(parent.pool):
            hub.call_soon(pool.tell_of_deaths, parent.pool._pool, self.keeper.child_died)

    def _drain_at(self, number: signal.Signals) -> None:
        """Celery may sleep inside its handler, for what is at work to end: nothing more is to be sent from here on."""
        before = signal.getsignal(number)

        def handle(received: int, frame: Any) -> None:
            self.keeper.drain()
            if callable(before):
                before(received, frame)

        signal.signal(number, handle)

    def close(self, parent: Any) -> None:
        """The worker stops: it takes no more, and keeps what it works on until the pool has ended it."""
        self.keeper.drain()
        before = parent.blueprint.on_stopped

        def on_stopped() -> None:
            """Called once the pool has ended, also by a cold shutdown, of which Celery's signal does not tell."""
            try:
                before()
            finally:
                self.announcer.stop()
                self.keeper.stop()

        parent.blueprint.on_stopped = on_stopped


def _has_children(workers: Any) -> bool:
    """Whether attempts run in processes, which can be killed, or in threads, which stop where they look."""
    return "prefork" in type(workers).__module__


_benches: list[Bench] = []
_threads = threading.local()
_free = list(range(_SLOTS))


def _bench() -> Bench:
    """This process's bench."""
    if not _benches:
        _benches.append(Bench(settings.current()))
    return _benches[0]


def _slot() -> int:
    """The board's slot of the calling child process, or of the calling thread in a pool of threads."""
    from billiard.process import current_process

    index = getattr(current_process(), "index", None)
    if index is not None:
        return int(index)
    if not hasattr(_threads, "slot"):
        _threads.slot = _free.pop(0)
    return int(_threads.slot)


def _headers(request: Any) -> dict[str, Any]:
    """The message's headers, as Celery hands them on."""
    return dict(request.headers or {})


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    log.configure(settings.current())


@signals.worker_init.connect
def _start(**_: Any) -> None:
    """Make sure of everything a worker stands on. Celery logs a signal's exceptions and goes on; SystemExit ends it."""
    try:
        current = settings.current()
        grants.require(current.engine.grant_keys)
        roles.check(current.database.url)
        registry.bodies()
        bench = _bench()
        transport.arm(current.engine.grant_keys, bench.refusals.note)
    except Exception as error:
        raise SystemExit(f"The worker can't start: {error}") from error


@signals.worker_process_init.connect
def _start_child(**_: Any) -> None:
    lifeline.tie(os.getppid())
    random.seed()
    _bench().after_fork()


app = create(settings.current())
