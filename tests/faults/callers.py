"""A client as it should be: it repeats a mutation under its idempotency key until it is answered."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import httpx2

from tenants import ids
from tenants.context import Principal
from tests.support.apis import Api, Caller
from tests.support.installations import Installation

_TRIGGER = (
    "mutation($task: String!, $args: JSON!, $key: String!) {"
    " triggerBackgroundTask(taskName: $task, args: $args, idempotencyKey: $key)"
    " { success taskId problem { code message } } }"
)
_PAUSE_SECONDS = 0.2


class Patient:
    """Somebody of one tenant. What is answered for counts as accepted.

    Args:
        patience_seconds: how long it goes on trying.
        apis: which copies of the API there are: each try goes to the next of them, as behind a load balancer.
    """

    def __init__(
        self, installation: Installation, tenant: Principal, apis: Sequence[Api], patience_seconds: float = 60.0
    ) -> None:
        self._patience_seconds = patience_seconds
        self._installation = installation
        self._tenant = tenant
        self._callers = itertools.cycle([api.caller(tenant) for api in apis])
        self.slowest = 0.0
        """Seconds that the slowest of its tries took."""
        self.refusals: list[str] = []
        """Why a try was in vain; the client was told or could see that it may try again."""

    def trigger(self, task: str, args: Mapping[str, Any]) -> UUID:
        """Trigger a run; its id, once the API has told it."""
        variables = {"task": task, "args": dict(args), "key": f"key-{ids.new()}"}
        until = time.monotonic() + self._patience_seconds
        while (run := self._try(next(self._callers), variables)) is None:
            assert time.monotonic() < until, self.refusals[-5:]
            threading.Event().wait(_PAUSE_SECONDS)
        self._installation.accepted[run] = self._tenant.tenant
        return run

    def _try(self, caller: Caller, variables: dict[str, Any]) -> UUID | None:
        started = time.monotonic()
        try:
            answer = caller.post(_TRIGGER, variables)
        except httpx2.TransportError as error:
            self.refusals.append(type(error).__name__)
            return None
        finally:
            self.slowest = max(self.slowest, time.monotonic() - started)
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
            self.refusals.append("UNAVAILABLE")
            return None
        assert answer.status_code == 200, answer.text
        made = answer.json()["data"]["triggerBackgroundTask"]
        assert made["success"], made
        return ids.read("run", made["taskId"])
