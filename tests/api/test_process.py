"""The API as a process: when it refuses to start, how it stops, and what it hides in production."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from tenants.context import Principal
from tests.support import apis, streams
from tests.support.apis import Api
from tests.support.installations import Installation, eventually

TRIGGER = 'mutation { triggerBackgroundTask(taskName: "echo", args: {value: 1}) { success } }'


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("DATABASE_URL", "", "DATABASE_URL is not set"),
        ("TENANTRY_AUTH__TOKEN_KEYS", "{}", "TENANTRY_AUTH__TOKEN_KEYS is not set"),
        ("TENANTRY_AUTH__LINK_KEYS", "{}", "TENANTRY_AUTH__LINK_KEYS is not set"),
        ("TENANTRY_AUTH__CREDENTIAL_KEYS", "{}", "TENANTRY_AUTH__CREDENTIAL_KEYS is not set"),
        ("TENANTRY_AUTH__KEY_PEPPER", "", "TENANTRY_AUTH__KEY_PEPPER is not set"),
        ("TENANTRY_API__BODY_BYTES", "many", "TENANTRY_API__BODY_BYTES"),
        (
            "DATABASE_URL",
            "postgresql://nobody:hunter2@127.0.0.1:1/nothing",
            "The database of DATABASE_URL can't be used",
        ),
    ],
)
def test_a_wrong_configuration_ends_the_start_with_one_sentence(
    installation: Installation, variable: str, value: str, sentence: str
) -> None:
    process = installation.start("wrong", "uvicorn", "--factory", "api.app:create", "--port", "0", **{variable: value})
    assert process.wait(20) != 0
    printed = installation.log("wrong")
    assert printed.strip().splitlines()[-1].startswith(sentence)
    assert "hunter2" not in printed
    assert "Traceback" not in printed
    (installation.folder / "wrong.log").unlink()
    del installation.processes["wrong"]


def test_a_login_that_bypasses_the_policies_is_refused(installation: Installation) -> None:
    address = installation.addresses.owner
    process = installation.start("owner", "uvicorn", "--factory", "api.app:create", "--port", "0", DATABASE_URL=address)
    assert process.wait(20) != 0
    assert "use tenantry_app" in installation.log("owner")
    assert "Traceback" not in installation.log("owner")


def test_a_signal_ends_open_streams_at_once(installation: Installation, tenant: Principal) -> None:
    with apis.running(installation, "stopping") as api:
        caller = api.caller(tenant)
        seen: list[tuple[str, Any]] = []
        hears = threading.Event()

        def listen() -> None:
            with streams.events(caller, streams.ALL_UPDATES) as events:
                for event in events:
                    seen.append(event)
                    hears.set()

        listener = threading.Thread(target=listen)
        listener.start()
        eventually(lambda: caller.ask(TRIGGER) and hears.wait(0.1))
        with streams.socket(caller) as socket:
            socket.subscribe(streams.ALL_UPDATES)
            socket.subscribe("{ __typename }", "2")
            assert socket.receive()["id"] == "2"
            started = time.monotonic()
            installation.kill(api.name, signal.SIGTERM, group=False)
            assert socket.closed() in {1001, 1006, 1012}
            listener.join(5)
            assert not listener.is_alive()
            assert installation.processes[api.name].wait(5) is not None
            assert time.monotonic() - started < 5
    (name, last), complete = seen[-2:]
    assert (name, last["errors"][0]["extensions"]["code"]) == ("next", "UNAVAILABLE")
    assert complete == ("complete", None)


@pytest.fixture(scope="module")
def production(installation: Installation) -> Any:
    """An API as it is in production."""
    with apis.running(installation, "production", TENANTRY_ENVIRONMENT="production") as started:
        yield started


def test_production_shows_neither_the_schema_nor_the_page_nor_what_is_near(production: Api) -> None:
    stranger = production.stranger()
    assert "data" not in stranger.post("{ __schema { queryType { name } } }").json()
    assert "Did you mean" not in stranger.post("{ viewr { kind } }").text
    page = production.client.get(f"{production.url}/graphql", headers={"Accept": "text/html"})
    assert (page.status_code, page.json()["errors"][0]["extensions"]["code"]) == (404, "BAD_USER_INPUT")
