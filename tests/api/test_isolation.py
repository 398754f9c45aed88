"""Another tenant's object is answered exactly as one that does not exist, wherever an id can be sent."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from graphql import (
    GraphQLArgument,
    GraphQLInputObjectType,
    get_named_type,
    is_leaf_type,
    is_non_null_type,
    is_required_argument,
)

from schema import root
from tenants import ids, logins, members, system
from tenants.context import ActorKind, Principal, Role
from tests.support import apis, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation

ROOT = {
    (parent, name): field
    for parent in ("Query", "Mutation", "Subscription")
    for name, field in root.build()._schema.type_map[parent].fields.items()  # type: ignore[attr-defined]
}
TAKING_IDS = [
    (parent, name, argument)
    for (parent, name), field in ROOT.items()
    for argument, given in field.args.items()
    if get_named_type(given.type).name == "ID"
]
KINDS = ("run", "key", "sch", "ten", "lim", "dlg", "usr", "ses", "rol", "inv", "bulk")
LIMIT = 'mutation { setLimit(input: {name: "cap", kind: CONCURRENCY, amount: 1}) { limit { id } } }'
TRIGGER = 'mutation { triggerBackgroundTask(taskName: "echo", args: {value: 1}) { taskId } }'


def test_there_is_a_case_for_every_field_that_takes_an_id() -> None:
    known = {f"{parent}.{name}" for parent, name, _ in TAKING_IDS}
    assert {
        "Query.node",
        "Query.run",
        "Mutation.cancelRun",
        "Mutation.removeLimit",
        "Mutation.removeMember",
        "Mutation.revokeInvitation",
        "Mutation.revokeSession",
        "Mutation.deleteRole",
        "Mutation.retryDeadLetters",
        "Mutation.revokeApiKey",
        "Subscription.taskUpdates",
    } <= known


@pytest.mark.parametrize(("parent", "name", "argument"), TAKING_IDS)
def test_a_foreign_id_is_answered_as_one_that_does_not_exist(
    api: Api, tenant: Principal, other_tenant: Principal, parent: str, name: str, argument: str
) -> None:
    caller, owner = api.caller(tenant), api.caller(other_tenant)
    foreign = [*_objects(api, owner)]
    before = api.installation.rows("SELECT id, state, sequence FROM runs ORDER BY id")
    operation = _operation(parent, name, argument)
    foreign_answers = {_answer(caller, parent, operation, identifier) for identifier in foreign}
    random_answers = {_answer(caller, parent, operation, ids.show(kind, ids.new())) for kind in KINDS}
    malformed = ("", "run_", "nonsense", "run_" + "!" * 26, "run_8zzzzzzzzzzzzzzzzzzzzzzzzz", "x" * 1000, "-1")
    malformed_answers = {_answer(caller, parent, operation, text) for text in malformed}
    assert len(random_answers) == 1
    assert foreign_answers == random_answers == malformed_answers
    assert api.installation.rows("SELECT id, state, sequence FROM runs ORDER BY id") == before


def test_a_foreign_id_in_a_filter_matches_nothing(api: Api, tenant: Principal, other_tenant: Principal) -> None:
    caller, owner = api.caller(tenant), api.caller(other_tenant)
    caller.ask(TRIGGER)
    foreign = owner.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    query = "query($f: RunFilter) { runs(filter: $f) { totalCount nodes { id } } }"
    for identifier in (foreign, ids.show("run", ids.new()), "nonsense"):
        assert caller.ask(query, f={"ids": [identifier]})["runs"] == {"totalCount": 0, "nodes": []}
        assert caller.ask(query, f={"scheduleId": identifier})["runs"] == {"totalCount": 0, "nodes": []}


def test_a_foreign_cursor_shows_the_callers_own_rows_only(api: Api, tenant: Principal, other_tenant: Principal) -> None:
    caller, owner = api.caller(tenant), api.caller(other_tenant)
    own = caller.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    owner.ask(TRIGGER)
    cursor = owner.ask("{ runs { pageInfo { endCursor } } }")["runs"]["pageInfo"]["endCursor"]
    page = caller.ask("query($c: String) { runs(after: $c) { nodes { id } } }", c=cursor)["runs"]["nodes"]
    assert page in ([], [{"id": own}])


def test_a_foreign_id_takes_as_long_as_one_that_does_not_exist(
    api: Api, tenant: Principal, other_tenant: Principal
) -> None:
    caller, owner = api.caller(tenant), api.caller(other_tenant)
    foreign = owner.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    query = "query($i: ID!) { run(id: $i) { id } }"
    times: dict[str, list[float]] = {"foreign": [], "random": []}
    for _ in range(100):
        for name, identifier in (("foreign", foreign), ("random", ids.show("run", ids.new()))):
            started = time.perf_counter()
            assert caller.ask(query, i=identifier) == {"run": None}
            times[name].append(time.perf_counter() - started)
    assert abs(statistics.median(times["foreign"]) - statistics.median(times["random"])) < 0.005


async def test_two_tenants_on_one_connection_never_see_each_other(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    with apis.running(
        installation, "narrow", TENANTRY_DATABASE__POOL_SIZE="1", TENANTRY_DATABASE__POOL_OVERFLOW="0",
        TENANTRY_DATABASE__POOL_WAIT_SECONDS="30",
    ) as api:  # fmt: skip
        callers = [api.caller(tenant), api.caller(other_tenant)]
        own = [await asyncio.to_thread(_own_runs, caller) for caller in callers]
        limits = httpx2.Limits(max_connections=16)
        async with httpx2.AsyncClient(timeout=60, trust_env=False, limits=limits) as client:
            answers = await asyncio.gather(*(_read(client, callers[n % 2], impatient=n % 7 == 0) for n in range(600)))
    seen = [
        {identifier for n, found in enumerate(answers) if n % 2 == which for identifier in found} for which in (0, 1)
    ]
    assert seen[0] <= own[0]
    assert seen[1] <= own[1]
    assert all(len(own_ids) == 3 for own_ids in own)
    assert sum(bool(found) for found in answers) > 400


def _own_runs(caller: Caller) -> set[str]:
    return {caller.ask(TRIGGER)["triggerBackgroundTask"]["taskId"] for _ in range(3)}


async def _read(client: httpx2.AsyncClient, caller: Caller, *, impatient: bool) -> list[str]:
    """The ids of a caller's runs; an impatient caller hangs up while the answer is made."""
    options: dict[str, Any] = {"timeout": 0.002} if impatient else {}
    try:
        answer = await client.post(
            f"{caller.url}/graphql", json={"query": "{ runs { nodes { id } } }"}, headers=caller.headers, **options
        )
    except httpx2.TimeoutException:
        return []
    return [node["id"] for node in answer.json()["data"]["runs"]["nodes"]]


def _objects(api: Api, owner: Caller) -> Iterator[str]:
    """An id of everything that a tenant has."""
    dead = owner.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    api.installation.rows(
        "UPDATE runs SET state = 'FAILED', finished_at = now(),"
        " fingerprint = dead_letter_fingerprint(tenant_id, task, error) WHERE id = %s",
        str(ids.read("run", dead)),
    )
    yield owner.ask("{ deadLetters { nodes { id } } }")["deadLetters"]["nodes"][0]["id"]
    begun = owner.ask("mutation { cancelRuns(filter: {ids: []}, dryRun: false) { bulkAction { id } } }")
    yield begun["cancelRuns"]["bulkAction"]["id"]
    yield owner.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    yield owner.ask("{ apiKeys { nodes { id } } }")["apiKeys"]["nodes"][0]["id"]
    yield owner.ask("{ viewer { tenant { id } } }")["viewer"]["tenant"]["id"]
    yield owner.ask(LIMIT)["setLimit"]["limit"]["id"]
    role = owner.ask('mutation { createRole(name: "r", scopes: ["runs:read"]) { role { id } } }')["createRole"]["role"]
    yield role["id"]
    email = f"{ids.new().hex}@example.org"
    invite = "mutation($e: String!) { inviteMember(input: {email: $e, role: VIEWER}) { invitation { id } } }"
    yield owner.ask(invite, e=email)["inviteMember"]["invitation"]["id"]
    user = system.enroll(api.installation.settings, email, None)
    tenant = ids.read("ten", owner.ask("{ viewer { tenant { id } } }")["viewer"]["tenant"]["id"])
    acting = Principal(tenant, ActorKind.OPERATOR, "tests")
    api.installation.write(acting, members.join, user, Role.VIEWER)
    yield ids.show("usr", user)
    api.installation.write(acting, logins.open_login, api.installation.settings.auth, user)
    yield owner.ask("query($u: ID!) { sessions(userId: $u) { nodes { id } } }", u=ids.show("usr", user))["sessions"][
        "nodes"
    ][0]["id"]


def _operation(parent: str, name: str, argument: str) -> str:
    field = ROOT[parent, name]
    others = [
        f"{key}: {_literal(given)}"
        for key, given in field.args.items()
        if key != argument and is_required_argument(given)
    ]
    call = ", ".join([f"{argument}: $id", *others])
    selection = "" if is_leaf_type(get_named_type(field.type)) else " { __typename }"
    if parent == "Mutation":
        selection = " { success message problem { __typename code message } }"
    return f"{parent.lower()}($id: ID!) {{ {name}({call}){selection} }}"


def _literal(given: GraphQLArgument) -> str:
    known = get_named_type(given.type)
    if isinstance(known, GraphQLInputObjectType):
        required = {key: inner for key, inner in known.fields.items() if is_non_null_type(inner.type)}
        return "{" + ", ".join(f"{key}: {_literal(inner)}" for key, inner in required.items()) + "}"
    return {"Int": "1", "DateTime": '"2026-11-20T09:30:00Z"', "Boolean": "true"}.get(known.name, '"x"')


def _answer(caller: Caller, parent: str, operation: str, identifier: str) -> str:
    if parent == "Subscription":
        with streams.events(caller, operation, id=identifier) as events:
            return json.dumps(next(events))
    answer = caller.post(operation, {"id": identifier})
    told = answer.json()
    del told["extensions"]  # What the caller has left to spend.
    return json.dumps([answer.status_code, told])
