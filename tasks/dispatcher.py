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
from tasks.engine.fairness import Candidate, FairOrder
from tasks.engine.fleet import Fleet
from tasks.engine.ledger import Change, Ledger, NotLeading, changes
from tasks.engine.messages import Release
from tasks.engine.publish import Notice
from tasks.engine.states import RunState
from tasks.engine.waiting import Pair
from tenants import ids, names, roles, settings, system
from tenants.errors import Misconfigured
from tenants.settings import Settings

log = structlog.get_logger(__name__)
_HEADS = 64
"""How many waiting runs of a tenant's queue are looked at ahead."""
_PAIRS = 500
"""How many tenants' queues are looked at in one query."""
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
        self._order = FairOrder()
        self._fleet = Fleet(self._engine.buffer_milliseconds / 1000)
        self._unread: dict[Pair, None] = {}
        self._deeper: set[Pair] = set()
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
        bell = publish.heard(data)
        if bell is None:
            return
        if bell.cost is None:
            self._unread[(bell.tenant, bell.queue)] = None
        else:
            self._fleet.freed(bell.queue, bell.cost)

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
        self._fleet.read(self._ledger, alive_seconds=self._engine.lease_seconds)
        self._unread.update(dict.fromkeys(waiting.active(self._ledger)))
        self._next_due(started)
        if started >= self._housekeeping_next:
            self._housekeeping_next = started + _HOUSEKEEPING_SECONDS
            self._keep_house()

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
        for pool in self._fleet.pools():
            while room := pool.room():
                picked = self._order.pick(pool.rooms(), min(room, _BATCH))
                if not picked:
                    break
                self._release_picked(picked)
                self._look_deeper(picked)
                if time.monotonic() < self._broker_next:
                    return

    def _read_waiting(self) -> None:
        """Look at the front of the tenants' queues that have changed."""
        while self._unread:
            pairs = list(self._unread)[:_PAIRS]
            for pair in pairs:
                del self._unread[pair]
            candidates = waiting.heads(self._ledger, pairs, _HEADS)
            found = Counter((candidate.tenant, candidate.queue) for candidate in candidates)
            for pair in pairs:
                self._order.forget(*pair)
                (self._deeper.add if found[pair] >= _HEADS else self._deeper.discard)(pair)
            self._order.offer(candidates)

    def _look_deeper(self, picked: Iterable[Candidate]) -> None:
        """A queue whose known front has been released is read again, where there was more behind it."""
        for pair in {(candidate.tenant, candidate.queue) for candidate in picked}:
            if pair in self._deeper and not self._order.known(*pair):
                self._unread[pair] = None
        if self._unread:
            self._read_waiting()

    def _release_picked(self, picked: list[Candidate]) -> None:
        rows = self._ledger.call(
            "SELECT * FROM release_runs(%s, %s, %s, %s)",
            self._engine.shard,
            self._epoch,
            [candidate.tenant for candidate in picked],
            [candidate.run for candidate in picked],
        )
        order = {candidate.run: place for place, candidate in enumerate(picked)}
        rows.sort(key=lambda row: order[row[1]])
        self._publish(rows)

    def _publish(self, rows: list[tuple[Any, ...]]) -> None:
        """Hand the released runs to their queues; what the broker refuses goes back into the ledger's queue."""
        pipeline = self._broker.pipeline(transaction=False)
        told: list[Notice] = []
        for tenant, run, task, queue, fence, sequence, attempt, at in rows:
            release = Release(tenant, run, task, queue, fence)
            pipeline.lpush(queue, messages.encode(release, self._engine.grant_keys, self._engine.grant_seconds))
            told.append(Change(tenant, run, RunState.RELEASED, sequence, attempt, at, queue))
        try:
            answers = pipeline.execute(raise_on_error=False)
        except (redis.RedisError, OSError) as error:
            answers = [error] * len(rows)
        refused = [row for row, answer in zip(rows, answers, strict=True) if isinstance(answer, Exception)]
        if refused:
            causes = sorted({str(answer) for answer in answers if isinstance(answer, Exception)})
            log.warning("broker_refused", error=causes[0], runs=len(refused))
            self._broker_next = time.monotonic() + _BROKER_PAUSE_SECONDS
            self._take_back(refused)
        for row, answer in zip(rows, answers, strict=True):
            if not isinstance(answer, Exception):
                self._fleet.released(row[3])
        self._tell(told)

    def _take_back(self, rows: list[tuple[Any, ...]]) -> None:
        self._ledger.call(
            "SELECT unrelease_runs(%s, %s, %s, %s, %s)",
            self._engine.shard,
            self._epoch,
            [row[0] for row in rows],
            [row[1] for row in rows],
            [row[4] for row in rows],
        )
        self._unread.update(dict.fromkeys((row[0], row[3]) for row in rows))

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
