"""What is sent to wear the service out is refused cheaply, and nobody else notices."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx2
import pytest
from websockets.exceptions import InvalidStatus

from benchmarks.measure import cpu_seconds
from tenants import ids
from tenants.context import Principal
from tests.support import apis, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation, eventually
from tests.support.tiers import Tier

LONGEST_SECONDS = 0.1
"""Of the server's processor, for one request: twice what it takes on a slow machine."""
PLACES = 50
SOCKETS = {"TENANTRY_API__SOCKETS_PER_TENANT": str(PLACES), "TENANTRY_API__SOCKETS_PER_ADDRESS": str(PLACES)}


def _fragments(levels: int) -> str:
    parts = [f"fragment f{n} on Run {{ ...f{n + 1} x{n}: origin {{ ...f{n + 1} }} }}" for n in range(levels)]
    return "{ run(id: 1) { ...f0 } } " + " ".join(parts) + f" fragment f{levels} on Run {{ id }}"


QUERIES = {
    "10,000 aliases": "{ " + " ".join(f"a{n}: __typename" for n in range(10_000)) + " }",
    "1,000 levels": "{ run(id: 1) { " + "origin { " * 1000 + "id" + " }" * 1000 + " } }",
    "10,000 fields of one name": "{ " + "__typename " * 10_000 + "}",
    "as many as may be told apart": "{ " + "viewer { kind email scopes } " * 380 + "}",
    "10,000 directives": "{ " + "__typename @skip(if: false) " * 2000 + "}",
    "doubling fragments": _fragments(40),
    "a circle": "{ run(id: 1) { ...a } } fragment a on Run { ...b } fragment b on Run { ...a }",
    "comments": "{ __typename " + "#\n" * 30_000 + "}",
    "text of a megabyte": '{ run(id: "' + "x" * 1_000_000 + '") { id } }',
    "introspection": "{ __schema { types { " + "fields { type { " * 8 + "name" + " } }" * 8 + " } } }",
    "too many rows": "{ runs(first: 100) { nodes { "
    + " ".join(f"a{n}: events(first: 100) {{ nodes {{ at }} }}" for n in range(25))
    + " } } }",
}


def _cost(api: Api, attack: Callable[[], httpx2.Response], times: int = 5) -> tuple[float, set[int]]:
    """The server's processor time for one of these, and how they were answered."""
    pid = api.installation.processes[api.name].pid
    attack()
    before = cpu_seconds(pid)
    statuses = {attack().status_code for _ in range(times)}
    return (cpu_seconds(pid) - before) / times, statuses


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_that_asks_too_much_is_refused_cheaply(api: Api, tenant: Principal, name: str) -> None:
    caller = api.caller(tenant)
    number = iter(range(100))

    def attack() -> httpx2.Response:
        answer = caller.post(QUERIES[name] + f"#{next(number)}")  # Never the same text twice.
        assert answer.json()["errors"]
        return answer

    seconds, statuses = _cost(api, attack)
    assert seconds < LONGEST_SECONDS
    assert max(statuses) < 500
    assert api.caller(tenant).ask("{ viewer { kind } }")


def test_a_body_of_ten_megabytes_is_refused_cheaply(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    body = b'{"query": "{ __typename }", "variables": {"a": "' + b"x" * 10_000_000 + b'"}}'

    def attack() -> httpx2.Response:
        headers = {**caller.headers, "Content-Type": "application/json"}
        try:
            return caller.client.post(f"{api.url}/graphql", content=body, headers=headers)
        except (httpx2.WriteError, httpx2.ReadError):
            return httpx2.Response(413)  # It was not even taken.

    seconds, statuses = _cost(api, attack)
    assert seconds < LONGEST_SECONDS
    assert statuses == {413}
    assert caller.ask("{ viewer { kind } }")


@pytest.fixture(scope="module")
def roomy(installation: Installation) -> Iterator[Api]:
    """An API on which a tenant has few places for sockets."""
    with apis.running(installation, "roomy", **SOCKETS) as started:
        yield started


def _try(caller: Caller, count: int) -> list[int]:
    """How that many sockets, one after the other, are closed."""
    closed = []
    for _ in range(count):
        with streams.socket(caller, begun=False) as socket:
            socket.send({"type": "connection_init", "payload": {"authorization": f"Bearer {caller.credential}"}})
            closed.append(socket.closed())
    return closed


@pytest.mark.timeout(1800)
def test_a_tenant_with_too_many_sockets_is_refused_cheaply_and_others_are_let_in(
    roomy: Api, tenant: Principal, other_tenant: Principal, tier: Tier
) -> None:
    attacker, other = roomy.caller(tenant), roomy.caller(other_tenant)
    pid, attempts = roomy.installation.processes[roomy.name].pid, tier(200, 10_000)
    with ExitStack() as stack:
        for _ in range(PLACES):
            stack.enter_context(streams.socket(attacker)).subscribe(streams.ALL_UPDATES)
        before = cpu_seconds(pid)
        assert set(_try(attacker, attempts)) == {1013}
        assert (cpu_seconds(pid) - before) / attempts < LONGEST_SECONDS / 5
        with streams.socket(other) as socket:
            socket.subscribe("{ viewer { kind } }")
            assert socket.receive()["type"] == "next"
        assert attacker.ask("{ viewer { kind } }")
    with streams.socket(attacker) as socket:  # The places are free again.
        socket.subscribe("{ viewer { kind } }")
        assert socket.receive()["type"] == "next"


def test_an_address_that_opens_sockets_and_says_nothing_is_refused_at_the_handshake(
    roomy: Api, tenant: Principal
) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(streams.socket(roomy.stranger(), begun=False)) for _ in range(PLACES)]
        with pytest.raises(InvalidStatus) as refused, streams.socket(roomy.stranger(), begun=False):
            pass
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["retry-after"]
        assert silent[0].closed() == 4408
    with streams.socket(roomy.caller(tenant)):
        pass


FLOODS: dict[str, Callable[[Api, Caller, httpx2.Client], httpx2.Response]] = {
    "queries that ask too much": lambda api, attacker, client: client.post(
        f"{api.url}/graphql",
        json={"query": QUERIES[random.choice(["10,000 aliases", "doubling fragments", "too many rows"])]},
        headers=attacker.headers,
    ),
    "dear queries": lambda api, attacker, client: client.post(
        f"{api.url}/graphql",
        json={"query": "{ runs(first: 100) { nodes { id events(first: 50) { nodes { at } } } } }"},
        headers=attacker.headers,
    ),
    "wrong passwords": lambda api, attacker, client: client.post(
        f"{api.url}/auth/login", json={"tenant": "t", "email": "a@example.org", "password": "not the password"}
    ),
    "keys that are none": lambda api, attacker, client: client.post(
        f"{api.url}/graphql", json={"query": OTHERS}, headers={"Authorization": f"Bearer tnt_live_{ids.new().hex}"}
    ),
}
OTHERS = "{ runs { nodes { id } } viewer { kind } }"
ASKED = 40


def _ask(other: Caller) -> None:
    """Ask as somebody who has nothing to do with it, and get every answer."""
    for _ in range(ASKED):
        assert other.ask(OTHERS).keys() == {"runs", "viewer"}


@pytest.mark.parametrize("name", FLOODS)
def test_others_are_served_while_one_attacks(api: Api, tenant: Principal, other_tenant: Principal, name: str) -> None:
    attacker, other = api.caller(tenant), api.caller(other_tenant)
    stop, answers = threading.Event(), list[httpx2.Response]()
    pid = api.installation.processes[api.name].pid
    _ask(other)

    def attack() -> None:
        with httpx2.Client(trust_env=False, timeout=30) as client:
            while not stop.is_set():
                answers.append(FLOODS[name](api, attacker, client))

    threads = [threading.Thread(target=attack) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(answers) > 4)
        before, seconds = len(answers), cpu_seconds(pid)
        _ask(other)
        went_on, seconds = len(answers) - before, cpu_seconds(pid) - seconds
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert went_on, "the attack went on all the time"
    assert seconds / (went_on + ASKED) < LONGEST_SECONDS, "what is refused is refused cheaply, and holds nobody up"
    assert {answer.status_code for answer in answers} <= {200, 400, 401, 413, 429, 503}
    assert not [answer for answer in answers if "INTERNAL_SERVER_ERROR" in answer.text]
