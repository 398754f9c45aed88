"""The dispatcher: decides what starts next, and repairs what was lost. `celery beat` runs it; any number may run.

One leads at a time. A round listens for bells, and releases as much as the live workers can start now; a sweep
twice a second finds what bells lost, what is due, what was never claimed and what died.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg2
import redis
import structlog
from celery.beat import Scheduler as BeatScheduler

from tasks.engine import bulk_actions, grants, publish, waiting
from tasks.engine.costs import Costs
from tasks.engine.housekeeping import Housekeeping
from tasks.engine.ledger import SHARD, Change, Ledger, NotLeading, changes
from tasks.engine.publish import Notice
from tasks.engine.release import Releases
from tenants import ids, names, roles, settings
from tenants.errors import Misconfigured
from tenants.settings import Settings

log = structlog.get_logger(__name__)
_BATCH = 500
"""How many entries of the audit log are sealed at each sweep."""
_BELLS = 1000
"""How many bells are heard at once: a flood of them must not keep the dispatcher from its work."""
_REDIS_PAUSE_SECONDS = 0.5
_SILENCE_SECONDS = 2.0
_JUST_NOW_SECONDS = 0.05
"""How long a sweep may take between what it moves and its look at what is next."""


class Dispatcher:
    """Releases runs, as long as it leads.

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
        self._house = Housekeeping(current.database.system_url, current.engine)
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
        self._in_round = False
        self._heard = self._asked = 0.0
        self._releases: Releases | None = None
        self._shared_upto: UUID | None = None
        self._lead_next = self._sweep_next = self._tell_next = self._listen_next = 0.0

    def tick(self) -> None:
        """One round: lead, listen, sweep when it is time, release."""
        now = time.monotonic()
        self._in_round = True
        try:
            if now >= self._lead_next:
                self._lead(now)
            self._listen(self._pause(time.monotonic()))
            if self._releases is None:
                return
            if time.monotonic() >= self._sweep_next:
                self._sweep(self._releases)
                self._releases.read()
            self._tell(self._releases.release())
        except NotLeading:
            self._step_down()
        except psycopg2.Error as error:
            log.warning("dispatcher_waits_for_database", error=str(error).strip())
            self._start_over()
        except Exception:
            log.exception("dispatcher_round_failed")
            self._start_over()
        finally:
            self._in_round = False

    def close(self) -> None:
        """Give the leadership up and close the connections."""
        if self._in_round:
            return  # In a signal's handler: beat closes again once it has left the round, whose connection is in use.
        self._house.end()
        try:
            self._ledger.call("SELECT resign(%s, %s)", SHARD, self._holder)
        except psycopg2.Error:
            log.warning("leadership_not_resigned")
        self._ledger.close()
        self._client.close()
        self._house.join()

    def _lead(self, now: float) -> None:
        """Take or keep the leadership."""
        term = self._engine.leadership_seconds
        epoch = self._ledger.call("SELECT take_lead(%s, %s, %s)", SHARD, self._holder, timedelta(seconds=term))
        found = epoch[0][0] if epoch else None
        if found is not None and found != self._epoch:
            log.info("leading", epoch=found)
            self._releases = Releases(self._ledger, self._broker, self._engine, found, self._costs)
            self._sweep_next = 0.0
            self._house.begin()
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
        log.info("not_leading")
        self._epoch = self._releases = None
        self._house.end()

    def _pause(self, now: float) -> float:
        """How long to listen: until the next sweep, the next renewal, or the next release."""
        if self._releases is None:
            return max(0.0, self._lead_next - now)
        return max(0.0, min(self._sweep_next - now, self._lead_next - now, self._releases.pause()))

    def _listen(self, seconds: float) -> None:
        """Hear the bells that ring within this time; the first one ends the wait."""
        if time.monotonic() < self._listen_next:
            time.sleep(min(seconds, _REDIS_PAUSE_SECONDS))
            return
        try:
            self._make_sure_to_hear()
            message = self._ears.get_message(ignore_subscribe_messages=True, timeout=seconds)
            for _ in range(_BELLS):
                if message is None:
                    break
                self._heard = time.monotonic()
                if message["type"] == "message" and self._releases is not None:
                    self._releases.hear(publish.heard(message["data"]))
                message = self._ears.get_message(ignore_subscribe_messages=True, timeout=0)
        except (redis.RedisError, OSError) as error:
            log.warning("bell_out_of_order", error=type(error).__name__)
            self._ears.reset()
            self._listen_next = time.monotonic() + _REDIS_PAUSE_SECONDS

    def _make_sure_to_hear(self) -> None:
        """Subscribe; and as silence may mean that the line is dead, ask for an answer after some of it.

        Raises:
            redis.ConnectionError: there was none.
        """
        now = time.monotonic()
        if not self._ears.subscribed:
            self._ears.subscribe(names.BELL)
            self._heard = self._asked = now
        elif now - self._heard > 3 * _SILENCE_SECONDS:
            raise redis.ConnectionError("no answer")
        elif now - max(self._heard, self._asked) > _SILENCE_SECONDS:
            self._ears.ping()
            self._asked = now

    def _sweep(self, releases: Releases) -> None:
        """Move what is due, what was not claimed and what died."""
        started = time.monotonic()
        due = self._queue_due()
        late = self._change(
            "SELECT * FROM requeue_unclaimed_runs(%s, %s, %s, %s)",
            timedelta(seconds=self._engine.unclaimed_seconds),
            _BATCH,
        )
        if late:
            releases.unclaimed(late)
        rescued = self._change(
            "SELECT * FROM rescue_runs(%s, %s, %s, %s, %s)", self._engine.max_crashes, self._step, _BATCH
        )
        moved = due + late + rescued
        self._sweep_next = started
        if max(len(due), len(late), len(rescued)) < _BATCH:
            self._sweep_next += self._until_due()
        moved += self._advance()
        self._tell(moved)
        releases.queued(moved)

    def _advance(self) -> list[Change]:
        """Carry bulk actions on; one that fails does not keep everything else from its turn."""
        try:
            return bulk_actions.advance(self._ledger, self._epoch, self._step)
        except psycopg2.Error:
            log.exception("bulk_actions_failed")
            return []

    def _queue_due(self) -> list[Change]:
        """Queue what is due; where that is much, a share of each tenant's too, so that nobody waits behind another."""
        due = self._change("SELECT * FROM queue_due_runs(%s, %s, %s)", _BATCH)
        if len(due) < _BATCH:
            return due
        tenants = waiting.with_delayed(self._ledger, self._shared_upto, _BATCH)
        self._shared_upto = tenants[-1] if len(tenants) == _BATCH else None
        share = max(1, _BATCH // max(1, len(tenants)))
        return due + self._change("SELECT * FROM queue_due_runs(%s, %s, %s, %s)", share, tenants)

    def _until_due(self) -> float:
        """Seconds until the next sweep: earlier than usual where a delayed run is due before that."""
        seconds = waiting.next_due(self._ledger)
        if seconds is None or seconds > self._engine.sweep_seconds:
            return self._engine.sweep_seconds
        if seconds < -_JUST_NOW_SECONDS:
            return self._engine.sweep_seconds  # It was due before this sweep, which has not moved it: another holds it.
        return max(seconds, 0.0)

    def _change(self, statement: str, *values: Any) -> list[Change]:
        return changes(self._ledger.call(statement, SHARD, self._epoch, *values))

    def _tell(self, notices: Sequence[Notice]) -> None:
        """Tell the tenants' streams what changed, best effort."""
        if not notices or time.monotonic() < self._tell_next:
            return
        if not publish.send(self._client, notices, self._stream_length):
            self._tell_next = time.monotonic() + _REDIS_PAUSE_SECONDS


class Scheduler(BeatScheduler):  # type: ignore[misc]
    """What `celery beat` runs instead of a schedule of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            current = settings.current()
            self._dispatcher = Dispatcher(current)
            roles.check(current.database.system_url)
        except Exception as error:
            raise SystemExit(f"The dispatcher can't start: {error}") from error

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
