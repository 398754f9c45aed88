"""Integration credentials: stored encrypted, replaced, used, never read back, and bound to their tenant and name."""

from __future__ import annotations

import json

import pytest
from pydantic import SecretStr

from tenants import credentials
from tenants.context import Principal
from tenants.errors import InvalidInput, Misconfigured, NotFound
from tests.support import commands
from tests.support.installations import Installation

OLD = {"k1": SecretStr("the first key of a ring, 0123456789")}
RING = {**OLD, "k2": SecretStr("the second key of a ring, 0123456789")}
SECRET = SecretStr("sk_test_4eC39HqLyjWDarjtT1zdp7dc")
TABLE = "SELECT name, key_id, sealed FROM credentials WHERE tenant_id = %s ORDER BY name"


def _put(installation: Installation, tenant: Principal, name: str = "stripe", secret: SecretStr = SECRET) -> None:
    installation.write(tenant, credentials.put, RING, name, "api_key", secret)


def _reveal(installation: Installation, tenant: Principal, name: str = "stripe") -> str:
    return installation.write(tenant, credentials.reveal, RING, name).get_secret_value()


def test_a_credential_is_kept_encrypted_and_revealed_to_its_tenants_work(
    installation: Installation, tenant: Principal
) -> None:
    _put(installation, tenant)
    [(name, key, sealed)] = installation.rows(TABLE, str(tenant.tenant))
    assert (name, key) == ("stripe", "k2")
    assert SECRET.get_secret_value().encode() not in bytes(sealed)
    assert _reveal(installation, tenant) == SECRET.get_secret_value()
    [row] = installation.write(tenant, credentials.every)
    assert (row.name, row.kind) == ("stripe", "api_key")


def test_it_is_replaced_and_removed(installation: Installation, tenant: Principal) -> None:
    _put(installation, tenant)
    _put(installation, tenant, secret=SecretStr("another one"))
    assert _reveal(installation, tenant) == "another one"
    [row] = installation.write(tenant, credentials.every)
    assert row.changed_at > row.created_at
    installation.write(tenant, credentials.remove, "stripe")
    with pytest.raises(NotFound):
        _reveal(installation, tenant)
    with pytest.raises(NotFound):
        installation.write(tenant, credentials.remove, "stripe")


def test_another_tenant_has_no_such_credential(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    _put(installation, tenant)
    assert installation.write(other_tenant, credentials.every) == []
    for service in (credentials.remove, lambda session, name: credentials.reveal(session, RING, name)):
        with pytest.raises(NotFound):
            installation.write(other_tenant, service, "stripe")
    assert _reveal(installation, tenant) == SECRET.get_secret_value()


def test_a_row_copied_to_another_tenant_or_name_does_not_open(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    _put(installation, tenant)
    copy = "INSERT INTO credentials (tenant_id, name, kind, key_id, sealed) SELECT %s, %s, kind, key_id, sealed FROM"
    for place, name in ((other_tenant, "stripe"), (tenant, "mine")):
        installation.rows(
            f"{copy} credentials WHERE tenant_id = %s AND name = 'stripe'", str(place.tenant), name, str(tenant.tenant)
        )
        with pytest.raises(Misconfigured, match="does not open"):
            _reveal(installation, place, name)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"name": ""}, "name"),
        ({"name": "Stripe"}, "name"),
        ({"name": "a" * 101}, "name"),
        ({"name": "a\0"}, "name"),
        ({"name": "stripe\n"}, "name"),
        ({"kind": "API key"}, "kind"),
        ({"secret": SecretStr("7 chars")}, "secret"),
        ({"secret": SecretStr("x" * 8193)}, "secret"),
        ({"secret": SecretStr("a secret\0")}, "secret"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_and_nothing_is_stored(
    installation: Installation, tenant: Principal, given: dict[str, object], path: str
) -> None:
    values = {"name": "stripe", "kind": "api_key", "secret": SECRET, **given}
    with pytest.raises(InvalidInput) as refused:
        installation.write(tenant, credentials.put, RING, **values)
    assert [issue.path for issue in refused.value.issues] == [(path,)]
    assert installation.rows(TABLE, str(tenant.tenant)) == []


def test_no_entry_of_the_audit_log_holds_the_secret(installation: Installation, tenant: Principal) -> None:
    _put(installation, tenant)
    _put(installation, tenant, secret=SecretStr("another secret"))
    installation.write(tenant, credentials.remove, "stripe")
    entries = installation.rows(
        "SELECT action, target, detail::text FROM audit_entries WHERE tenant_id = %s ORDER BY id", str(tenant.tenant)
    )
    assert [entry[:2] for entry in entries[1:]] == [
        ("credential.set", "stripe"),
        ("credential.set", "stripe"),
        ("credential.remove", "stripe"),
    ]
    assert not [entry for entry in entries if SECRET.get_secret_value() in str(entry) or "another" in str(entry)]


def test_an_older_key_still_opens_until_all_is_encrypted_anew(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    for each in (tenant, other_tenant):
        installation.write(each, credentials.put, OLD, "stripe", "api_key", SECRET)
    assert _reveal(installation, tenant) == SECRET.get_secret_value()
    rings = {
        "TENANTRY_AUTH__CREDENTIAL_KEYS": json.dumps({key: secret.get_secret_value() for key, secret in RING.items()})
    }
    done = [commands.run(installation, "credential", "rotate", "--json", **rings) for _ in range(2)]
    assert [json.loads(each.stdout)["rotated"] for each in done] == [2, 0], done[0].stderr
    for each in (tenant, other_tenant):
        newest = {"k2": RING["k2"]}
        assert installation.write(each, credentials.reveal, newest, "stripe") == SECRET
        assert installation.rows(
            "SELECT actor_kind, actor FROM audit_entries WHERE tenant_id = %s AND action = 'credential.rotate'",
            str(each.tenant),
        ) == [("OPERATOR", "tenantry credential rotate")]


def test_a_credential_whose_key_is_gone_stops_the_rotation_and_stays(
    installation: Installation, tenant: Principal
) -> None:
    installation.write(tenant, credentials.put, OLD, "lost", "api_key", SECRET)
    before = installation.rows(TABLE, str(tenant.tenant))
    with pytest.raises(Misconfigured, match="'lost' does not open under the key 'k1'"):
        installation.write(tenant, credentials.rotate, {"k2": RING["k2"]})
    assert installation.rows(TABLE, str(tenant.tenant)) == before
    installation.write(tenant, credentials.remove, "lost")
