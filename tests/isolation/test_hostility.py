"""Every root field, task and stream, asked for by who must not: another tenant, too low a role, a key of other scopes.

Nothing of the victim is in any answer, and not one of its rows is another afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from graphql import GraphQLInterfaceType, GraphQLObjectType, get_named_type, is_leaf_type, is_required_argument
from pydantic import SecretStr

from schema import permissions
from tasks import registry
from tasks.engine import limits
from tasks.engine.admission import LimitKind
from tasks.engine.ledger import Settlement
from tasks.engine.limits import LimitRequest
from tasks.engine.states import RunState
from tasks.families.accounts.service import requests
from tenants import credentials, ids, keys, member_roles, providers
from tenants.context import Principal, Role
from tenants.providers import ProviderRequest
from tests.api.test_audit import CHANGES, OPERATORS, TRIGGERS, Place
from tests.schema.test_permissions import _literal
from tests.support import apis, fields, streams
from tests.support.apis import Api, Caller
from tests.support.fields import LATER, ROOT, SCHEMA
from tests.support.hands import Hands
from tests.support.installations import Installation
from tests.support.people import People

MARK = "zq7marked"
"""Stands in all that the victim has."""
TABLES = """SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = 'public'::regnamespace ORDER BY 1"""
ROWS = """SELECT md5(coalesce(string_agg(r.row, '' ORDER BY r.row), ''))
FROM (SELECT (to_jsonb(t) - 'last_used_at')::text AS row FROM "{table}" t WHERE {where}) r"""
QUERIES = sorted(name for name in ROOT if name.startswith("Query.") and name not in LATER)
MUTATIONS = {**{name: make for name, (_, make) in CHANGES.items()}, **TRIGGERS}
TOLD = {
    "Query.apiKeys", "Query.auditLog", "Query.credentials", "Query.deadLetters", "Query.identityProviders",
    "Query.invitations", "Query.limits", "Query.members", "Query.node", "Query.roles", "Query.run", "Query.runs",
    "Query.viewer",
}  # fmt: skip
"""Where the mark stands for who may ask: so that its absence says something."""
UNRELATED = "newsletters:read"
DEEPEST = 4


@dataclass(frozen=True, slots=True)
class Victim:
    """A tenant full of marks, and the ids of what it has."""

    api: Api
    principal: Principal
    objects: dict[str, str]

    @property
    def viewer(self) -> Caller:
        """A member who may look at little and change nothing."""
        return People(self.api, self.principal).caller(f"viewer@{MARK}.example")


@pytest.fixture(scope="module")
def api(installation: Installation) -> Iterator[Api]:
    """An API process on the module's installation."""
    with apis.running(installation) as started:
        yield started


@pytest.fixture(scope="module")
def victim(api: Api, hands: Hands) -> Victim:
    installation = api.installation
    tenant = installation.tenant(MARK, "diagnostics", "sales")
    settings = installation.settings
    run, fence = hands.running(tenant)
    error = {"type": "Boom", "message": MARK, "retryable": True, "traceback": MARK}
    hands.settle(tenant, run, fence, Settlement(RunState.FAILED, error=error))
    waiting = installation.trigger(tenant, "diagnostics.echo", {"value": MARK}, delay_seconds=3600)
    key = installation.write(tenant, keys.create, settings.auth.key_pepper, name=MARK, scopes=("*",)).key
    limit = installation.write(tenant, limits.put, LimitRequest(MARK, LimitKind.CONCURRENCY, 3))
    role = installation.write(tenant, member_roles.create, MARK, ["runs:read"])
    invited = installation.write(tenant, requests.invite, settings, f"new@{MARK}.example", Role.VIEWER, None)
    ring = settings.auth.credential_keys
    installation.write(tenant, credentials.put, ring, MARK, "api_key", SecretStr(MARK))
    provider = ProviderRequest(MARK, f"https://{MARK}.example", "c")
    installation.write(tenant, providers.put, settings, provider)
    people = People(api, tenant)
    user = people.join(f"viewer@{MARK}.example", Role.VIEWER)
    people.log_in(f"viewer@{MARK}.example")
    [(login,)] = installation.rows("SELECT id FROM login_sessions WHERE tenant_id = %s", str(tenant.tenant))
    [(entry,)] = installation.rows(
        "SELECT id FROM audit_entries WHERE tenant_id = %s AND action = 'role.set'", str(tenant.tenant)
    )
    return Victim(api, tenant, {
        "run": ids.show("run", waiting), "key": ids.show("key", key.id), "lim": ids.show("lim", limit.id),
        "rol": ids.show("rol", role.id), "inv": ids.show("inv", invited.id), "usr": ids.show("usr", user),
        "ses": ids.show("ses", login), "aud": ids.show("aud", entry), "ten": ids.show("ten", tenant.tenant),
    })  # fmt: skip


@pytest.fixture
def place(victim: Victim, hands: Hands) -> Iterator[Place]:
    """The victim, as the tests of the audit log make arguments for every mutation there."""
    yield Place(victim.api.caller(victim.principal), hands, victim.principal)
    victim.api.installation.rows("DELETE FROM invitations WHERE email NOT LIKE '%%' || %s || '%%'", MARK)
    victim.api.installation.rows("DELETE FROM roles WHERE name <> %s", MARK)
    victim.api.installation.rows("DELETE FROM pauses")


def _rows(victim: Victim) -> dict[str, str]:
    """What the victim has in each table, and who there is, in short. When a key was used last is no change."""
    installation, tenant = victim.api.installation, str(victim.principal.tenant)
    tables = {str(table): "tenant_id = %s" for (table,) in installation.rows(TABLES)}
    tables |= {"tenants": "id = %s", "users": "id <> %s"}
    one = " UNION ALL ".join(
        f"SELECT '{table}', ({ROWS.format(table=table, where=where)})" for table, where in tables.items()
    )
    return dict(installation.rows(one, *[tenant] * len(tables)))


def _selection(kind: Any, depth: int = DEEPEST) -> str:
    """All that can be asked for without arguments, so deep."""
    found = ["__typename"]
    if isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
        for name, field in kind.fields.items():
            inner = get_named_type(field.type)
            if f"{kind.name}.{name}" in LATER or any(map(is_required_argument, field.args.values())):
                continue
            if is_leaf_type(inner):
                found.append(name)
            elif depth > 1 and name != "edges":
                page = "(first: 5)" if "first" in field.args else ""
                found.append(f"{name}{page} {_selection(inner, depth - 1)}")
    return "{ " + " ".join(found) + " }"


def _query(name: str, victim: Victim) -> str:
    """A query that asks a root field for as much as there is, of the victim's objects where it wants ids."""
    root, _, field_name = name.partition(".")
    field = SCHEMA._schema.type_map[root].fields[field_name]  # type: ignore[attr-defined]
    given = {argument: _literal(wanted) for argument, wanted in field.args.items() if is_required_argument(wanted)}
    for argument, wanted in field.args.items():
        if get_named_type(wanted.type).name == "ID":
            given[argument] = json.dumps(victim.objects["usr" if argument == "userId" else "run"])
    if "first" in field.args:
        given["first"] = "100" if name == "Query.auditLog" else "5"
    arguments = ", ".join(f"{argument}: {value}" for argument, value in given.items())
    kind = get_named_type(field.type)
    selection = "" if is_leaf_type(kind) else _selection(kind)
    if name == "Query.node":
        selection = "{ id ... on Run { args } }"
    return f"{{ {name.partition('.')[2]}{f'({arguments})' if arguments else ''} {selection} }}"


def _codes(answer: dict[str, Any]) -> set[str]:
    """Why an operation was refused, as an error or as a problem; nothing where it was not."""
    found = {error["extensions"]["code"] for error in answer.get("errors", ())}
    for value in (answer.get("data") or {}).values():
        if isinstance(value, dict) and value.get("problem"):
            found.add(value["problem"]["code"])
    return found


# ---- queries


@pytest.mark.parametrize("name", QUERIES)
def test_no_query_tells_another_tenant_or_a_stranger_anything(
    victim: Victim, other_tenant: Principal, name: str
) -> None:
    query, before = _query(name, victim), _rows(victim)
    theirs = victim.api.caller(other_tenant).post(query)
    assert MARK not in theirs.text
    stranger = victim.api.stranger().post(query)
    assert MARK not in stranger.text
    assert _codes(stranger.json()) == {"UNAUTHENTICATED"}
    assert not any((stranger.json()["data"] or {}).values())
    assert _rows(victim) == before
    own = victim.api.caller(victim.principal).post(query)
    assert (MARK in own.text) or name not in TOLD, own.text
    assert "GRAPHQL_VALIDATION_FAILED" not in own.text


@pytest.mark.parametrize("name", [name for name in QUERIES if fields.rule(name).scope])
def test_no_query_tells_a_key_of_other_scopes_anything(victim: Victim, name: str) -> None:
    scopes = {
        rule.scope for rule in vars(permissions).values() if isinstance(rule, permissions.Rule) and rule.scope
    } - {fields.rule(name).scope}
    answer = victim.api.caller(victim.principal, *scopes, UNRELATED).post(_query(name, victim))
    assert _codes(answer.json()) == {"FORBIDDEN"}
    assert MARK not in answer.text


@pytest.mark.parametrize("kind", ["run", "key", "lim", "rol", "inv", "usr", "ses", "aud"])
def test_no_id_opens_to_a_caller_what_its_field_would_not(victim: Victim, other_tenant: Principal, kind: str) -> None:
    query = "query($i: ID!) { node(id: $i) { __typename id } }"
    own = victim.api.caller(victim.principal)
    assert own.ask(query, i=victim.objects[kind])["node"]["id"] == victim.objects[kind]
    for caller in (victim.api.caller(victim.principal, UNRELATED), victim.api.caller(other_tenant)):
        assert caller.post(query, {"i": victim.objects[kind]}).json()["data"] == {"node": None}


# ---- mutations


@pytest.mark.parametrize("name", MUTATIONS)
def test_no_mutation_of_anothers_changes_a_row(
    victim: Victim, place: Place, other_tenant: Principal, name: str
) -> None:
    hostile = victim.api.caller(other_tenant)
    arguments = MUTATIONS[name](place)
    before = _rows(victim)
    answer = hostile.post(f"mutation {{ {name}{arguments} {{ success message problem {{ code }} }} }}")
    assert answer.status_code == 200
    assert MARK not in answer.text
    assert _rows(victim) == before
    if '(id: "' in arguments or "groupId" in arguments:
        assert _codes(answer.json()) == {"NOT_FOUND"}


@pytest.mark.parametrize("name", [*MUTATIONS, *OPERATORS])
def test_no_mutation_is_too_low_a_roles_or_of_a_key_of_other_scopes(victim: Victim, place: Place, name: str) -> None:
    arguments = OPERATORS[name][2].replace("$tenant", MARK) if name in OPERATORS else MUTATIONS[name](place)
    refused = [victim.viewer, victim.api.caller(victim.principal, UNRELATED)]
    if name in OPERATORS:
        refused.append(victim.api.caller(victim.principal))
    before = _rows(victim)
    for caller in refused:
        answer = caller.post(f"mutation {{ {name}{arguments} {{ success message problem {{ code }} }} }}").json()
        assert answer["data"][name]["success"] is False
        assert _codes(answer) == ({"NOT_FOUND"} if name == "revokeSession" else {"FORBIDDEN"})
        assert _rows(victim) == before


# ---- tasks


@pytest.mark.parametrize("name", sorted(registry.definitions()))
def test_no_task_is_started_by_who_may_not(victim: Victim, new_tenant: Callable[..., Principal], name: str) -> None:
    trigger = (
        "mutation($t: String!) { triggerBackgroundTask(taskName: $t) { success problem { code } }"
        " many: triggerBackgroundTasks(inputs: [{taskName: $t}]) { success problem { code } } }"
    )
    family = name.partition(".")[0]
    elsewhere = new_tenant("diagnostics" if family != "diagnostics" else "sales")
    other = "diagnostics.echo" if name != "diagnostics.echo" else "diagnostics.sleep"
    narrowed = victim.api.caller(victim.principal, "*", tasks=[other])
    hidden = registry.is_internal(registry.definition(name)) or registry.definition(name).operator_only
    count = "SELECT count(*) FROM runs"
    before = victim.api.installation.rows(count)
    for caller, expected in (
        (victim.viewer, {"FORBIDDEN"}),
        (victim.api.caller(victim.principal, "runs:read", UNRELATED), {"FORBIDDEN"}),
        (narrowed, {"FORBIDDEN"}),
        (victim.api.caller(elsewhere), {"UNKNOWN_TASK", "BAD_USER_INPUT"}),
    ):
        codes = _codes(caller.post(trigger, {"t": name}).json())
        assert codes
        assert codes <= ({"UNKNOWN_TASK"} if hidden else expected)
    assert victim.api.installation.rows(count) == before


# ---- streams


@pytest.mark.parametrize("name", [name for name in ROOT if name.startswith("Subscription.")])
def test_no_stream_is_anothers_or_of_a_key_of_other_scopes(victim: Victim, other_tenant: Principal, name: str) -> None:
    field = name.partition(".")[2]
    run = victim.objects["run"]
    given = f'(taskId: "{run}")' if field == "taskUpdates" else f'(filter: {{ids: ["{run}"]}})'
    query = f"subscription {{ {field}{given} {{ runId run {{ args }} }} }}"
    unscoped, theirs = victim.api.caller(victim.principal, UNRELATED), victim.api.caller(other_tenant)
    for caller in (unscoped, theirs) if field == "taskUpdates" else (unscoped,):
        with streams.socket(caller) as socket:
            socket.subscribe(query)
            first = socket.receive()
            assert first["type"] in {"error", "next"}
            assert not ((first["payload"] if isinstance(first["payload"], dict) else {}).get("data") or {}).get(field)
            assert MARK not in str(first)
        with streams.events(caller, query) as events:
            shown = next(events)
            assert shown[1]["errors"][0]["extensions"]["code"] in {"FORBIDDEN", "NOT_FOUND"}
            assert MARK not in str(shown)
    with streams.socket(theirs) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        victim.api.installation.trigger(victim.principal, "diagnostics.echo", {"value": MARK})
        own = theirs.ask('mutation { triggerBackgroundTask(taskName: "diagnostics.echo") { taskId } }')
        heard = next(socket.updates("runUpdates"))
        assert heard["runId"] == own["triggerBackgroundTask"]["taskId"]
