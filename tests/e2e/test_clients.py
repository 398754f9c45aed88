"""The whole stack, watched by the clients that the protocols' own authors publish."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tenants.context import Principal
from tests.support import apis, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation

CLIENTS = Path(__file__).parent / "clients"
TRIGGER = (
    'mutation($a: JSON) { triggerBackgroundTask(taskName: "diagnostics.sleep", args: $a, delaySeconds: 0.5)'
    " { taskId } }"
)
PROTOCOLS = ["graphql-ws", "graphql-sse"]


@pytest.fixture(scope="module")
def api(installation: Installation) -> Iterator[Api]:
    """The whole stack."""
    installation.start_worker()
    installation.start_dispatcher()
    installation.lead()
    with apis.running(installation) as started:
        yield started


class Watch:
    """A client at work."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def lines(self) -> Iterator[tuple[str, Any]]:
        """What it prints, until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            printed = json.loads(line)
            yield printed["event"], printed.get("value")


@pytest.fixture
def watch(node: str, api: Api) -> Callable[..., Any]:
    """Starts a stock client with a subscription."""

    @contextmanager
    def start(protocol: str, caller: Caller, query: str, **variables: Any) -> Iterator[Watch]:
        command = [
            node,
            "watch.mjs",
            protocol,
            f"{api.url}/graphql",
            caller.credential or "",
            query,
            json.dumps(variables),
        ]
        with subprocess.Popen(command, cwd=CLIENTS, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield Watch(process)
            finally:
                process.kill()

    return start


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stock_client_sees_a_run_from_its_start_to_its_end(
    api: Api, tenant: Principal, watch: Callable[..., Any], protocol: str
) -> None:
    caller = api.caller(tenant)
    run = caller.ask(TRIGGER, a={"seconds": 2.5, "steps": 5})["triggerBackgroundTask"]["taskId"]
    with watch(protocol, caller, streams.UPDATES, id=run) as client:
        printed = [*client.lines()]
    updates = [value["data"]["taskUpdates"] for event, value in printed if event == "next"]
    assert printed[-1 if protocol == "graphql-sse" else -2][0] == "complete"
    assert "error" not in {event for event, _ in printed}
    changes = [update for update in updates if update["kind"] != "PROGRESS"]
    assert changes[0]["kind"] == "SNAPSHOT"
    sequences = [update["sequence"] for update in changes]
    assert sequences == [*range(sequences[0], sequences[0] + len(sequences))]
    assert [update["state"] for update in changes][-2:] == ["RUNNING", "SUCCEEDED"]
    assert [update for update in updates if update["kind"] == "PROGRESS" and 0 < update["progress"]["fraction"] <= 1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stock_client_is_told_that_a_foreign_run_does_not_exist(
    api: Api, tenant: Principal, other_tenant: Principal, watch: Callable[..., Any], protocol: str
) -> None:
    run = api.caller(other_tenant).ask(TRIGGER, a={"seconds": 0})["triggerBackgroundTask"]["taskId"]
    with watch(protocol, api.caller(tenant), streams.UPDATES, id=run) as client:
        printed = dict(client.lines())
    told = printed["error"] if protocol == "graphql-ws" else printed["next"]["errors"]
    assert "NOT_FOUND" in json.dumps(told) or "no such object" in json.dumps(told)


def test_a_stock_client_stops_at_a_refused_credential_and_does_not_come_back(
    api: Api, watch: Callable[..., Any]
) -> None:
    nobody = Caller(api.url, api.client, "nonsense")
    with watch("graphql-ws", nobody, streams.ALL_UPDATES) as client:
        events = [*client.lines()]
    assert ("closed", 4401) in events
    assert ("error", 4401) in events
    assert "retry" not in {event for event, _ in events}
