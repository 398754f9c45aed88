"""A tenant is suspended, resumed, exported and erased on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.engine.ledger import Settlement
from tasks.engine.states import RunState
from tenants import ids, keys, members, names, system
from tenants.context import Principal, Role
from tests.support import commands
from tests.support.apis import Api
from tests.support.hands import Hands
from tests.support.installations import Installation, eventually

TRIGGER = 'mutation { triggerBackgroundTask(taskName: "diagnostics.echo", args: {value: 1}) { problem { code } } }'


def _command(installation: Installation, *arguments: str) -> dict[str, object]:
    done = commands.run(installation, "tenant", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_a_suspended_tenant_reads_and_changes_nothing_until_it_is_resumed(
    api: Api, tenant: Principal, slug: str
) -> None:
    caller = api.caller(tenant)
    assert _command(api.installation, "suspend", slug, "--note", "unpaid") == {"slug": slug, "suspended": True}
    fresh = api.caller(tenant)
    assert fresh.ask(TRIGGER)["triggerBackgroundTask"]["problem"] == {"code": "TENANT_SUSPENDED"}
    assert fresh.ask("{ runs { totalCount } }") == {"runs": {"totalCount": 0}}
    assert _command(api.installation, "resume", slug) == {"slug": slug, "suspended": False}
    assert caller.ask(TRIGGER)["triggerBackgroundTask"]["problem"] is None
    entries = caller.ask("{ auditLog { nodes { action actor detail } } }")["auditLog"]["nodes"]
    [resumed, suspended, _] = [entry for entry in entries if entry["action"].startswith("tenant.")]
    assert resumed == {"action": "tenant.resume", "actor": "tenantry tenant resume", "detail": {}}
    assert (suspended["actor"], suspended["detail"]) == ("tenantry tenant suspend", {"reason": "unpaid"})


def test_an_export_holds_every_row_and_object_of_the_tenant_and_no_secret(
    installation: Installation, hands: Hands, tenant: Principal, other_tenant: Principal, slug: str, tmp_path: Path
) -> None:
    secret = "a value that only this tenant has"
    for principal in (tenant, other_tenant):
        run, fence = hands.running(principal)
        hands.settle(principal, run, fence, Settlement(RunState.SUCCEEDED, keep=True, result=f"{principal.tenant}"))
        made = installation.write(principal, keys.create, installation.settings.auth.key_pepper, name="k", scopes=["*"])
        stored = installation.folder / "objects" / names.object_path(principal.tenant, "uploads", "a.csv")
        stored.parent.mkdir(parents=True)
        stored.write_text(secret if principal is tenant else "another's")
    folder = tmp_path / "export"
    told = _command(installation, "export", slug, str(folder))
    assert json.loads((folder / "manifest.json").read_bytes()) == told
    assert told["id"] == ids.show("ten", tenant.tenant)
    written = {path.stem for path in folder.glob("*.jsonl")}
    holding = installation.rows(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
    )
    assert written == {name for (name,) in holding} | {"tenants", "users"}
    rows = {path.stem: [json.loads(line) for line in path.read_bytes().splitlines()] for path in folder.glob("*.jsonl")}
    assert told["rows"] == {name: len(found) for name, found in rows.items()}
    assert [row["result"] for row in rows["runs"]] == [str(tenant.tenant)]
    assert {row["tenant_id"] for found in rows.values() for row in found if "tenant_id" in row} == {str(tenant.tenant)}
    everything = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert str(other_tenant.tenant) not in everything
    assert made.secret not in everything
    hashes = installation.rows("SELECT secret_hash FROM api_keys WHERE tenant_id = %s", str(tenant.tenant))
    assert hashes
    assert not [found for (found,) in hashes if found in everything]
    assert (folder / "objects" / "uploads" / "a.csv").read_text() == secret
    again = commands.run(installation, "tenant", "export", slug, str(folder))
    assert (again.returncode, again.stderr.strip()) == (1, f"tenantry: {folder} is not empty: name a folder that is.")


def test_an_erased_tenant_is_gone_with_its_people_and_its_callers(
    api: Api, tenant: Principal, other_tenant: Principal, slug: str
) -> None:
    addresses = ("only.here@example.org", "in.both@example.org")
    alone, shared = (system.enroll(api.installation.settings, address, None) for address in addresses)
    for principal, person in ((tenant, alone), (tenant, shared), (other_tenant, shared)):
        api.installation.write(principal, members.join, person, Role.OWNER)
    caller = api.caller(tenant)
    assert caller.ask(TRIGGER)["triggerBackgroundTask"]["problem"] is None
    refused = commands.run(api.installation, "tenant", "erase", slug, "--confirm", "another")
    assert (refused.returncode, api.installation.rows("SELECT 1 FROM tenants WHERE slug = %s", slug)) == (1, [(1,)])
    erased = _command(api.installation, "erase", slug, "--confirm", slug)
    assert erased["left"] == {"rows": {}, "keys": [], "objects": []}
    eventually(lambda: caller.post(TRIGGER).status_code == 401)  # Until then the credential is remembered.
    people = api.installation.rows("SELECT id FROM users WHERE id IN (%s, %s)", str(alone), str(shared))
    assert [str(found) for (found,) in people] == [str(shared)]
    told = api.installation.rows(
        "SELECT actor, detail FROM audit_entries WHERE action = 'tenant.erase' AND target = %s", slug
    )
    assert told == [("tenantry tenant erase", {"id": str(tenant.tenant)})]
    assert commands.run(api.installation, "tenant", "resume", slug).returncode == 1


def test_nobody_enters_a_tenant_that_is_being_erased(api: Api, tenant: Principal, slug: str) -> None:
    caller = api.caller(tenant)
    api.installation.rows(
        "UPDATE tenants SET suspended_at = now(), erasing_since = now() WHERE id = %s", str(tenant.tenant)
    )
    assert caller.fail("{ runs { totalCount } }") == "TENANT_SUSPENDED"
    refused = commands.run(api.installation, "limits", "list", "--tenant", slug)
    assert (refused.returncode, refused.stderr) == (1, "tenantry: This tenant is being erased, or has been.\n")


def test_the_operators_own_tenant_stays(installation: Installation) -> None:
    kept = commands.run(installation, "tenant", "erase", "_operator", "--confirm", "_operator")
    assert (kept.returncode, kept.stderr.strip()) == (1, "tenantry: The operators' own tenant can't be erased.")
    assert installation.rows("SELECT 1 FROM tenants WHERE slug = '_operator' AND suspended_at IS NULL") == [(1,)]
