"""Members: their roles, who may change whose, and what ends when they go."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest

from tenants import db, ids, keys, member_roles
from tenants.context import ActorKind, Principal, Role
from tests.support import streams
from tests.support.apis import Api, Caller
from tests.support.installations import eventually
from tests.support.people import People

SET = """mutation ($id: ID!, $role: Role, $roleId: ID) {
  setMemberRole(id: $id, role: $role, roleId: $roleId) { success problem { code } member { role roleName } } }"""
REMOVE = "mutation ($id: ID!) { removeMember(id: $id) { success problem { code } } }"
WHO = "{ viewer { email role roleName userId scopes } }"
HR = ["members:manage", "runs:read"]


def _own_role(people: People, name: str, scopes: list[str]) -> UUID:
    return people.api.installation.write(people.tenant, member_roles.create, name, scopes).id


def _code(answer: dict[str, Any]) -> str | None:
    [payload] = answer.values()
    return None if payload["success"] else str(payload["problem"]["code"])


def _set(caller: Caller, user: UUID, role: Role | None = None, custom: UUID | None = None) -> str | None:
    return _code(
        caller.ask(
            SET,
            id=ids.show("usr", user),
            role=role and role.value,
            roleId=None if custom is None else ids.show("rol", custom),
        )
    )


def _remove(caller: Caller, user: UUID) -> str | None:
    return _code(caller.ask(REMOVE, id=ids.show("usr", user)))


def test_members_are_listed_with_their_roles_and_no_others(api: Api, people: People, other_tenant: Principal) -> None:
    owner = people.member("ada@example.org")
    people.join("bob@example.org", None, _own_role(people, "Support", ["runs:read"]))
    People(api, other_tenant).join("mallory@example.org")
    found = owner.ask("{ members { nodes { id email role roleName } } }")["members"]["nodes"]
    assert [(one["email"], one["role"], one["roleName"]) for one in found] == [
        ("bob@example.org", None, "Support"),
        ("ada@example.org", "OWNER", None),
    ]
    viewer = owner.ask(WHO)["viewer"]
    assert viewer["userId"] == found[1]["id"]
    node = owner.ask(f'{{ node(id: "{found[0]["id"]}") {{ ... on Member {{ email }} }} }}')["node"]
    assert node == {"email": "bob@example.org"}
    assert people.member("carl@example.org", Role.MEMBER).fail("{ members { nodes { id } } }") == "FORBIDDEN"


@pytest.mark.parametrize(
    ("actor", "target", "new", "expected"),
    [
        (Role.OWNER, Role.MEMBER, Role.OWNER, None),
        (Role.OWNER, Role.OWNER, Role.VIEWER, None),
        (Role.ADMIN, Role.VIEWER, Role.ADMIN, None),
        (Role.ADMIN, Role.ADMIN, Role.VIEWER, None),
        (Role.ADMIN, Role.MEMBER, Role.OWNER, "FORBIDDEN"),
        (Role.ADMIN, Role.OWNER, Role.VIEWER, "FORBIDDEN"),
        (Role.MEMBER, Role.VIEWER, Role.MEMBER, "FORBIDDEN"),
        (Role.VIEWER, Role.VIEWER, Role.VIEWER, "FORBIDDEN"),
        (None, Role.MEMBER, Role.VIEWER, "FORBIDDEN"),
        (None, Role.ADMIN, Role.VIEWER, "FORBIDDEN"),
    ],
)
def test_nobody_gives_or_takes_what_they_do_not_hold(
    people: People, actor: Role | None, target: Role, new: Role, expected: str | None
) -> None:
    people.join("first@example.org")
    custom = _own_role(people, "HR", HR) if actor is None else None
    caller = people.member("actor@example.org", actor, custom)
    user = people.join("target@example.org", target)
    assert _set(caller, user, new) == expected
    assert people.roles()["target@example.org"] == (target if expected else new)


@pytest.mark.parametrize("target", [Role.OWNER, Role.ADMIN, Role.MEMBER])
def test_nobody_removes_who_may_do_more(people: People, target: Role) -> None:
    people.join("first@example.org")
    user = people.join("target@example.org", target)
    lesser = people.member("hr@example.org", None, _own_role(people, "HR", HR))
    assert _remove(lesser, user) == "FORBIDDEN"
    admin = people.member("admin@example.org", Role.ADMIN)
    assert _remove(admin, user) == ("FORBIDDEN" if target is Role.OWNER else None)
    assert ("target@example.org" in people.roles()) is (target is Role.OWNER)


def test_a_lesser_manager_gives_what_they_hold_and_does_not_raise_themselves(people: People) -> None:
    people.join("first@example.org")
    mine = _own_role(people, "HR", HR)
    caller = people.member("hr@example.org", None, mine)
    reader, writer = _own_role(people, "Reader", ["runs:read"]), _own_role(people, "Writer", ["runs:write"])
    user = people.join("target@example.org", None, reader)
    assert _set(caller, user, custom=mine) is None
    assert _set(caller, user, custom=writer) == "FORBIDDEN"
    [(own,)] = people.api.installation.rows("SELECT id FROM users WHERE email = 'hr@example.org'")
    for role in Role:
        assert _set(caller, own, role) == "FORBIDDEN"
    assert _set(caller, own, custom=writer) == "FORBIDDEN"
    raise_it = "mutation ($id: ID!, $s: [String!]) { updateRole(id: $id, scopes: $s) { success problem { code } } }"
    assert _code(caller.ask(raise_it, id=ids.show("rol", mine), s=[*HR, "keys:manage"])) == "FORBIDDEN"
    assert people.roles() == {"first@example.org": "OWNER", "hr@example.org": "HR", "target@example.org": "HR"}


def test_a_key_makes_no_owner_and_a_narrowed_one_gives_no_role(api: Api, people: People, tenant: Principal) -> None:
    people.join("first@example.org")
    user = people.join("target@example.org", Role.VIEWER)
    assert _set(api.caller(tenant), user, Role.OWNER) == "FORBIDDEN"
    assert _set(api.caller(tenant, tasks=["diagnostics.echo"]), user, Role.MEMBER) == "FORBIDDEN"
    assert _set(api.caller(tenant), user, Role.MEMBER) is None


def test_a_role_is_named_in_one_way(people: People) -> None:
    owner = people.member("first@example.org")
    user = people.join("target@example.org", Role.VIEWER)
    assert _set(owner, user) == "BAD_USER_INPUT"
    assert _set(owner, user, Role.MEMBER, _own_role(people, "Reader", ["runs:read"])) == "BAD_USER_INPUT"
    assert _set(owner, user, custom=ids.new()) == "NOT_FOUND"
    assert _set(owner, ids.new(), Role.MEMBER) == "NOT_FOUND"


def test_another_tenants_role_can_not_be_given(api: Api, people: People, other_tenant: Principal) -> None:
    theirs = _own_role(People(api, other_tenant), "Theirs", ["runs:read"])
    owner = people.member("first@example.org")
    assert _set(owner, people.join("target@example.org", Role.VIEWER), custom=theirs) == "NOT_FOUND"
    assert people.roles()["target@example.org"] == "VIEWER"


def test_the_last_owner_stays(people: People) -> None:
    owner = people.member("first@example.org")
    people.join("second@example.org", Role.ADMIN)
    user = ids.read("usr", owner.ask(WHO)["viewer"]["userId"])
    assert _remove(owner, user) == "INVALID_STATE"
    assert _set(owner, user, Role.ADMIN) == "INVALID_STATE"
    assert people.roles()["first@example.org"] == "OWNER"


@pytest.mark.parametrize("how", ["removed", "demoted"])
def test_of_two_owners_who_go_at_once_one_stays(people: People, how: str) -> None:
    emails = ["first@example.org", "second@example.org"]
    users = [people.join(email) for email in emails]
    for _ in range(5):
        callers = [people.caller(email) for email in emails]

        def act(which: int, callers: list[Caller] = callers) -> int:
            query, variables = (REMOVE, {}) if how == "removed" else (SET, {"role": "VIEWER"})
            answer = callers[which].post(query, {"id": ids.show("usr", users[1 - which]), **variables})
            return answer.status_code

        with ThreadPoolExecutor(2) as threads:
            assert set(threads.map(act, (0, 1))) <= {200, 401}
        assert list(people.roles().values()).count("OWNER") == 1
        for email in emails:
            people.join(email)


def test_what_a_removed_member_made_stops(people: People, tenant: Principal) -> None:
    create = 'mutation { createApiKey(input: {name: "k", scopes: ["runs:read", "keys:manage"]}) { secret } }'
    people.join("first@example.org")
    leaver = people.member("leaver@example.org", Role.ADMIN)
    first = Caller(leaver.url, leaver.client, leaver.ask(create)["createApiKey"]["secret"])
    second = Caller(leaver.url, leaver.client, first.ask(create)["createApiKey"]["secret"])
    others = people.api.caller(tenant)
    user = ids.read("usr", leaver.ask(WHO)["viewer"]["userId"])
    with streams.socket(second) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        assert _remove(people.caller("first@example.org"), user) is None
        assert socket.closed(6) == 4401
    for ended in (leaver, first, second):
        eventually(lambda ended=ended: ended.post(WHO).status_code == 401, 6)  # type: ignore[misc]
    assert others.post(WHO).status_code == 200
    people.join("leaver@example.org", Role.ADMIN)
    assert first.post(WHO).status_code == 401, "who comes back makes new keys"


def test_a_key_that_is_made_while_its_maker_leaves_has_ended(people: People, tenant: Principal) -> None:
    installation = people.api.installation
    owner, user = people.member("first@example.org"), people.join("leaver@example.org", Role.ADMIN)
    maker = Principal(tenant.tenant, ActorKind.USER, ids.show("usr", user), frozenset({"*"}), person=user)
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with db.open_session(engine, maker) as session:
        made = keys.create(session, installation.settings.auth.key_pepper, name="k", scopes=["runs:read"])
        assert _remove(owner, user) is None
        session.commit()
    engine.dispose()
    assert installation.rows("SELECT revoked_at FROM api_keys WHERE id = %s", str(made.key.id)) == [(None,)]
    assert Caller(owner.url, owner.client, made.secret).post(WHO).status_code == 401


@pytest.mark.parametrize("how", ["another role", "the role changes"])
def test_who_may_do_something_else_watches_no_further(people: People, how: str) -> None:
    custom = _own_role(people, "Watchers", ["runs:read", "tenant:read"])
    user = people.join("watcher@example.org", None, custom)
    member = people.caller("watcher@example.org")
    with (
        streams.socket(member) as socket,
        streams.socket(member) as waiting,
        streams.events(member, streams.ALL_UPDATES) as events,
    ):
        socket.subscribe(streams.ALL_UPDATES)
        if how == "another role":
            assert _set(people.member("owner@example.org"), user, Role.MEMBER) is None
        else:
            people.api.installation.write(people.tenant, member_roles.change, custom, None, ["tenant:read"])
        assert socket.closed(6) == waiting.closed(6) == 4401
        [(_, answer), complete] = [*events]
    extensions = answer["errors"][0]["extensions"]
    assert (extensions["code"], extensions["reason"]) == ("UNAUTHENTICATED", "changed")
    assert complete == ("complete", None)


def test_a_role_of_the_tenants_own_is_worth_what_it_names(people: People) -> None:
    owner = people.member("first@example.org")
    create = """mutation ($n: String!, $s: [String!]!) {
      createRole(name: $n, scopes: $s) { success problem { code } role { id } } }"""
    made = owner.ask(create, n=" Support ", s=["runs:read", "runs:read"])["createRole"]["role"]["id"]
    caller = people.member("target@example.org", None, ids.read("rol", made))
    viewer = caller.ask(WHO)["viewer"]
    assert (viewer["role"], viewer["roleName"], viewer["scopes"]) == (None, "Support", ["runs:read"])
    trigger = 'mutation { triggerBackgroundTask(taskName: "echo") { problem { code } } }'
    assert caller.ask(trigger)["triggerBackgroundTask"]["problem"] == {"code": "FORBIDDEN"}
    change = "mutation ($id: ID!, $s: [String!]) { updateRole(id: $id, scopes: $s) { success } }"
    assert owner.ask(change, id=made, s=["runs:read", "runs:write"])["updateRole"]["success"]
    eventually(lambda: caller.ask(trigger)["triggerBackgroundTask"]["problem"] is None, 6)
    for name, scopes, code in [
        ("Support", ["runs:read"], "CONFLICT"),
        ("owner", ["runs:read"], "BAD_USER_INPUT"),
        (" ", ["runs:read"], "BAD_USER_INPUT"),
        ("x" * 101, ["runs:read"], "BAD_USER_INPUT"),
        ("Nothing", [], "BAD_USER_INPUT"),
        ("Wrong", ["runs:everything"], "BAD_USER_INPUT"),
    ]:
        assert _code(owner.ask(create, n=name, s=scopes)) == code, name
    delete = "mutation ($id: ID!) { deleteRole(id: $id) { success problem { code } } }"
    assert _code(owner.ask(delete, id=made)) == "INVALID_STATE"
    user = ids.read("usr", viewer["userId"])
    assert _set(owner, user, Role.VIEWER) is None
    assert _code(owner.ask(delete, id=made)) is None
    assert owner.ask("{ roles { nodes { id } } }")["roles"]["nodes"] == []


def test_roles_made_at_once_under_one_name_are_one(people: People) -> None:
    owner = people.member("first@example.org")
    create = 'mutation { createRole(name: "Same", scopes: ["runs:read"]) { success problem { code } } }'
    with ThreadPoolExecutor(5) as threads:
        codes = [each.result() for each in [threads.submit(lambda: _code(owner.ask(create))) for _ in range(5)]]
    assert sorted(map(str, codes)) == ["CONFLICT"] * 4 + ["None"]
