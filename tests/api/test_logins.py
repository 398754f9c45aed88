"""Logging in with a password, refreshing, logging out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import httpx2
import pytest

from tenants import ids, members, signing
from tenants.context import Principal, Role
from tests.support import streams
from tests.support.apis import Api, Caller
from tests.support.installations import eventually
from tests.support.people import PASSWORD, People

TRIGGER = 'mutation { triggerBackgroundTask(taskName: "echo", args: {value: 1}) { problem { code } } }'
WHO = "{ viewer { kind email role scopes } }"


@pytest.fixture
def join(people: People) -> Callable[..., UUID]:
    """Makes members of the tenant."""
    return people.join


def _log_in(api: Api, slug: str, email: str, password: str = PASSWORD) -> httpx2.Response:
    return api.client.post(f"{api.url}/auth/login", json={"tenant": slug, "email": email, "password": password})


def _refresh(api: Api, token: str) -> httpx2.Response:
    return api.client.post(f"{api.url}/auth/refresh", json={"refreshToken": token})


def _caller(api: Api, token: str) -> Caller:
    return Caller(api.url, api.client, token)


def test_a_member_logs_in_and_is_who_they_are(api: Api, slug: str, join: Callable[..., UUID]) -> None:
    join("Ada@Example.org", Role.VIEWER)
    tokens = _log_in(api, slug, " ada@example.ORG ").json()
    assert tokens["expiresIn"] == 900
    viewer = _caller(api, tokens["accessToken"]).ask(WHO)["viewer"]
    assert (viewer["kind"], viewer["email"], viewer["role"]) == ("USER", "ada@example.org", "VIEWER")
    assert "runs:read" in viewer["scopes"]
    assert "runs:write" not in viewer["scopes"]


@pytest.mark.parametrize(
    ("role", "allowed", "denied"),
    [
        (Role.OWNER, {"*"}, set()),
        (Role.ADMIN, {"*"}, set()),
        (Role.MEMBER, {"runs:read", "runs:write", "sales:read", "sales:write"}, {"keys:manage", "*", "tenant:write"}),
        (Role.VIEWER, {"runs:read", "sales:read", "schedules:read"}, {"runs:write", "sales:write", "keys:manage"}),
    ],
)
def test_a_role_is_worth_its_scopes(
    api: Api, slug: str, join: Callable[..., UUID], role: Role, allowed: set[str], denied: set[str]
) -> None:
    join(f"{role.lower()}@example.org", role)
    token = _log_in(api, slug, f"{role.lower()}@example.org").json()["accessToken"]
    scopes = set(_caller(api, token).ask(WHO)["viewer"]["scopes"])
    assert allowed <= scopes
    assert not denied & scopes


def test_a_refused_login_is_the_same_answer_in_about_the_same_time(
    api: Api, slug: str, join: Callable[..., UUID]
) -> None:
    join("grace@example.org")
    times: dict[str, list[float]] = {}
    answers = set()
    for _ in range(3):
        for name, attempt in {
            "wrong password": (slug, "grace@example.org", "a wrong password"),
            "unknown address": (slug, "nobody@example.org", PASSWORD),
            "unknown tenant": ("nowhere", "grace@example.org", PASSWORD),
        }.items():
            started = time.perf_counter()
            answer = _log_in(api, *attempt)
            times.setdefault(name, []).append(time.perf_counter() - started)
            answers.add((answer.status_code, json.dumps(answer.json())))
    assert len(answers) == 1
    assert next(iter(answers))[0] == 401
    fastest = [min(measured) for measured in times.values()]
    assert min(fastest) > max(fastest) / 3, times


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"tenant": "a", "email": "b"},
        {"tenant": "a", "email": "b@c", "password": 5},
        {"tenant": "a\0", "email": "b@c", "password": "x"},
        {"tenant": "a", "email": "b@c", "password": "x" * 5000},
        [],
        "text",
    ],
    ids=str,
)
def test_a_login_that_is_none_is_refused(api: Api, body: object) -> None:
    answer = api.client.post(f"{api.url}/auth/login", json=body)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


def test_a_form_cannot_log_in(api: Api) -> None:
    answer = api.client.post(f"{api.url}/auth/login", data={"tenant": "a", "email": "b@c", "password": "x"})
    assert answer.status_code == 400


@pytest.mark.parametrize("email", ["' OR 1=1 --", "a" * 1000 + "@x", "*)(uid=*", "<b>@x</b>", "user+tag@example.org"])
def test_a_strange_address_is_a_refused_login(api: Api, slug: str, email: str) -> None:
    assert _log_in(api, slug, email).status_code == 401


def test_ten_failures_make_the_next_wait_and_the_right_password_works_after_it(
    api: Api, slug: str, join: Callable[..., UUID]
) -> None:
    join("alan@example.org")
    codes = [_log_in(api, slug, "alan@example.org", "a wrong password").status_code for _ in range(10)]
    assert codes == [401] * 10
    waiting = _log_in(api, slug, "alan@example.org")
    assert waiting.status_code == 429
    assert _log_in(api, slug, "somebody-else@example.org").status_code == 401
    assert int(waiting.headers["retry-after"]) >= 1
    assert waiting.json()["errors"][0]["extensions"]["code"] == "RATE_LIMITED"
    eventually(lambda: _log_in(api, slug, "alan@example.org").status_code == 200, 5, every=0.2)


def test_a_refresh_token_works_once_and_its_second_use_ends_the_login(
    api: Api, slug: str, join: Callable[..., UUID]
) -> None:
    join("edsger@example.org")
    first = _log_in(api, slug, "edsger@example.org").json()
    second = _refresh(api, first["refreshToken"]).json()
    assert second["refreshToken"] != first["refreshToken"]
    lost = _refresh(api, first["refreshToken"]).json()
    assert lost["refreshToken"] == second["refreshToken"], "the answer may have been lost: for a moment it comes again"
    third = _refresh(api, second["refreshToken"]).json()
    with streams.socket(_caller(api, third["accessToken"])) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        stolen = _refresh(api, first["refreshToken"])
        assert (stolen.status_code, stolen.json()["errors"][0]["extensions"]["reason"]) == (401, "revoked")
        assert _refresh(api, third["refreshToken"]).status_code == 401
        assert socket.closed(6) == 4401
    eventually(lambda: _caller(api, third["accessToken"]).post(WHO).status_code == 401, 5)


@pytest.mark.parametrize("change", [lambda token: token[:-2] + "xx", lambda token: "x" + token, lambda _: "a.b.c"])
def test_a_forged_refresh_token_is_refused_and_ends_nothing(
    api: Api, slug: str, join: Callable[..., UUID], change: Callable[[str], str]
) -> None:
    join("barbara@example.org")
    tokens = _log_in(api, slug, "barbara@example.org").json()
    assert _refresh(api, change(tokens["refreshToken"])).status_code == 401
    assert _refresh(api, tokens["refreshToken"]).status_code == 200


def test_strangers_elsewhere_keep_nobody_out(api: Api, slug: str, join: Callable[..., UUID]) -> None:
    join("victim@example.org")

    def log_in(address: str, password: str = PASSWORD) -> int:
        body = {"tenant": slug, "email": "victim@example.org", "password": password}
        return api.client.post(f"{api.url}/auth/login", json=body, headers={"X-Forwarded-For": address}).status_code

    assert log_in("198.51.100.1") == 200
    assert {log_in(f"203.0.113.{number}", "a wrong password") for number in range(13)} == {401}
    assert log_in("198.51.100.2") == 200, "a few failures elsewhere are nothing to another network"
    refused = [log_in(f"203.0.113.{number}", "a wrong password") for number in range(120)]
    assert set(refused) == {401, 429}, "many are, to one that the person has never come from"
    assert log_in("198.51.100.1") == 200


def test_of_many_who_guess_at_once_ten_are_heard(api: Api, slug: str, join: Callable[..., UUID]) -> None:
    join("ida@example.org")
    body = {"tenant": slug, "email": "ida@example.org", "password": "a wrong password"}

    def guess(_: int) -> int:
        with httpx2.Client(timeout=60, trust_env=False) as client:
            return client.post(f"{api.url}/auth/login", json=body).status_code

    with ThreadPoolExecutor(30) as threads:
        codes = list(threads.map(guess, range(30)))
    assert codes.count(401) < 16, "ten, and then more and more slowly"
    assert 429 in codes


def test_who_shares_a_network_of_ipv6_waits_for_the_failures_of_all_in_it(api: Api, slug: str) -> None:
    forged = f"{api.url}/auth/{slug}/oidc/corp/callback?state=forged"
    for host in range(100):
        assert api.client.get(forged, headers={"X-Forwarded-For": f"2001:db8:0:1::{host:x}"}).status_code == 401

    def log_in(address: str, number: int) -> int:
        body = {"tenant": slug, "email": f"nobody-{number}@example.org", "password": "a wrong password"}
        answer = api.client.post(f"{api.url}/auth/login", json=body, headers={"X-Forwarded-For": address})
        return answer.status_code

    assert log_in("2001:db8:0:2::1", 0) == 401
    assert 429 in {log_in("2001:db8:0:1::ffff", number) for number in range(1, 6)}


@pytest.mark.parametrize("by", ["refresh token", "access token"])
def test_logging_out_ends_the_login_within_five_seconds(
    api: Api, slug: str, join: Callable[..., UUID], by: str
) -> None:
    join("tony@example.org")
    tokens = _log_in(api, slug, "tony@example.org").json()
    caller = _caller(api, tokens["accessToken"])
    assert caller.post(WHO).status_code == 200
    if by == "access token":
        answer = api.client.post(f"{api.url}/auth/logout", headers=caller.headers)
    else:
        answer = api.client.post(f"{api.url}/auth/logout", json={"refreshToken": tokens["refreshToken"]})
    assert answer.status_code == 204
    eventually(lambda: caller.post(WHO).status_code == 401, 5)
    assert _refresh(api, tokens["refreshToken"]).status_code == 401


def test_a_removed_members_socket_is_closed(api: Api, tenant: Principal, slug: str, join: Callable[..., UUID]) -> None:
    join("owner@example.org")
    leaver = join("donald@example.org", Role.MEMBER)
    tokens = _log_in(api, slug, "donald@example.org").json()
    with streams.socket(_caller(api, tokens["accessToken"])) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        api.installation.write(tenant, members.remove, leaver, [])
        assert socket.closed(6) == 4401


def test_the_socket_of_a_demoted_member_ends_and_a_new_one_is_worth_less(
    api: Api, tenant: Principal, slug: str, join: Callable[..., UUID]
) -> None:
    member = join("niklaus@example.org", Role.MEMBER)
    caller = _caller(api, _log_in(api, slug, "niklaus@example.org").json()["accessToken"])
    with streams.socket(caller) as socket:
        socket.subscribe(TRIGGER)
        [before] = socket.updates("triggerBackgroundTask")
        assert before["problem"] is None
        api.installation.write(tenant, members.join, member, Role.VIEWER)
        assert socket.closed(6) == 4401
    with streams.socket(caller) as socket:
        socket.subscribe(TRIGGER)
        [after] = socket.updates("triggerBackgroundTask")
        assert after["problem"] == {"code": "FORBIDDEN"}


def test_a_socket_ends_with_its_token_and_may_come_back_with_a_new_one(
    api: Api, slug: str, join: Callable[..., UUID]
) -> None:
    join("leslie@example.org")
    auth = api.installation.settings.auth
    token = signing.read_access(auth, _log_in(api, slug, "leslie@example.org").json()["accessToken"])
    short = signing.issue(auth.model_copy(update={"access_token_seconds": 2}), token.tenant, token.session)
    with streams.socket(_caller(api, short)) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        started = time.monotonic()
        assert socket.closed(7) == 4403
        assert time.monotonic() - started < 7
    with streams.socket(_caller(api, short), begun=False) as late:
        late.send({"type": "connection_init", "payload": {"authorization": f"Bearer {short}"}})
        assert late.closed() == 4403
    assert _caller(api, short).post(WHO).json()["errors"][0]["extensions"]["reason"] == "expired"


def test_a_token_of_another_installation_is_refused(api: Api, tenant: Principal) -> None:
    theirs = signing.issue(
        api.installation.settings.auth.model_copy(update={"issuer": "elsewhere"}), tenant.tenant, ids.new()
    )
    mine_without_a_login = signing.issue(api.installation.settings.auth, tenant.tenant, ids.new())
    for token in (theirs, mine_without_a_login):
        assert _caller(api, token).post(WHO).status_code == 401
