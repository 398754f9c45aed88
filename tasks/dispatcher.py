"""The dispatcher: decides what starts next, and repairs what was lost. `celery beat` runs it; any number may run.

One leads a shard at a time. A round listens for bells, and releases as much as the live workers can start now; a sweep
twice a second finds what bells lost, what is due, what was never claimed and what died.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import psycopg2
import redis
import structlog
from celery.beat import Scheduler as BeatScheduler

from tasks.engine import grants, messages, publish, waiting
from tasks.engine.costs import Costs
from tasks.engine.fairness import Candidate, FairOrder, Line
from tasks.engine.fleet import Fleet, Flight, Pool
from tasks.engine.ledger import Change, Ledger, NotLeading, changes
from tasks.engine.limits import Limits
from tasks.engine.messages import Release
from tasks.engine.publish import Bell, Ended, Notice
from tasks.engine.states import RunState
from tenants import ids, names, roles, settings, system
from tenants.errors import Misconfigured
from tenants.settings import Settings

log = structlog.get_logger(__name__)
_HEADS = 64
"""How many waiting runs of a line are looked at ahead."""
_LINES = 5000
"""How many lines are looked for at a sweep."""
_BATCH = 500
_BELLS = 1000
"""How many bells are heard at once: a flood of them must not keep the dispatcher from its work."""
_HOUSEKEEPING_SECONDS = 3600.0
_BROKER_PAUSE_SECONDS = 0.5
_PARTITIONS_AHEAD_DAYS = 30


class Dispatcher:
    """Releases runs, as long as it leads its shard.

    Args:
        current: the installation's settings.
    """

    def __init__(self, current: Settings) -> None:
        if not current.database.system_url:
            raise Misconfigured("DATABASE_SYSTEM_URL is not set: the dispatcher works under the system login.")
        grants.require(current.engine.grant_keys)
        self._engine = current.engine
        self._stream_length = current.redis.stream_length
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{ids.new().hex[-8:]}"
        self._ledger = Ledger(current.database.system_url, current.engine, application="tenantry-dispatcher")
        address = current.redis.dispatcher_address
        self._client = publish.connect(address, timeout_seconds=current.redis.timeout_seconds)
        self._broker = (
            publish.connect(current.redis.broker_url, timeout_seconds=current.redis.timeout_seconds)
            if current.redis.broker_url
            else self._client
        )
        self._ears = publish.connect(address, timeout_seconds=current.redis.timeout_seconds).pubsub()  # type: ignore[no-untyped-call]
        self._costs = Costs()
        self._step = timedelta(seconds=current.engine.priority_step_seconds)
        self._epoch: int | None = None
        self._lead_next = self._sweep_next = self._housekeeping_next = self._broker_next = self._listen_next = 0.0
        self._forget()

    def tick(self) -> None:
        """One round: lead, listen, sweep when it is time, release."""
        now = time.monotonic()
        try:
            if now >= self._lead_next:
                self._lead(now)
            self._listen(self._pause(time.monotonic()))
            if self._epoch is None:
                return
            if time.monotonic() >= self._sweep_next:
                self._sweep()
            self._release()
        except NotLeading:
            self._step_down()
        except psycopg2.Error as error:
            log.warning("dispatcher_waits_for_database", error=str(error).strip())
            self._start_over()
        except Exception:
            log.exception("dispatcher_round_failed")
            self._start_over()

    def close(self) -> None:
        """Give the leadership up and close the connections."""
        try:
            self._ledger.call("SELECT resign(%s, %s)", self._engine.shard, self._holder)
        except psycopg2.Error:
            log.warning("leadership_not_resigned")
        self._ledger.close()
        self._client.close()

    def _lead(self, now: float) -> None:
        """Take or keep the leadership."""
        term = self._engine.leadership_seconds
        epoch = self._ledger.call(
            "SELECT take_lead(%s, %s, %s)", self._engine.shard, self._holder, timedelta(seconds=term)
        )
        found = epoch[0][0] if epoch else None
        if found is not None and found != self._epoch:
            log.info("leading", shard=self._engine.shard, epoch=found)
            self._forget()
        elif found is None and self._epoch is not None:
            self._step_down()
        self._epoch = found
        self._lead_next = now + self._engine.leadership_renew_seconds
        if found is None:
            self._lead_next = now + self._engine.leadership_renew_seconds / 2

    def _start_over(self) -> None:
        """Know nothing and lead nothing, and try again after a pause: one bad round must not end all tenants' work."""
        self._ledger.close()
        self._step_down()
        self._lead_next = time.monotonic() + self._engine.sweep_seconds

    def _step_down(self) -> None:
        log.info("not_leading", shard=self._engine.shard)
        self._epoch = None
        self._forget()

    def _forget(self) -> None:
        """What is known of the runs is read anew at the next sweep."""
        self._fleet = Fleet(self._engine.buffer_milliseconds / 1000, self._costs.of_queue)
        self._limits = Limits()
        self._sort([])

    def _sort(self, pools: list[Pool]) -> None:
        """Begin an order of its own for each pool, of which nothing is known yet."""
        self._orders: dict[str, FairOrder] = {}
        for pool in pools:
            order = FairOrder({})
            self._orders.update(dict.fromkeys(pool.queues, order))
        self._unread: dict[Line, None] = {}
        self._deeper: set[Line] = set()
        self._read_until: Line | None = None
        self._sweep_next = 0.0

    def _pause(self, now: float) -> float:
        """How long to listen: until the next sweep or the next renewal."""
        if self._epoch is None:
            return max(0.0, self._lead_next - now)
        if self._unread and self._fleet.free() and now >= self._broker_next:
            return 0.0
        until = min(self._sweep_next, self._lead_next)
        return max(0.0, until - now)

    def _listen(self, seconds: float) -> None:
        """Hear the bells that ring within this time; the first one ends the wait."""
        if time.monotonic() < self._listen_next:
            time.sleep(min(seconds, _BROKER_PAUSE_SECONDS))
            return
        try:
            if not self._ears.subscribed:
                self._ears.subscribe(names.BELL)
            message = self._ears.get_message(ignore_subscribe_messages=True, timeout=seconds)
            for _ in range(_BELLS):
                if message is None:
                    break
                self._hear(message["data"])
                message = self._ears.get_message(ignore_subscribe_messages=True, timeout=0)
        except (redis.RedisError, OSError) as error:
            log.warning("bell_out_of_order", error=type(error).__name__)
            self._ears.reset()
            self._listen_next = time.monotonic() + _BROKER_PAUSE_SECONDS

    def _hear(self, data: bytes) -> None:
        match publish.heard(data):
            case Bell(line):
                self._unread[line] = None
            case Ended(run, fence, seconds) if flight := self._fleet.ended(run, fence):
                if seconds:
                    self._costs.learn(flight.line, seconds)
                self._landed(flight, seconds)

    def _landed(self, flight: Flight, seconds: float) -> None:
        """A run takes up nothing more: what it took is charged, and who waited for its place is asked again."""
        line = flight.line
        self._limits.vacate(line)
        if order := self._orders.get(line.queue):
            order.charge(line.tenant, line.key, seconds - flight.expected)
            order.wake(line.tenant, line.key)

    def _sweep(self) -> None:
        """Repair what bells lost: the fleet, what is due, what was not claimed, what died, what waits."""
        started = time.monotonic()
        self._sweep_next = started + self._engine.sweep_seconds
        moved = self._change(
            "SELECT * FROM requeue_runs(%s, %s, %s, %s)",
            timedelta(seconds=self._engine.unclaimed_seconds),
            _BATCH,
        )
        moved += self._change(
            "SELECT * FROM rescue_runs(%s, %s, %s, %s, %s)", self._engine.max_crashes, self._step, _BATCH
        )
        if len(moved) >= _BATCH:
            self._sweep_next = started
        self._tell(moved)
        new = self._count()
        self._survey()
        self._read_waiting()
        for flight in new:
            if order := self._orders.get(flight.line.queue):
                order.charge(flight.line.tenant, flight.line.key, flight.expected)
        self._next_due(started)
        if started >= self._housekeeping_next:
            self._housekeeping_next = started + _HOUSEKEEPING_SECONDS
            self._keep_house()

    def _count(self) -> list[Flight]:
        """Read the fleet anew, and what bells have not told of it; what is in flight and not charged yet."""
        before = [sorted(pool.queues) for pool in self._fleet.pools()]
        new, gone = self._fleet.read(self._ledger, self._costs.of, alive_seconds=self._engine.lease_seconds)
        self._limits.recount(flight.line for flight in self._fleet.flights())
        if [sorted(pool.queues) for pool in self._fleet.pools()] != before:
            self._sort(self._fleet.pools())
            return self._fleet.flights()
        for flight in gone:
            if order := self._orders.get(flight.line.queue):
                order.wake(flight.line.tenant, flight.line.key)
        return new

    def _survey(self) -> None:
        """Find what waits and is not known: some more lines at every sweep, and from the first on again."""
        found = waiting.lines(self._ledger, self._read_until, _LINES)
        self._read_until = found[-1] if len(found) == _LINES else None
        for line in found:
            order = self._orders.get(line.queue)
            if order is not None and not order.known(line):
                self._unread[line] = None

    def _next_due(self, now: float) -> None:
        """When the next delayed run is due, if that is before the next sweep."""
        seconds = waiting.next_due(self._ledger)
        if seconds is not None and now + seconds < self._sweep_next:
            self._sweep_next = max(now, now + seconds)

    def _release(self) -> None:
        """Release as much as can start now, in fair order."""
        if time.monotonic() < self._broker_next:
            return
        self._read_waiting()
        self._limits.now = time.time()
        for tenant, key in self._limits.opened():
            for order in set(self._orders.values()):
                order.wake(tenant, key)
        for pool in self._fleet.pools():
            order = self._orders[next(iter(pool.queues))]
            while room := pool.room():
                picked = order.pick(pool.rooms(), min(room, _BATCH), self._costs.of, self._limits)
                if not picked:
                    break
                self._release_picked(picked)
                self._look_deeper(picked)
                if time.monotonic() < self._broker_next:
                    return

    def _read_waiting(self) -> None:
        """Look at the front of the lines that have changed."""
        while self._unread:
            lines = [line for line in list(self._unread)[:_BATCH] if line.queue in self._orders]
            for line in list(self._unread)[:_BATCH]:
                del self._unread[line]
            candidates = waiting.heads(self._ledger, lines, _HEADS)
            found = Counter(candidate.line for candidate in candidates)
            for line in lines:
                self._orders[line.queue].forget(line)
                (self._deeper.add if found[line] >= _HEADS else self._deeper.discard)(line)
            for candidate in candidates:
                self._orders[candidate.line.queue].offer([candidate])

    def _look_deeper(self, picked: Iterable[Candidate]) -> None:
        """A line whose known front has been released is read again, where there was more behind it."""
        for line in {candidate.line for candidate in picked}:
            if line in self._deeper and not self._orders[line.queue].known(line):
                self._unread[line] = None
        if self._unread:
            self._read_waiting()

    def _release_picked(self, picked: list[Candidate]) -> None:
        rows = self._ledger.call(
            "SELECT * FROM release_runs(%s, %s, %s, %s)",
            self._engine.shard,
            self._epoch,
            [candidate.line.tenant for candidate in picked],
            [candidate.run for candidate in picked],
        )
        places = {candidate.run: place for place, candidate in enumerate(picked)}
        rows.sort(key=lambda row: places[row[1]])
        released = {row[1] for row in rows}
        for candidate in picked:
            if candidate.run not in released:
                self._not_released(candidate)
        self._publish([(picked[places[row[1]]], row) for row in rows])

    def _not_released(self, candidate: Candidate) -> None:
        """It counts for nothing, and its line is read anew."""
        line = candidate.line
        self._limits.untake(candidate)
        order = self._orders[line.queue]
        order.charge(line.tenant, line.key, -self._costs.of(line))
        order.wake(line.tenant, line.key)
        self._unread[line] = None

    def _publish(self, released: list[tuple[Candidate, tuple[Any, ...]]]) -> None:
        """Hand the released runs to their queues; what the broker refuses goes back into the ledger's queue."""
        pipeline = self._broker.pipeline(transaction=False)
        told: list[Notice] = []
        for _, (tenant, run, task, queue, fence, sequence, attempt, at) in released:
            release = Release(tenant, run, task, queue, fence)
            pipeline.lpush(queue, messages.encode(release, self._engine.grant_keys, self._engine.grant_seconds))
            told.append(Change(tenant, run, RunState.RELEASED, sequence, attempt, at, queue))
        try:
            answers = pipeline.execute(raise_on_error=False)
        except (redis.RedisError, OSError) as error:
            answers = [error] * len(released)
        refused = []
        for (candidate, row), answer in zip(released, answers, strict=True):
            if isinstance(answer, Exception):
                refused.append((candidate, row))
            else:
                flight = Flight(candidate.line, self._costs.of(candidate.line))
                self._fleet.released(candidate.run, row[4], flight)
        if refused:
            causes = sorted({str(answer) for answer in answers if isinstance(answer, Exception)})
            log.warning("broker_refused", error=causes[0], runs=len(refused))
            self._broker_next = time.monotonic() + _BROKER_PAUSE_SECONDS
            self._take_back(refused)
        self._tell(told)

    def _take_back(self, refused: list[tuple[Candidate, tuple[Any, ...]]]) -> None:
        self._ledger.call(
            "SELECT unrelease_runs(%s, %s, %s, %s, %s)",
            self._engine.shard,
            self._epoch,
            [candidate.line.tenant for candidate, _ in refused],
            [candidate.run for candidate, _ in refused],
            [row[4] for _, row in refused],
        )
        for candidate, _ in refused:
            self._not_released(candidate)

    def _change(self, statement: str, *values: Any) -> list[Change]:
        return changes(self._ledger.call(statement, self._engine.shard, self._epoch, *values))

    def _tell(self, notices: Sequence[Notice]) -> None:
        """Tell the tenants' streams what changed, best effort."""
        if not notices or time.monotonic() < self._broker_next:
            return
        if not publish.send(self._client, notices, self._stream_length):
            self._broker_next = time.monotonic() + _BROKER_PAUSE_SECONDS

    def _keep_house(self) -> None:
        """Partitions ahead of time, and what is over; one that fails does not keep the others from it."""
        for statement, *values in (
            ("SELECT ensure_partitions(%s)", _PARTITIONS_AHEAD_DAYS),
            (
                "SELECT drop_ended_partitions(clock_timestamp() - %s)",
                timedelta(days=self._engine.retention_days),
            ),
            ("DELETE FROM idempotency_keys WHERE expires_at < clock_timestamp()",),
            ("DELETE FROM workers WHERE last_seen < clock_timestamp() - interval '1 hour'",),
        ):
            try:
                self._ledger.call(str(statement), *values)
            except psycopg2.Error:
                log.exception("housekeeping_failed", statement=statement)


class Scheduler(BeatScheduler):  # type: ignore[misc]
    """What `celery beat` runs instead of a schedule of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        current = settings.current()
        with system.connect(current) as connection:
            roles.refuse_bypass(connection)
        self._dispatcher = Dispatcher(current)

    def setup_schedule(self) -> None:
        """Nothing: schedules stand in the database."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One round; beat is to call again at once."""
        self._dispatcher.tick()
        return 0.0

    def close(self) -> None:
        """Give the leadership up."""
        self._dispatcher.close()

    @property
    def info(self) -> str:
        """For beat's banner."""
        return "    . dispatcher of the runs in PostgreSQL"
