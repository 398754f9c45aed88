"""What is released next: the waiting runs in fair order, what may start of them, and the room that the workers have."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from uuid import UUID

import redis
import structlog

from tasks.engine import messages, publish, terms, waiting
from tasks.engine.admission import Admission
from tasks.engine.costs import Costs
from tasks.engine.fairness import FairOrder
from tasks.engine.fleet import Fleet, Flight, Pool
from tasks.engine.ledger import SHARD, Change, Ledger
from tasks.engine.lines import Candidate, Line
from tasks.engine.messages import Release
from tasks.engine.publish import Bell, Ended
from tasks.engine.states import RunState
from tenants.settings import Engine

log = structlog.get_logger(__name__)
_HEADS = 64
"""How many waiting runs of a line are looked at ahead, at most."""
_FEWEST_HEADS = 4
_PORTION = 2000
"""How many runs are read at once: a round has to be short, or the leadership ends in it."""
_LINES = 1000
"""How many lines are looked for at a sweep."""
_BATCH = 500
_BROKER_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Released:
    """A run that has been released: as it was known, and in which line it waited by the ledger."""

    candidate: Candidate
    line: Line
    fence: int
    sequence: int
    attempt: int
    at: datetime

    @property
    def as_wanted(self) -> bool:
        """Whether it has waited where it was known to."""
        return self.line == self.candidate.line


class Releases:
    """Hands waiting runs to the queues, under the epoch of a leadership.

    Args:
        ledger: the dispatcher's.
        broker: where the queues are.
        engine: the settings of the engine.
        epoch: of the leadership; what is known is known under it and no other.
        costs: what runs are expected to take.
    """

    def __init__(self, ledger: Ledger, broker: redis.Redis, engine: Engine, epoch: int, costs: Costs) -> None:
        self._ledger = ledger
        self._broker = broker
        self._engine = engine
        self._epoch = epoch
        self._costs = costs
        self._fleet = Fleet(engine.buffer_milliseconds / 1000, costs)
        self._admission = Admission()
        self._unclaimed: set[UUID] = set()
        self._read_upto: str | None = None
        self._clock_offset = 0.0
        """Seconds from the monotonic clock to the database's."""
        self._broker_next = 0.0
        self._cut_short = False
        self._begin_orders([])

    def hear(self, bell: Bell | Ended | None) -> None:
        """Something waits that did not before, or a run has left its slot."""
        match bell:
            case Bell(line, candidate):
                self._rung(line, candidate)
            case Ended(run, fence, seconds) if flight := self._fleet.ended(run, fence):
                if seconds:
                    self._costs.learn(flight.line, seconds)
                self._landed(flight, seconds)

    def read(self) -> None:
        """Repair what bells lost: the tenants' terms, the fleet, what is in flight, what waits."""
        self._read_terms()
        new = self._read_fleet()
        self._survey()
        self._unread |= self._passed_over
        self._passed_over.clear()
        self._read_waiting()
        for flight in new:
            if order := self._orders.get(flight.line.queue):
                order.charge(flight.line.tenant, flight.line.key, flight.expected)

    def pause(self) -> float:
        """Seconds until there may be something to release that no bell will tell of."""
        now = time.monotonic()
        if now < self._broker_next:
            return self._broker_next - now
        more = self._unread or self._found or self._admission.unknown or self._cut_short or not self._surveyed
        if more and self._fleet.free():
            return 0.0
        opening = self._admission.next_opening()
        return self._engine.sweep_seconds if opening is None else max(0.0, opening - self._clock_offset - now)

    def unclaimed(self, changes: Iterable[Change]) -> None:
        """These were released and not claimed in time: they have used nothing."""
        self._unclaimed.update(change.run for change in changes)
        self._fleet.narrow({change.queue for change in changes})

    def queued(self, changes: Iterable[Change]) -> None:
        """These may wait now: nobody rings for what the dispatcher itself has moved."""
        for candidate in waiting.candidates(self._ledger, [one for one in changes if one.state == RunState.QUEUED]):
            self._rung(candidate.line, candidate)

    def release(self) -> list[Change]:
        """Release as much as can start now, in fair order. Returns what was released.

        Raises:
            NotLeading: the epoch is over.
        """
        if time.monotonic() < self._broker_next:
            return []
        if not self._surveyed and not self._found:
            self._survey()
        self._read_waiting()
        self._cut_short = False
        self._admission.now = time.monotonic() + self._clock_offset
        for tenant, key in self._admission.opened():
            for order in self._every_order:
                order.wake(tenant, key)
        released: list[Change] = []
        for pool, order in zip(self._fleet.pools(), self._every_order, strict=True):
            while time.monotonic() >= self._broker_next:
                self._read_rates()
                picked = order.pick(self._fleet.room(pool), _BATCH, self._costs.of, self._admission)
                self._cut_short |= order.unfinished
                if not picked:
                    break
                done = self._release(picked)
                released += done
                self._look_deeper(picked)
                if len(done) < len(picked):
                    # All that is known may have been cancelled: the rest is for the next round, which follows at once.
                    self._cut_short = True
                    break
        return released

    def _begin_orders(self, pools: list[Pool]) -> None:
        """Begin an order of its own for each pool, of which nothing is known yet."""
        self._orders: dict[str, FairOrder] = {}
        self._every_order: list[FairOrder] = []
        """As the fleet's pools."""
        for pool in pools:
            order = FairOrder(self._admission.weights)
            self._every_order.append(order)
            self._orders.update(dict.fromkeys(pool.queues, order))
        self._unread: dict[Line, None] = {}
        """Lines that have changed."""
        self._found: dict[Line, None] = {}
        """Lines that the survey has found."""
        self._passed_over: dict[Line, None] = {}
        """Lines whose first run was held by another, until the next sweep."""
        self._deeper: dict[Line, Candidate] = {}
        """Lines of which more waits than is known, and the last run that is."""
        self._read_until: Line | None = None
        self._surveyed = False
        """Whether all lines have been looked for once."""

    def _read_terms(self) -> None:
        """What tenants go by, and what time it is by the database's clock."""
        found = terms.read(self._ledger, self._read_upto)
        self._clock_offset = found.now - time.monotonic()
        self._admission.now = found.now
        for tenant, agreed in found.terms.items():
            self._admission.agree(tenant, agreed)
            for order in self._every_order:
                order.wake_all(tenant)
        self._read_upto = found.upto

    def _read_rates(self) -> None:
        """Read how far the rates are used that are asked for: who waits for that must not lose its turn meanwhile."""
        unknown = dict(self._admission.unknown)
        if unknown:
            self._admission.restore(terms.arrivals(self._ledger, unknown))
        for (tenant, _, _), key in unknown.items():
            for order in self._every_order:
                order.wake(tenant, key)

    def _read_fleet(self) -> list[Flight]:
        """Read the fleet anew, and what bells have not told of it; what is in flight and not charged yet."""
        unclaimed, self._unclaimed = self._unclaimed, set()
        before = [sorted(pool.queues) for pool in self._fleet.pools()]
        new, gone = self._fleet.read(self._ledger, alive_seconds=self._engine.lease_seconds)
        self._admission.recount(flight.line for flight in self._fleet.flights())
        if [sorted(pool.queues) for pool in self._fleet.pools()] != before:
            self._begin_orders(self._fleet.pools())
            return self._fleet.flights()
        for (run, _), flight in gone.items():
            self._charge(flight, 0.0 if run in unclaimed else self._costs.of(flight.line))
        return new

    def _survey(self) -> None:
        """Find what waits and is not known: some more lines at every reading, and from the first on again."""
        found = waiting.lines(self._ledger, self._read_until, _LINES)
        self._read_until = found[-1] if len(found) == _LINES else None
        self._surveyed |= self._read_until is None
        for line in found:
            order = self._orders.get(line.queue)
            if order is not None and not order.known(line):
                self._found[line] = None

    def _rung(self, line: Line, candidate: Candidate | None) -> None:
        """Something waits in the line. Where all that waits is known, one run more can be taken from its bell."""
        order = self._orders.get(line.queue)
        fresh = line in self._unread or line in self._found or not self._surveyed
        if candidate is None or order is None or fresh or not self._fleet.knows(line):
            self._unread[line] = None
        elif (last := self._deeper.get(line)) is None or candidate < last:
            order.offer([candidate])
            self._admission.expect(line)

    def _read_waiting(self) -> None:
        """Look at the front of lines: of some at a time, and as far ahead as they are few."""
        chosen = [*islice(self._unread, _BATCH // 2), *islice(self._found, _BATCH // 2)]
        for line in chosen:
            self._unread.pop(line, None)
            self._found.pop(line, None)
        # What no worker has code for waits as if there were no worker; the survey asks again.
        lines = [line for line in dict.fromkeys(chosen) if line.queue in self._orders and self._fleet.knows(line)]
        if not lines:
            return
        most = max(_FEWEST_HEADS, min(_HEADS, _PORTION // len(lines)))
        for line, front in zip(lines, waiting.fronts(self._ledger, lines, most), strict=True):
            self._orders[line.queue].renew(line, front)
            if front:
                self._admission.expect(line)
            self._deeper.pop(line, None)
            if len(front) >= most:
                self._deeper[line] = front[-1]

    def _look_deeper(self, picked: Iterable[Candidate]) -> None:
        """A line whose known front has been released is read again, where there was more behind it."""
        for line in {candidate.line for candidate in picked}:
            if line in self._deeper and not self._orders[line.queue].known(line):
                self._unread[line] = None
        if self._unread:
            self._read_waiting()

    def _landed(self, flight: Flight, seconds: float) -> None:
        """A run takes up nothing more: what it took is charged, and who waited for its place is asked again."""
        self._admission.vacate(flight.line)
        self._charge(flight, seconds)

    def _charge(self, flight: Flight, seconds: float) -> None:
        line = flight.line
        if order := self._orders.get(line.queue):
            order.charge(line.tenant, line.key, seconds - flight.expected)
        self._wake(line)

    def _wake(self, line: Line) -> None:
        """A place under the limits of this line is free: they may cover queues of other pools too."""
        for order in self._every_order:
            order.wake(line.tenant, line.key)

    def _release(self, picked: list[Candidate]) -> list[Change]:
        arrivals = self._admission.arrivals(candidate.line for candidate in picked)
        rows = self._ledger.call(
            "SELECT * FROM release_runs(%s, %s, %s, %s, %s, %s, %s, %s)",
            SHARD,
            self._epoch,
            [candidate.line.tenant for candidate in picked],
            [candidate.run for candidate in picked],
            [tenant for tenant, _, _ in arrivals],
            [limit for _, limit, _ in arrivals],
            [key or "" for _, _, key in arrivals],
            list(arrivals.values()),
        )
        found = {row[1]: row for row in rows}
        released = []
        for candidate in picked:
            if candidate.run in found:
                tenant, _, task, queue, key, *told = found[candidate.run]
                released.append(_Released(candidate, Line(tenant, queue, task, key), *told))
            else:
                self._not_released(candidate)
        # A bell that told of it in another line than its own was not one of ours: it has not counted where it should.
        self._take_back([one for one in released if not one.as_wanted])
        return self._publish([one for one in released if one.as_wanted])

    def _not_released(self, candidate: Candidate) -> None:
        """It counts for nothing. Its line is read anew with the next sweep: until then nothing may have changed."""
        line = candidate.line
        self._admission.untake(candidate)
        self._orders[line.queue].charge(line.tenant, line.key, -self._costs.of(line))
        self._wake(line)
        self._passed_over[line] = None

    def _publish(self, released: list[_Released]) -> list[Change]:
        """Hand the released runs to their queues; what the broker refuses goes back into the ledger's queue."""
        answers = publish.push(self._broker, [(one.line.queue, self._message(one)) for one in released])
        refused = [one for one, answer in zip(released, answers, strict=True) if answer]
        for one, answer in zip(released, answers, strict=True):
            if not answer:
                flight = Flight(one.line, self._costs.of(one.line), [one.line.queue])
                self._fleet.released(one.candidate.run, one.fence, flight)
        if refused:
            log.warning("broker_refused", error=min(filter(None, answers)), runs=len(refused))
            self._broker_next = time.monotonic() + _BROKER_PAUSE_SECONDS
            self._take_back(refused)
        return [
            Change(
                one.line.tenant, one.candidate.run, RunState.RELEASED, one.sequence, one.attempt, one.at, one.line.queue
            )
            for one in released
        ]

    def _message(self, one: _Released) -> bytes:
        release = Release(one.line.tenant, one.candidate.run, one.line.task, one.line.queue, one.fence)
        return messages.encode(release, self._engine.grant_keys, one.at.timestamp() + self._engine.grant_seconds)

    def _take_back(self, refused: list[_Released]) -> None:
        if not refused:
            return
        self._ledger.call(
            "SELECT unrelease_runs(%s, %s, %s, %s, %s)",
            SHARD,
            self._epoch,
            [one.line.tenant for one in refused],
            [one.candidate.run for one in refused],
            [one.fence for one in refused],
        )
        for one in refused:
            self._not_released(one.candidate)
            self._unread[one.line] = None
