"""Effects outside, at most once: the row before the call, the answer after it, each in a fenced commit of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from tasks.engine.ledger import Ledger
from tasks.engine.outcomes import Busy, Fail
from tenants import ids

Call = Callable[[str], Any]
"""Does something outside under an idempotency key, and returns the provider's answer, JSON."""
LookUp = Callable[[str], Any | None]
"""Asks a provider for the answer that it gave under an idempotency key; None if it knows of none."""
_BUSY_SECONDS = 5.0


class Unconfirmed(Fail):
    """No answer came to an earlier call, and the provider can't be asked whether it was done."""


class NotDone(Exception):
    """Raised by a call that knows that nothing happened outside, so that it may be tried again."""


@dataclass(frozen=True, slots=True)
class Door:
    """The second connection of an attempt, for its effects."""

    ledger: Ledger
    tenant: UUID
    run: UUID
    fence: int
    effects_of: UUID
    """The run whose effects it shares: itself, or the one that it repeats."""


def once(door: Door, name: str, call: Call, look_up: LookUp | None = None, *, repeatable: bool = False) -> Any:
    """Do something outside at most once.

    Args:
        name: the effect's name: every attempt and every replay shares it.
        call: does it; gets the idempotency key for the provider; raises NotDone where nothing happened.
        look_up: asks the provider for the answer under the idempotency key; None if it knows of none.
        repeatable: the provider knows the idempotency key again, so that the call may be repeated.

    Raises:
        Unconfirmed: no answer came to an earlier call, there is no look-up, and it must not be repeated.
        Busy: another run that shares the effect is about to do it.
        Cancel: the run is to be cancelled.
        Fenced: the attempt has been replaced.
    """
    key = f"{door.effects_of}:{name}"
    idempotency_key = hashlib.sha256(f"{door.tenant}:{key}".encode()).hexdigest()
    fresh, busy, confirmed, answer = door.ledger.call(
        "SELECT * FROM begin_effect(%s, %s, %s, %s, %s)", door.tenant, door.run, door.fence, key, ids.new()
    )[0]
    if confirmed:
        return answer
    if busy:
        raise Busy(_BUSY_SECONDS, f"another run is about to do {name!r}")
    if not fresh:
        if look_up is None and not repeatable:
            raise Unconfirmed(
                f"The effect {name!r} was begun by an earlier attempt, to which no answer came, and can't be looked up:"
                " it may have been done, and is not repeated. Look for yourself whether it was; if it was not,"
                " retry the run with repeatEffects."
            )
        found = look_up(idempotency_key) if look_up is not None else None
        if found is not None:
            return _finish(door, key, found)
    try:
        answer = call(idempotency_key)
    except NotDone as error:
        door.ledger.call("SELECT forget_effect(%s, %s, %s, %s)", door.tenant, door.run, door.fence, key)
        raise error.__cause__ or error from None
    return _finish(door, key, answer)


def _finish(door: Door, key: str, answer: Any) -> Any:
    door.ledger.call(
        "SELECT finish_effect(%s, %s, %s, %s, %s)",
        door.tenant,
        door.run,
        door.fence,
        key,
        orjson.dumps(answer).decode(),
    )
    return answer
