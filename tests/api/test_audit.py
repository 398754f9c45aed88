"""The audit log: one entry for each mutation, in a chain that shows what was changed in it afterwards."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson
import psycopg2
import pytest

from schema import permissions
from tasks.engine import limits
from tasks.engine.admission import LimitKind
from tasks.engine.ledger import Settlement
from tasks.engine.limits import LimitRequest
from tasks.engine.states import RunState
from tasks.families.accounts.service import requests
from tenants import audit, ids, logins, member_roles, members, providers, system
from tenants.audit import Verdict
from tenants.context import Principal, Role
from tenants.providers import ProviderRequest
from tests.support import commands
from tests.support.apis import Api, Caller
from tests.support.fields import LATER, ROOT, rule
from tests.support.hands import Hands
from tests.support.installations import Installation, eventually
from tests.support.people import People

LOG = "{ auditLog(first: 100) { nodes { id at actor action target detail } } }"
BOOM = {"type": "Boom", "message": "no", "retryable": True}


@dataclass(frozen=True, slots=True)
class Place:
    """A tenant with what the mutations change."""

    caller: Caller
    hands: Hands
    tenant: Principal

    @property
    def waiting(self) -> str:
        """A run that waits."""
        return ids.show("run", self.hands.installation.trigger(self.tenant, "diagnostics.echo", delay_seconds=3600))

    @property
    def failed(self) -> str:
        """A dead letter."""
        run, fence = self.hands.running(self.tenant)
        self.hands.settle(self.tenant, run, fence, Settlement(RunState.FAILED, error=BOOM))
        return ids.show("run", run)

    @property
    def group(self) -> str:
        """A group of dead letters."""
        assert self.failed
        found: str = self.caller.ask("{ deadLetters { nodes { id } } }")["deadLetters"]["nodes"][0]["id"]
        return found

    @property
    def key(self) -> str:
        """An API key."""
        self.caller.ask('mutation { createApiKey(input: {name: "k", scopes: ["runs:read"]}) { success } }')
        found: str = self.caller.ask("{ apiKeys(first: 1) { nodes { id } } }")["apiKeys"]["nodes"][0]["id"]
        return found

    @property
    def member(self) -> str:
        """A member."""
        user = system.enroll(self.hands.installation.settings, f"{ids.new().hex}@example.org", None)
        self.hands.installation.write(self.tenant, members.join, user, Role.VIEWER)
        return ids.show("usr", user)

    @property
    def login(self) -> str:
        """A login of a member."""
        user, auth = ids.read("usr", self.member), self.hands.installation.settings.auth
        self.hands.installation.write(self.tenant, logins.open_login, auth, user)
        query = "query($u: ID!) { sessions(userId: $u) { nodes { id } } }"
        found: str = self.caller.ask(query, u=ids.show("usr", user))["sessions"]["nodes"][0]["id"]
        return found

    @property
    def role(self) -> str:
        """A role of the tenant's own."""
        return ids.show("rol", self.hands.installation.write(self.tenant, member_roles.create, "r", ["runs:read"]).id)

    @property
    def invitation(self) -> str:
        """An invitation."""
        settings = self.hands.installation.settings
        return ids.show(
            "inv",
            self.hands.installation.write(
                self.tenant, requests.invite, settings, "ada@example.org", Role.VIEWER, None
            ).id,
        )

    @property
    def credential(self) -> str:
        """An integration credential."""
        self.caller.ask('mutation { setCredential(input: {name: "stripe", secret: "a secret"}) { success } }')
        return "stripe"

    @property
    def provider(self) -> str:
        """An identity provider."""
        request = ProviderRequest("corp", "https://corp.example", "c")
        self.hands.installation.write(self.tenant, providers.put, self.hands.installation.settings, request)
        return request.name

    @property
    def paused(self) -> str:
        """The arguments that end a pause of everything."""
        self.caller.ask("mutation { pauseTasks { success } }")
        return ""

    @property
    def limit(self) -> str:
        """A limit."""
        request = LimitRequest("some", LimitKind.CONCURRENCY, 3)
        return ids.show("lim", self.hands.installation.write(self.tenant, limits.put, request).id)


CHANGES: dict[str, tuple[str, Callable[[Place], str]]] = {
    "cancelRun": ("run.cancel", lambda place: f'(id: "{place.waiting}")'),
    "cancelRuns": ("runs.cancel", lambda place: f'(filter: {{ids: ["{place.waiting}"]}}, dryRun: false)'),
    "createApiKey": ("key.create", lambda place: '(input: {name: "k", scopes: ["runs:read"]})'),
    "createRole": ("role.set", lambda place: '(name: "r", scopes: ["runs:read"])'),
    "deleteRole": ("role.remove", lambda place: f'(id: "{place.role}")'),
    "inviteMember": ("invitation.create", lambda place: '(input: {email: "eve@example.org", role: MEMBER})'),
    "pauseTasks": ("tasks.pause", lambda place: '(note: "why")'),
    "recordSalesStock": ("family.set", lambda place: "(counts: [])"),
    "removeMember": ("member.remove", lambda place: f'(id: "{place.member}")'),
    "removeIdentityProvider": ("provider.remove", lambda place: f'(name: "{place.provider}")'),
    "removeLimit": ("limit.remove", lambda place: f'(id: "{place.limit}")'),
    "requireSingleSignOn": ("sso.require", lambda place: f"(required: {'true' if place.provider else 'false'})"),
    "resumeTasks": ("tasks.resume", lambda place: place.paused),
    "retryDeadLetters": ("runs.retry", lambda place: f'(groupId: "{place.group}", dryRun: false)'),
    "retryRuns": ("runs.retry", lambda place: f'(filter: {{ids: ["{place.failed}"]}}, dryRun: false)'),
    "revokeInvitation": ("invitation.revoke", lambda place: f'(id: "{place.invitation}")'),
    "revokeSession": ("login.revoke", lambda place: f'(id: "{place.login}")'),
    "removeCredential": ("credential.remove", lambda place: f'(name: "{place.credential}")'),
    "rotateApiKey": ("key.rotate", lambda place: f'(id: "{place.key}")'),
    "revokeApiKey": ("key.revoke", lambda place: f'(id: "{place.key}")'),
    "setCredential": ("credential.set", lambda place: '(input: {name: "mail", secret: "a secret"})'),
    "setIdentityProvider": (
        "provider.set",
        lambda place: '(input: {name: "corp", issuer: "https://corp.example", clientId: "c"})',
    ),
    "setLimit": ("limit.set", lambda place: '(input: {name: "n", kind: CONCURRENCY, amount: 3})'),
    "setMemberRole": ("member.set", lambda place: f'(id: "{place.member}", role: MEMBER)'),
    "updateRole": ("role.set", lambda place: f'(id: "{place.role}", name: "s")'),
    "updateSalesSettings": ("family.set", lambda place: "(retentionMonths: 12)"),
}
TRIGGERS: dict[str, Callable[[Place], str]] = {
    "exportSales": lambda place: '(startDate: "2026-01-01", endDate: "2026-01-31")',
    "generateSalesReport": lambda place: '(month: "2026-01")',
    "importSalesOrders": lambda place: '(file: "orders.csv")',
    "refreshSales": lambda place: "",
    "retryRun": lambda place: f'(id: "{place.failed}")',
    "triggerBackgroundTask": lambda place: '(taskName: "diagnostics.echo")',
    "triggerBackgroundTasks": lambda place: '(inputs: [{taskName: "diagnostics.echo"}])',
}
"""For a run, the row with its actor is the entry."""


OPERATORS: dict[str, tuple[str, str, str]] = {
    "setPlan": ("plan.set", "", '(name: "p", quotas: [{name: RUNS, limit: 7}])'),
    "assignPlan": (
        "plan.assign",
        'setPlan(name: "q", quotas: []) { success }',
        '(tenant: "$tenant", plan: "q", quotas: [{name: KEYS, limit: 7}])',
    ),
    "removePlan": ("plan.remove", 'setPlan(name: "r", quotas: []) { success }', '(name: "r")'),
}
"""What only operators change: the action, what must be done before, and the arguments."""


@pytest.fixture
def place(api: Api, hands: Hands, tenant: Principal) -> Place:
    return Place(api.caller(tenant), hands, tenant)


def test_every_mutation_is_one_of_these() -> None:
    there = {name.partition(".")[2] for name in ROOT if name.startswith("Mutation.") and name not in LATER}
    assert there == CHANGES.keys() | TRIGGERS.keys() | OPERATORS.keys()


def _entries(place: Place) -> list[tuple[Any, ...]]:
    return place.hands.installation.rows(
        "SELECT id, actor_kind, actor, action FROM audit_entries WHERE tenant_id = %s", str(place.tenant.tenant)
    )


def _runs(place: Place) -> list[tuple[Any, ...]]:
    return place.hands.installation.rows(
        "SELECT id, actor_kind, actor FROM runs WHERE tenant_id = %s", str(place.tenant.tenant)
    )


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_told_once(place: Place, people: People, name: str) -> None:
    action, given = CHANGES[name]
    caller, kind, actor = place.caller, "API_KEY", place.caller.actor
    if rule(f"Mutation.{name}") is permissions.OWNERS_WRITE:
        user = people.join("owner@example.org")
        caller, kind, actor = people.caller("owner@example.org"), "USER", ids.show("usr", user)
    arguments = given(place)
    before = _entries(place)
    answer = caller.ask(f"mutation {{ {name}{arguments} {{ success message }} }}")[name]
    assert answer["success"], answer
    [(_, *told)] = set(_entries(place)) - set(before)
    assert told == [kind, actor, action]


@pytest.mark.parametrize("name", OPERATORS)
def test_a_change_of_the_operators_is_told_once(api: Api, tenant: Principal, name: str) -> None:
    action, before, arguments = OPERATORS[name]
    operator = api.operator()
    slug = api.installation.slug(tenant)
    if before:
        operator.ask(f"mutation {{ {before} }}")
    told = "SELECT actor_kind, actor, action FROM audit_entries WHERE actor = %s AND action = %s AND tenant_id <> %s"
    operator.ask(f"mutation {{ {name}{arguments.replace('$tenant', slug)} {{ success message }} }}")
    actor = operator.actor
    assert api.installation.rows(told, actor, action, str(tenant.tenant)) == [("OPERATOR", actor, action)]
    if name == "assignPlan":
        of_the_tenant = "SELECT actor, target FROM audit_entries WHERE tenant_id = %s AND action = %s"
        assert api.installation.rows(of_the_tenant, str(tenant.tenant), action) == [(actor, slug)]


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_run_tells_who_triggered_it(place: Place, name: str) -> None:
    arguments = TRIGGERS[name](place)
    runs, entries = _runs(place), _entries(place)
    answer = place.caller.ask(f"mutation {{ {name}{arguments} {{ success message }} }}")[name]
    assert answer["success"], answer
    [(_, kind, actor)] = set(_runs(place)) - set(runs)
    assert (kind, actor) == ("API_KEY", place.caller.actor)
    assert _entries(place) == entries


def test_what_is_refused_leaves_no_entry(place: Place) -> None:
    before = _entries(place)
    answer = place.caller.ask('mutation { setLimit(input: {name: "n", kind: WEIGHT, amount: 3}) { success } }')
    assert answer == {"setLimit": {"success": False}}
    assert _entries(place) == before


TWICE: dict[str, Callable[[Place], str]] = {
    "revokeApiKey": lambda place: f'(id: "{place.key}")',
    "revokeInvitation": lambda place: f'(id: "{place.invitation}")',
    "revokeSession": lambda place: f'(id: "{place.login}")',
    "resumeTasks": lambda place: place.paused,
    "requireSingleSignOn": lambda place: f"(required: {'true' if place.provider else 'false'})",
    "setLimit": lambda place: '(input: {name: "n", kind: CONCURRENCY, amount: 3})',
    "setMemberRole": lambda place: f'(id: "{place.member}", role: MEMBER)',
    "updateRole": lambda place: f'(id: "{place.role}", name: "s")',
    "updateSalesSettings": lambda place: "(retentionMonths: 12)",
}
"""What may be asked for again, and then changes nothing."""


@pytest.mark.parametrize("name", TWICE)
def test_what_changes_nothing_leaves_no_entry(place: Place, people: People, name: str) -> None:
    mutation = f"mutation {{ {name}{TWICE[name](place)} {{ success }} }}"
    for_owners = rule(f"Mutation.{name}") is permissions.OWNERS_WRITE
    caller = people.member("owner@example.org") if for_owners else place.caller
    assert caller.ask(mutation) == {name: {"success": True}}
    before = _entries(place)
    assert caller.ask(mutation) == {name: {"success": True}}
    assert _entries(place) == before


def test_an_entry_tells_what_was_before_and_after_and_no_secret(place: Place) -> None:
    for amount in (3, 5):
        place.caller.ask(
            f'mutation {{ setLimit(input: {{name: "n", kind: CONCURRENCY, amount: {amount}}}) {{ success }} }}'
        )
    made = place.caller.ask(
        'mutation { createApiKey(input: {name: "k", scopes: ["runs:read"]}) { secret apiKey { id } } }'
    )["createApiKey"]
    latest, second, first, *_ = place.caller.ask(LOG)["auditLog"]["nodes"]
    assert (latest["action"], latest["target"]) == ("key.create", made["apiKey"]["id"])
    assert made["secret"] not in str(latest)
    assert first["detail"]["before"] is None
    assert second["detail"]["before"] == first["detail"]["after"]
    assert (second["detail"]["before"]["amount"], second["detail"]["after"]["amount"]) == (3, 5)
    node = place.caller.ask(f'{{ node(id: "{latest["id"]}") {{ id ... on AuditEntry {{ action }} }} }}')["node"]
    assert node == {"id": latest["id"], "action": "key.create"}


def test_the_log_is_its_tenants_and_of_who_may_read_it(api: Api, place: Place, other_tenant: Principal) -> None:
    [made, *_] = place.caller.ask(LOG)["auditLog"]["nodes"]
    theirs = api.caller(other_tenant)
    seen = theirs.ask(LOG)["auditLog"]["nodes"]
    assert {entry["id"] for entry in seen}.isdisjoint({made["id"]})
    assert theirs.ask(f'{{ node(id: "{made["id"]}") {{ id }} }}') == {"node": None}
    assert api.caller(place.tenant, "runs:read").fail(LOG) == "FORBIDDEN"


def _write(installation: Installation, tenant: Principal, number: int) -> None:
    for at in range(number):
        installation.write(tenant, audit.record, "test.done", f"thing-{at}", number=at)


def _seal(hands: Hands, most: int = 1000) -> int:
    [(sealed,)] = hands.system.call("SELECT seal_audit(%s)", most)
    return int(sealed)


def _seal_all(installation: Installation, hands: Hands, most: int = 1000) -> list[int]:
    """Seal until all is sealed, which what others on the server have open delays; how many at each time."""
    sealed: list[int] = []

    def nothing_waits() -> bool:
        sealed.append(_seal(hands, most))
        return not installation.rows("SELECT 1 FROM audit_entries WHERE position IS NULL LIMIT 1")

    eventually(nothing_waits)
    return sealed


def _verdict(installation: Installation, tenant: Principal) -> Verdict:
    return installation.write(tenant, audit.verify)


@pytest.fixture
def chain(installation: Installation, hands: Hands, tenant: Principal) -> Principal:
    """A tenant with five sealed entries; the first is of its making."""
    _write(installation, tenant, 4)
    _seal_all(installation, hands)
    return tenant


def test_entries_are_sealed_in_portions_each_tenant_in_its_own_chain(
    installation: Installation, hands: Hands, chain: Principal, other_tenant: Principal
) -> None:
    whole = _verdict(installation, chain)
    assert (whole.sealed, whole.waiting, whole.broken) == (5, 0, None)
    _write(installation, other_tenant, 3)
    _write(installation, chain, 2)
    assert _verdict(installation, chain) == Verdict(5, 2, whole.head, None)
    sealed = _seal_all(installation, hands, 2)
    assert (sum(sealed), max(sealed)) == (6, 2)
    assert _verdict(installation, other_tenant).sealed == 4
    longer = _verdict(installation, chain)
    assert (longer.sealed, longer.waiting, longer.broken) == (7, 0, None)
    assert longer.head != whole.head


def test_no_tenants_entries_wait_for_the_seal_behind_the_many_of_another(
    installation: Installation, hands: Hands, tenant: Principal, other_tenant: Principal
) -> None:
    _seal_all(installation, hands)
    before = [_verdict(installation, each).sealed for each in (tenant, other_tenant)]
    _write(installation, tenant, 30)
    _write(installation, other_tenant, 1)
    portions: list[int] = []

    def is_sealed() -> bool:
        portions.append(_seal(hands, 10))
        return _verdict(installation, other_tenant).waiting == 0

    eventually(is_sealed)
    assert sum(portions) == 6, "five of the one, and the one of the other"
    _write(installation, other_tenant, 1)
    eventually(lambda: _seal(hands, 1))
    assert _verdict(installation, other_tenant).waiting == 1, "with a place for one, who has waited longest has it"
    _seal_all(installation, hands)
    for each, earlier, number in zip((tenant, other_tenant), before, (30, 2), strict=True):
        verdict = _verdict(installation, each)
        assert (verdict.sealed - earlier, verdict.waiting, verdict.broken) == (number, 0, None)


@pytest.mark.parametrize(
    ("statement", "broken"),
    [
        ("UPDATE audit_entries SET actor = 'nobody' WHERE tenant_id = %s AND position = 3", 3),
        ("UPDATE audit_entries SET detail = '{}' WHERE tenant_id = %s AND position = 1", 1),
        ("UPDATE audit_entries SET at = at + interval '1 s' WHERE tenant_id = %s AND position = 5", 5),
        ("DELETE FROM audit_entries WHERE tenant_id = %s AND position = 2", 2),
        ("DELETE FROM audit_entries WHERE tenant_id = %s AND position = 1", 1),
    ],
)
def test_what_was_changed_afterwards_shows(
    installation: Installation, chain: Principal, statement: str, broken: int
) -> None:
    installation.rows(statement, str(chain.tenant))
    assert _verdict(installation, chain).broken == broken


def test_an_end_that_was_cut_off_shows_by_the_head_that_was_kept(installation: Installation, chain: Principal) -> None:
    kept = _verdict(installation, chain).head
    installation.rows("DELETE FROM audit_entries WHERE tenant_id = %s AND position = 5", str(chain.tenant))
    cut = _verdict(installation, chain)
    assert (cut.broken, cut.head == kept) == (None, False)


def test_what_an_open_transaction_may_still_come_before_is_not_sealed(
    installation: Installation, hands: Hands, chain: Principal
) -> None:
    with closing(psycopg2.connect(installation.addresses.app)) as older, older.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id()")
        _write(installation, chain, 1)
        assert _seal(hands) == 0
    assert sum(_seal_all(installation, hands)) == 1


def test_sealers_and_writers_at_the_same_time_make_one_chain(
    installation: Installation, hands: Hands, chain: Principal
) -> None:
    done = threading.Event()

    def seal() -> None:
        with closing(psycopg2.connect(installation.addresses.system)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not done.is_set():
                cursor.execute("SELECT seal_audit(3)")

    with ThreadPoolExecutor(5) as threads:
        sealers = [threads.submit(seal) for _ in range(2)]
        writers = [threads.submit(_write, installation, chain, 30) for _ in range(3)]
        for writer in writers:
            writer.result()
        done.set()
        for sealer in sealers:
            sealer.result()
    _seal_all(installation, hands)
    verdict = _verdict(installation, chain)
    assert (verdict.sealed, verdict.waiting, verdict.broken) == (95, 0, None)


def test_the_log_is_exported_and_verified_on_the_command_line(installation: Installation, chain: Principal) -> None:
    slug = installation.slug(chain)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run(installation, "audit", *arguments, "--tenant", slug)

    lines = [orjson.loads(line) for line in command("export").stdout.splitlines()]
    assert [line["target"] for line in lines] == [ids.show("ten", chain.tenant), *(f"thing-{at}" for at in range(4))]
    assert [line["position"] for line in lines] == [1, 2, 3, 4, 5]
    sound = command("verify", "--json")
    assert (sound.returncode, orjson.loads(sound.stdout)["head"]) == (0, lines[-1]["hash"])
    installation.rows("UPDATE audit_entries SET actor = 'x' WHERE tenant_id = %s AND position = 4", str(chain.tenant))
    broken = command("verify")
    assert (broken.returncode, broken.stdout) == (1, "The chain is broken at entry 4 of 5.\n")
