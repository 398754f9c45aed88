"""Links in mails, with a worker that sends them: invitations, new passwords, sign-ups."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import httpx2
import pytest

from tasks.engine import runs
from tasks.engine.runs import TriggerRequest
from tenants import identity, ids, links, member_roles, signing, system
from tenants.context import Principal, Role
from tenants.errors import TenantryError
from tenants.links import Kind
from tests.support import apis, mailbox, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation, eventually
from tests.support.mailbox import Mailbox
from tests.support.people import PASSWORD, People, caller, post

INVITE = """mutation ($e: String!, $r: Role, $i: ID) { inviteMember(input: {email: $e, role: $r, roleId: $i}) {
  success problem { code } invitation { id email role roleName acceptedAt revokedAt } } }"""
WHO = "{ viewer { email role tenant { slug } } }"
NEW = "another correct horse battery"
GONE = 404


@pytest.fixture(scope="module")
def box() -> Iterator[Mailbox]:
    with mailbox.opened() as found:
        yield found


@pytest.fixture(scope="module")
def api(installation: Installation, box: Mailbox) -> Iterator[Api]:
    """An API where anybody may sign up, and the workers that send its mails."""
    installation.environment = {
        "TENANTRY_MAIL__URL": box.url,
        "TENANTRY_AUTH__SIGN_UP": "true",
        "TENANTRY_AUTH__SIGN_UP_FAMILIES": '["diagnostics"]',
        "TENANTRY_API__PUBLIC_URL": "https://app.example.org/",
    }
    with apis.running(installation) as started:
        installation.start_dispatcher()
        installation.start_worker("mail")
        installation.lead()
        yield started


@pytest.fixture
def owner(people: People) -> Caller:
    """Somebody who may invite."""
    return people.member(f"owner-{people.slug}@example.org")


@pytest.fixture
def invite(owner: Caller, box: Mailbox) -> Callable[..., str]:
    """Invites an address; the link's token, as the mail has it."""

    def make(email: str, role: Role = Role.MEMBER, to: str | None = None) -> str:
        found = owner.ask(INVITE, e=email, r=role.value)["inviteMember"]
        assert found["success"], found
        return _token(box, to or email)

    return make


def _token(box: Mailbox, to: str, page: str = "invitation", number: int = 1) -> str:
    """The token of the mail that somebody gets."""
    eventually(lambda: len(box.to(to)) >= number)
    body = box.to(to)[-1].get_body()
    assert body is not None
    [token] = re.findall(rf"https://app\.example\.org/auth/{page}#token=(\S+)", body.get_content())
    return str(token)


def _members(people: People) -> int:
    return len(people.roles())


def _runs(api: Api, task: str) -> list[tuple[Any, ...]]:
    return api.installation.rows("SELECT id, args, result, state FROM runs WHERE task = %s ORDER BY id", task)


def _sent(api: Api, task: str) -> list[tuple[Any, ...]]:
    """The runs of a task, once all have ended."""
    eventually(lambda: all(state == "SUCCEEDED" for *_, state in _runs(api, task)))
    return _runs(api, task)


def _noted(api: Api, slug: str) -> list[tuple[Any, ...]]:
    """What the audit log of a tenant tells of its members: by whom, who, and as what."""
    return api.installation.rows(
        "SELECT split_part(actor, '_', 1), target, detail->'after'->>'role' FROM audit_entries"
        " WHERE tenant_id = (SELECT id FROM tenants WHERE slug = %s) AND action = 'member.set' ORDER BY id",
        slug,
    )


# ---- invitations


def test_who_is_invited_sets_a_password_and_is_in(api: Api, people: People, invite: Callable[..., str]) -> None:
    token = invite("Ada+New@Example.org", Role.VIEWER, to="ada+new@example.org")
    answer = post(api, "invitation", token=token, password=PASSWORD)
    assert answer.status_code == 201, answer.text
    ada = caller(api, answer.json()["accessToken"])
    assert ada.ask(WHO)["viewer"] == {"email": "ada+new@example.org", "role": "VIEWER", "tenant": {"slug": people.slug}}
    assert _noted(api, people.slug)[1:] == [("inv", ada.ask("{ viewer { userId } }")["viewer"]["userId"], "VIEWER")]
    assert people.log_in("ADA+new@example.org")
    assert post(api, "invitation", token=token, password=PASSWORD).status_code == GONE


def test_who_has_a_password_needs_it_and_keeps_it(
    api: Api, people: People, invite: Callable[..., str], other_tenant: Principal
) -> None:
    elsewhere = People(api, other_tenant)
    elsewhere.join("bob@example.org")
    token = invite("bob@example.org")
    assert post(api, "invitation", token=token, password=NEW).status_code == 401
    assert "bob@example.org" not in people.roles()
    assert post(api, "invitation", token=token, password=PASSWORD).status_code == 201
    assert people.roles()["bob@example.org"] == "MEMBER"
    assert elsewhere.log_in("bob@example.org")


def test_the_secret_of_a_link_stands_nowhere_but_in_the_mail(
    api: Api, people: People, invite: Callable[..., str], box: Mailbox
) -> None:
    token = invite("carl@example.org")
    post(api, "reset", email="carl@example.org")
    post(api, "signup", tenant="carls", email="carl2@example.org")
    tokens = [token, _token(box, "carl2@example.org", "signup")]
    tables = api.installation.rows(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE '%%\\_p%%'"
    )
    everything = [str(api.installation.rows(f'SELECT t::text FROM "{table}" t')) for (table,) in tables]
    everything += [api.installation.log(name) for name in api.installation.processes]
    for secret in tokens:
        signature = secret.rpartition(".")[2]
        assert not [text for text in everything if secret in text or signature in text]
    [(run, args, result, _)] = [row for row in _sent(api, "accounts.send_invitation") if _ours(people, row[0])]
    assert set(args) == {"invitation"}
    assert result == {"sent": True}
    events = api.installation.rows("SELECT note FROM run_events WHERE run_id = %s", str(run))
    assert not [note for (note,) in events if note and "carl" in note]


def _ours(people: People, run: UUID) -> bool:
    statement = "SELECT 1 FROM runs WHERE id = %s AND tenant_id = %s"
    return bool(people.api.installation.rows(statement, str(run), str(people.tenant.tenant)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token[:-2] + ("xx" if not token.endswith("xx") else "yy"),
        lambda token: "B" + token[1:],
        lambda token: token.replace(".k1.", ".k2."),
        lambda token: token + "." + token,
        lambda token: token.partition(".")[0],
        lambda token: "x",
        lambda token: "a.b.c",
        lambda token: "\u00e9.k1.\u00e9",
        lambda token: token * 10,
    ],
)
def test_a_tampered_link_is_good_for_nothing(
    api: Api, people: People, invite: Callable[..., str], spoil: Callable[[str], str]
) -> None:
    token = invite(f"dora-{people.slug}@example.org")
    before = _members(people)
    answer = post(api, "invitation", token=spoil(token), password=PASSWORD)
    assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (GONE, "NOT_FOUND")
    assert _members(people) == before
    assert post(api, "invitation", token=token, password=PASSWORD).status_code == 201


def test_a_link_of_one_kind_is_none_of_another(api: Api, people: People, invite: Callable[..., str]) -> None:
    token = invite("eve@example.org")
    for route in ("reset/confirm", "signup/confirm"):
        assert post(api, route, token=token, password=PASSWORD).status_code == GONE
    ring = api.installation.settings.auth.link_keys
    row = links.read(ring, Kind.INVITATION, token).row
    [others] = api.installation.rows("SELECT id FROM tenants WHERE slug = %s", system.OPERATORS)
    forged = links.url(api.installation.settings, Kind.INVITATION, row, others[0]).partition("token=")[2]
    assert post(api, "invitation", token=forged, password=PASSWORD).status_code == GONE
    sealed = signing.seal(api.installation.settings.auth.token_keys, signing.unseal(ring, token) or b"")
    assert post(api, "invitation", token=sealed, password=PASSWORD).status_code == GONE
    assert "eve@example.org" not in people.roles()


def test_every_link_that_is_not_good_is_answered_alike(
    api: Api, people: People, owner: Caller, invite: Callable[..., str]
) -> None:
    revoked, expired, used = (invite(f"{name}@example.org") for name in ("fay", "gus", "hal"))
    listed = owner.ask("{ invitations { nodes { id email } } }")["invitations"]["nodes"]
    [first] = [one["id"] for one in listed if one["email"] == "fay@example.org"]
    revoke = "mutation ($id: ID!) { revokeInvitation(id: $id) { success invitation { revokedAt } } }"
    assert owner.ask(revoke, id=first)["revokeInvitation"]["invitation"]["revokedAt"]
    api.installation.rows("UPDATE invitations SET expires_at = now() WHERE email = 'gus@example.org'")
    post(api, "invitation", token=used, password=PASSWORD)
    before = people.roles()
    answers = [post(api, "invitation", token=token, password=PASSWORD) for token in (revoked, expired, used, "x.y.z")]
    assert {answer.status_code for answer in answers} == {GONE}
    assert len({answer.text for answer in answers}) == 1
    assert people.roles() == before


@pytest.mark.parametrize("how", ["removed", "made a member", "their role changes", "still what they were"])
def test_an_invitation_is_worth_no_more_than_who_invited(
    api: Api, people: People, owner: Caller, box: Mailbox, how: str
) -> None:
    custom = api.installation.write(
        people.tenant, member_roles.create, "Inviters", ["members:manage", "runs:read", "tenant:read"]
    )
    inviter = people.join("mallory@example.org", None, custom.id)
    given = api.installation.write(people.tenant, member_roles.create, "Readers", ["runs:read", "tenant:read"])
    email = f"mate-{how.replace(' ', '-')}@example.org"
    asked = people.caller("mallory@example.org").ask(INVITE, e=email, i=ids.show("rol", given.id))
    assert asked["inviteMember"]["success"], asked
    token = _token(box, email)
    if how == "removed":
        owner.ask("mutation ($id: ID!) { removeMember(id: $id) { success } }", id=ids.show("usr", inviter))
    elif how == "made a member":
        people.join("mallory@example.org", Role.VIEWER)
        api.installation.write(people.tenant, member_roles.change, given.id, None, ["runs:write"])
    elif how == "their role changes":
        api.installation.write(people.tenant, member_roles.change, custom.id, None, ["members:manage"])
    answer = post(api, "invitation", token=token, password=PASSWORD)
    assert answer.status_code == (201 if how == "still what they were" else GONE), answer.text
    assert (email in people.roles()) is (how == "still what they were")


def test_nobody_joins_a_suspended_tenant(api: Api, people: People, invite: Callable[..., str]) -> None:
    token = invite("ian@example.org")
    suspend = "UPDATE tenants SET suspended_at = %s WHERE id = %s"
    api.installation.rows(suspend, "2026-11-20T00:00:00Z", str(people.tenant.tenant))
    answer = post(api, "invitation", token=token, password=PASSWORD)
    assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (403, "TENANT_SUSPENDED")
    assert "ian@example.org" not in people.roles()
    api.installation.rows(suspend, None, str(people.tenant.tenant))
    assert post(api, "invitation", token=token, password=PASSWORD).status_code == 201


def test_ten_at_once_make_one_member(api: Api, people: People, invite: Callable[..., str]) -> None:
    token = invite("joy@example.org")
    with ThreadPoolExecutor(10) as threads:
        codes = list(
            threads.map(lambda _: post(api, "invitation", token=token, password=PASSWORD).status_code, range(10))
        )
    assert sorted(codes) == [201] + [GONE] * 9
    logins = api.installation.rows(
        "SELECT count(*) FROM login_sessions WHERE tenant_id = %s AND user_id ="
        " (SELECT id FROM users WHERE email = 'joy@example.org')",
        str(people.tenant.tenant),
    )
    assert logins == [(1,)]


def test_an_invitation_raises_nobody(api: Api, people: People, owner: Caller, invite: Callable[..., str]) -> None:
    token = invite("kim@example.org", Role.ADMIN)
    user = people.join("kim@example.org", Role.VIEWER)
    noted = _noted(api, people.slug)
    assert post(api, "invitation", token=token, password=PASSWORD).status_code == 201
    assert people.roles()["kim@example.org"] == "VIEWER"
    assert _noted(api, people.slug) == noted
    again = owner.ask(INVITE, e="kim@example.org", r="ADMIN")["inviteMember"]
    assert again["problem"] == {"code": "CONFLICT"}
    assert user


@pytest.mark.parametrize(
    ("role", "wanted", "code"),
    [
        (Role.ADMIN, {"r": "OWNER"}, "FORBIDDEN"),
        (Role.ADMIN, {"r": "ADMIN"}, None),
        (Role.MEMBER, {"r": "VIEWER"}, "FORBIDDEN"),
        (Role.OWNER, {"r": "OWNER"}, None),
        (Role.OWNER, {}, "BAD_USER_INPUT"),
        (Role.OWNER, {"i": ids.show("rol", ids.new())}, "NOT_FOUND"),
        (Role.OWNER, {"r": "VIEWER", "i": ids.show("rol", ids.new())}, "BAD_USER_INPUT"),
    ],
)
def test_who_may_invite_whom(people: People, role: Role, wanted: dict[str, str], code: str | None) -> None:
    people.join("first@example.org")
    asking = people.member(f"{role.value.lower()}@example.org", role)
    found = asking.ask(INVITE, e="lee@example.org", **wanted)["inviteMember"]
    assert (found["problem"] or {}).get("code") == code
    rows = people.api.installation.rows("SELECT email FROM invitations WHERE tenant_id = %s", str(people.tenant.tenant))
    assert rows == ([] if code else [("lee@example.org",)])


@pytest.mark.parametrize(
    "email",
    ["", "x", "a b@example.org", "a@b@c.org", "a,b@example.org", "a\nbcc: x@example.org", "<b>@", "x" * 70 + "@b.org"],
)
def test_what_is_no_address_is_not_invited(owner: Caller, email: str) -> None:
    found = owner.ask(INVITE, e=email, r="VIEWER")["inviteMember"]
    assert found["problem"] == {"code": "BAD_USER_INPUT"}


def test_an_address_is_invited_again_after_a_while_and_the_earlier_link_ends(
    api: Api, people: People, owner: Caller, invite: Callable[..., str], box: Mailbox
) -> None:
    first = invite("moe@example.org", Role.VIEWER)
    again = owner.ask(INVITE, e="MOE@example.org", r="MEMBER")["inviteMember"]
    assert again["problem"] == {"code": "RATE_LIMITED"}
    api.installation.rows(
        "UPDATE invitations SET created_at = now() - interval '2 min' WHERE email = 'moe@example.org'"
    )
    assert owner.ask(INVITE, e="MOE@example.org", r="MEMBER")["inviteMember"]["success"]
    second = _token(box, "moe@example.org", number=2)
    assert post(api, "invitation", token=first, password=PASSWORD).status_code == GONE
    assert post(api, "invitation", token=second, password=PASSWORD).status_code == 201
    assert people.roles()["moe@example.org"] == "MEMBER"


def test_a_mail_that_could_not_be_sent_is_sent_later(invite: Callable[..., str], box: Mailbox) -> None:
    box.replies.append("450 later")
    assert invite("ned@example.org")
    assert len(box.to("ned@example.org")) == 1


def test_an_invitation_that_ended_before_its_mail_is_not_mailed(api: Api, tenant: Principal, box: Mailbox) -> None:
    gone = ids.show("inv", ids.new())
    with pytest.raises(TenantryError):
        api.installation.write(tenant, runs.trigger, TriggerRequest("accounts.send_invitation", {"invitation": gone}))
    people = People(api, tenant)
    owner = people.member("owner@example.org")
    pause = "mutation { pauseTasks { success } }"
    owner.ask(pause)
    made = owner.ask(INVITE, e="ora@example.org", r="VIEWER")["inviteMember"]["invitation"]["id"]
    owner.ask("mutation ($id: ID!) { revokeInvitation(id: $id) { success } }", id=made)
    owner.ask("mutation { resumeTasks { success } }")
    results = [result for run, _, result, _ in _sent(api, "accounts.send_invitation") if _ours(people, run)]
    assert results == [{"sent": False}]
    assert box.to("ora@example.org") == []


def test_nobody_asks_for_these_tasks_by_name(api: Api, tenant: Principal) -> None:
    trigger = "mutation ($t: String!, $a: JSON) { triggerBackgroundTask(taskName: $t, args: $a) { problem { code } } }"
    link = ids.show("lnk", ids.new())
    for asking in (api.caller(tenant), api.operator()):
        for name in ("accounts.send_invitation", "accounts.send_reset", "send_reset", "send_verification"):
            answer = asking.ask(trigger, t=name, a={"link": link})["triggerBackgroundTask"]
            assert answer["problem"] == {"code": "UNKNOWN_TASK"}, name
        assert "accounts" not in str(asking.ask("{ families { name } tasks { name } }"))
        assert asking.ask('{ node(id: "fam_accounts") { id } task(name: "accounts.send_reset") { id } }') == {
            "node": None,
            "task": None,
        }


def _ended(action: dict[str, int]) -> dict[str, int] | None:
    """A bulk action on one run, once it has a verdict."""
    return action if any(action.values()) else None


def test_who_may_retry_runs_sends_no_invitation_again(api: Api, people: People, owner: Caller, box: Mailbox) -> None:
    member = people.member("member@example.org", Role.MEMBER)
    assert owner.ask(INVITE, e="pia@example.org", r="VIEWER")["inviteMember"]["success"]
    _token(box, "pia@example.org")
    [run] = [row[0] for row in _sent(api, "accounts.send_invitation") if _ours(people, row[0])]
    again = "mutation ($id: ID!, $a: JSON) { retryRun(id: $id, args: $a, repeatEffects: true) { problem { code } } }"
    for asking in (member, owner, api.caller(people.tenant)):
        for args in (None, {"invitation": ids.show("inv", ids.new())}):
            answer = asking.ask(again, id=ids.show("run", run), a=args)["retryRun"]
            assert answer == {"problem": {"code": "UNKNOWN_TASK"}}
    many = """mutation ($i: [ID!]) { retryRuns(dryRun: false, filter: {ids: $i, states: [SUCCEEDED]}) {
      bulkAction { id } } }"""
    action = owner.ask(many, i=[ids.show("run", run)])["retryRuns"]["bulkAction"]["id"]
    look = "query ($id: ID!) { node(id: $id) { ... on BulkAction { done failed } } }"
    assert eventually(lambda: _ended(owner.ask(look, id=action)["node"])) == {"done": 0, "failed": 1}
    assert len(box.to("pia@example.org")) == 1


# ---- new passwords


def test_a_new_password_by_mail_ends_all_logins(
    api: Api, people: People, other_tenant: Principal, box: Mailbox
) -> None:
    elsewhere = People(api, other_tenant)
    people.join("pam@example.org", Role.VIEWER)
    elsewhere.join("pam@example.org", Role.VIEWER)
    here, there = people.caller("pam@example.org"), elsewhere.caller("pam@example.org")
    assert post(api, "reset", email=" PAM@Example.org").status_code == 202
    token = _token(box, "pam@example.org", "reset")
    with streams.socket(here) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        assert post(api, "reset/confirm", token=token, password=NEW).status_code == 204
        assert socket.closed(6) == 4401
    eventually(lambda: there.post(WHO).status_code == 401, 6)
    assert post(api, "login", tenant=people.slug, email="pam@example.org", password=PASSWORD).status_code == 401
    assert people.log_in("pam@example.org", NEW)
    assert post(api, "reset/confirm", token=token, password=PASSWORD).status_code == GONE
    assert people.log_in("pam@example.org", NEW)


def test_asking_for_an_address_that_nobody_has_is_answered_alike_and_mails_nothing(
    api: Api, people: People, box: Mailbox
) -> None:
    people.join("quin@example.org")
    answers = [post(api, "reset", email=email) for email in ("quin@example.org", "nobody-at-all@example.org")]
    assert len({(answer.status_code, answer.text) for answer in answers}) == 1
    assert _token(box, "quin@example.org", "reset")
    results = [result for *_, result, _ in _sent(api, "accounts.send_reset")]
    assert results[-2:] == [{"sent": True}, {"sent": False}]
    assert box.to("nobody-at-all@example.org") == []


@pytest.mark.parametrize("ended", ["expired", "another used"])
def test_a_link_for_a_new_password_ends(api: Api, people: People, box: Mailbox, ended: str) -> None:
    email = f"rex-{people.slug}@example.org"
    people.join(email)
    post(api, "reset", email=email)
    first = _token(box, email, "reset")
    if ended == "expired":
        api.installation.rows("UPDATE account_links SET expires_at = now() WHERE email = %s", email)
    else:
        post(api, "reset", email=email)
        second = _token(box, email, "reset", number=2)
        assert post(api, "reset/confirm", token=second, password=NEW).status_code == 204
    assert post(api, "reset/confirm", token=first, password="yet another password").status_code == GONE
    assert people.log_in(email, PASSWORD if ended == "expired" else NEW)


def test_ten_at_once_choose_one_password(api: Api, people: People, box: Mailbox) -> None:
    people.join("sam@example.org")
    post(api, "reset", email="sam@example.org")
    token = _token(box, "sam@example.org", "reset")
    with ThreadPoolExecutor(10) as threads:
        codes = list(
            threads.map(
                lambda n: post(api, "reset/confirm", token=token, password=f"password {n}").status_code, range(10)
            )
        )
    assert sorted(codes) == [204] + [GONE] * 9
    assert people.log_in("sam@example.org", f"password {codes.index(204)}")


@pytest.mark.parametrize("password", ["short", "x" * 1001, "x" * 1_000_000, "nul\0nul\0nul", ""])
def test_a_password_that_can_not_be_one_leaves_the_link_good(
    api: Api, people: People, box: Mailbox, password: str
) -> None:
    email = f"tom-{people.slug}@example.org"
    people.join(email)
    post(api, "reset", email=email)
    token = _token(box, email, "reset")
    refused = post(api, "reset/confirm", token=token, password=password)
    assert (refused.status_code, refused.json()["errors"][0]["extensions"]["code"]) == (400, "BAD_USER_INPUT")
    assert post(api, "reset/confirm", token=token, password="caf\u00e9 au lait").status_code == 204
    assert people.log_in(email, "cafe\u0301 au lait")


def test_nobody_is_sent_mails_without_end(api: Api) -> None:
    codes = [
        post(api, "reset", email=spelled).status_code
        for spelled in ("u@example.org", "U@example.org ", "\uff55@example.org")
    ]
    assert codes == [202] * 3
    refused = post(api, "reset", email="u@example.org")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert post(api, "signup", tenant="us", email="u@example.org").status_code == 429


# ---- sign-up


def _sign_up(api: Api, box: Mailbox, slug: str, email: str, **options: str) -> str:
    answer = post(api, "signup", tenant=slug, email=email, **options)
    assert answer.status_code == 202, answer.text
    return _token(box, email, "signup")


def _there(api: Api, slug: str) -> bool:
    return bool(api.installation.rows("SELECT 1 FROM tenants WHERE slug = %s", slug))


def test_a_tenant_is_made_once_its_owners_address_is_known_to_be_theirs(api: Api, box: Mailbox) -> None:
    token = _sign_up(api, box, "vera-inc", "vera@example.org", name="Vera, Inc.", timezone="Europe/Berlin")
    assert not _there(api, "vera-inc")
    answer = post(api, "signup/confirm", token=token, password=PASSWORD)
    assert answer.status_code == 201
    owner = caller(api, answer.json()["accessToken"])
    viewer = owner.ask("{ viewer { email role tenant { slug name timezone } } }")["viewer"]
    assert viewer == {
        "email": "vera@example.org",
        "role": "OWNER",
        "tenant": {"slug": "vera-inc", "name": "Vera, Inc.", "timezone": "Europe/Berlin"},
    }
    assert _noted(api, "vera-inc") == [("sign-up", owner.ask("{ viewer { userId } }")["viewer"]["userId"], "OWNER")]
    trigger = 'mutation { triggerBackgroundTask(taskName: "echo") { success } }'
    assert owner.ask(trigger)["triggerBackgroundTask"]["success"]
    assert post(api, "signup/confirm", token=token, password=PASSWORD).status_code == GONE
    assert post(api, "login", tenant="vera-inc", email="vera@example.org", password=PASSWORD).status_code == 200


def test_a_name_that_is_taken_is_told_to_who_has_the_link_and_another_can_be_chosen(
    api: Api, people: People, box: Mailbox
) -> None:
    token = _sign_up(api, box, people.slug, "walt@example.org")
    taken = post(api, "signup/confirm", token=token, password=PASSWORD)
    assert taken.status_code == 409
    assert api.installation.rows("SELECT 1 FROM users WHERE email = 'walt@example.org'") == []
    for slug in (system.OPERATORS, "Upper", "a b", "1st", "x" * 64):
        assert post(api, "signup/confirm", token=token, password=PASSWORD, tenant=slug).status_code == 400
    assert post(api, "signup/confirm", token=token, password=PASSWORD, tenant="walts").status_code == 201
    assert _there(api, "walts")
    assert "walt@example.org" not in people.roles()


def test_who_is_somebody_here_signs_up_with_their_password(api: Api, people: People, box: Mailbox) -> None:
    people.join("xena@example.org", Role.VIEWER)
    token = _sign_up(api, box, "xenas", "xena@example.org")
    assert post(api, "signup/confirm", token=token, password=NEW).status_code == 401
    assert not _there(api, "xenas")
    assert post(api, "signup/confirm", token=token, password=PASSWORD).status_code == 201
    listed = api.client.get(f"{api.url}/auth/tenants", headers=people.caller("xena@example.org").headers)
    assert {one["slug"] for one in listed.json()["tenants"]} == {people.slug, "xenas"}


def test_ten_at_once_make_one_tenant(api: Api, box: Mailbox) -> None:
    token = _sign_up(api, box, "yara", "yara@example.org")

    def confirm(number: int) -> int:
        return post(api, "signup/confirm", token=token, password=PASSWORD, tenant=f"yara-{number}").status_code

    with ThreadPoolExecutor(10) as threads:
        codes = list(threads.map(confirm, range(10)))
    assert sorted(codes) == [201] + [GONE] * 9
    assert api.installation.rows("SELECT count(*) FROM tenants WHERE slug LIKE 'yara%%'") == [(1,)]


@pytest.mark.parametrize(
    "body",
    [
        {"tenant": "_operator", "email": "z@example.org"},
        {"tenant": "Upper", "email": "z@example.org"},
        {"tenant": "a" * 64, "email": "z@example.org"},
        {"tenant": "zz", "email": "nothing"},
        {"tenant": "zz", "email": "z@example.org", "timezone": "Mars/Olympus"},
        {"tenant": "zz", "email": "z@example.org", "name": "x" * 61},
        {"tenant": "zz", "email": "z@example.org", "name": 5},
        {"tenant": "zz"},
    ],
    ids=str,
)
def test_a_sign_up_that_can_not_be_is_refused_at_once(api: Api, body: dict[str, Any]) -> None:
    before = api.installation.rows("SELECT count(*) FROM account_links")
    answer = post(api, "signup", **{**body, "email": body.get("email", "z@example.org").replace("z@", f"{ids.new()}@")})
    if "email" in body:
        assert answer.status_code == 400, answer.text
    assert api.installation.rows("SELECT count(*) FROM account_links")[0][0] - before[0][0] == ("email" not in body)


def test_nobody_signs_up_where_it_is_closed(installation: Installation, api: Api, box: Mailbox) -> None:
    token = _sign_up(api, box, "zoes", "zoe@example.org")
    with apis.running(installation, "closed", TENANTRY_AUTH__SIGN_UP="false") as closed:
        answers: list[httpx2.Response] = [
            post(closed, "signup", tenant="zoes", email="zoe@example.org"),
            post(closed, "signup/confirm", token=token, password=PASSWORD),
        ]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert not _there(api, "zoes")


@pytest.mark.parametrize("page", ["invitation", "reset", "signup"])
def test_a_link_leads_to_a_form(api: Api, page: str) -> None:
    answer = api.client.get(f"{api.url}/auth/{page}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    script = api.client.get(f"{api.url}/auth/account.js")
    assert f"  {page}: [" in script.text
    assert "'unsafe-inline'" not in answer.headers["content-security-policy"].partition("style-src")[0]


def test_the_operators_tenant_is_the_one_that_was_made(installation: Installation) -> None:
    assert system.acting(installation.settings, system.OPERATORS, "tests").tenant == system.OPERATORS_ID
    assert identity.normalise("A@b.c") == "a@b.c"
