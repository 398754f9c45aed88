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

_BUSY_SECONDS = 5.0


class Unconfirmed(Fail):
    """An attempt died between the call and its answer, and the provider can't be asked whether it was done."""


class NotDone(Exception):
    """Raised by a call that knows that nothing happened outside, so that it may be tried again."""


@dataclass(frozen=True, slots=True)
class Door:
    """The second connection of an attempt, for its effects."""

    ledger: Ledger
    tenant: UUID
    run: UUID
    fence: int


def once(door: Door, key: str, call: Callable[[str], Any], look_up: Callable[[str], Any | None] | None = None) -> Any:
    """Do something outside at most once.

    Args:
        key: the origin run and the effect's name: every attempt and every replay shares it.
        call: does it; gets the idempotency key for the provider; raises NotDone where nothing happened.
        look_up: asks the provider for the answer under the idempotency key; None if it knows of none.

    Raises:
        Unconfirmed: an earlier attempt died in between and there is no look-up.
        Busy: another run of the same origin is about to do it.
        Fenced: the attempt has been replaced.
    """
    idempotency_key = hashlib.sha256(f"{door.tenant}:{key}".encode()).hexdigest()
    fresh, busy, confirmed, answer = door.ledger.call(
        "SELECT * FROM begin_effect(%s, %s, %s, %s, %s)", door.tenant, door.run, door.fence, key, ids.new()
    )[0]
    if confirmed:
        return answer
    if busy:
        raise Busy(_BUSY_SECONDS, f"another run is about to do {key}")
    if not fresh:
        if look_up is None:
            raise Unconfirmed(f"The effect {key} was begun by an attempt that died, and can't be looked up.")
        found = look_up(idempotency_key)
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
