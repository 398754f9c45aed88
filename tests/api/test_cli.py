"""The command line: what it makes, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg2
import pytest

from api import cli
from api.embedded import Servers
from tenants import ids, keys, roles
from tests.support import commands
from tests.support.folders import ROOT
from tests.support.installations import Installation

Tenantry = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def tenantry(installation: Installation) -> Tenantry:
    """Runs a command on the installation, which its environment names."""

    return partial(commands.run, installation)


def test_a_tenant_a_person_and_a_key_are_made(installation: Installation, tenantry: Tenantry) -> None:
    made = json.loads(tenantry("tenant", "create", "made", "--family", "sales", "diagnostics", "--json").stdout)
    assert made == {"id": made["id"], "slug": "made"}
    tenant = str(ids.read("ten", made["id"]))
    families = installation.rows("SELECT family FROM tenant_families WHERE tenant_id = %s ORDER BY 1", tenant)
    assert families == [("diagnostics",), ("sales",)]

    person = ("user", "create", "--tenant", "made", "--email", "Ann@Example.com", "--role", "owner", "--password-stdin")
    assert json.loads(tenantry(*person, "--json", given="a good password\n").stdout)["email"] == "ann@example.com"
    assert installation.rows("SELECT role FROM memberships WHERE tenant_id = %s", tenant) == [("OWNER",)]

    key = (
        "key",
        "create",
        "--tenant",
        "made",
        "--name",
        "k",
        "--scope",
        "runs:read",
        "runs:write",
        "--scope",
        "sales:read",
    )
    answer = json.loads(tenantry(*key, "--task", "sales.import_orders", "--json").stdout)
    assert keys.check_form(answer["secret"])
    [(scopes, tasks, digest)] = installation.rows(
        "SELECT scopes, task_names, secret_hash FROM api_keys WHERE id = %s", str(ids.read("key", answer["id"]))
    )
    assert scopes == ["runs:read", "runs:write", "sales:read"]
    assert tasks == ["sales.import_orders"]
    assert answer["secret"] not in digest

    told = installation.rows(
        "SELECT actor_kind, actor, action, target FROM audit_entries WHERE tenant_id = %s ORDER BY id", tenant
    )
    [(person,)] = installation.rows("SELECT user_id FROM memberships WHERE tenant_id = %s", tenant)
    assert told == [
        ("OPERATOR", "tenantry tenant create", "tenant.create", made["id"]),
        ("OPERATOR", "tenantry user create", "member.set", ids.show("usr", person)),
        ("OPERATOR", "tenantry key create", "key.create", answer["id"]),
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tenant", "create", "Not A Slug"), "slug: must be at most 63 of a-z, 0-9, - and _"),
        (("tenant", "create", "fine", "--family", "nope"), "There is no family 'nope': there are "),
        (("key", "create", "--tenant", "nobody", "--name", "k", "--scope", "*"), "There is no tenant 'nobody'."),
        (("key", "create", "--tenant", "_operator", "--name", "k", "--scope", "fly"), "scopes.0: is not a scope."),
        (("task", "trigger", "x", "--args", "{"), "--args is not JSON"),
        (("run", "show", "run_x"), "TENANTRY_API_KEY is not set"),
        (("limits", "set", "--tenant", "t", "--name", "n"), "Say what to limit"),
        (("limits", "set", "--tenant", "t", "--name", "n", "--rate", "often"), "--rate is a number per s, m or h"),
    ],
)
def test_a_refusal_is_one_sentence_and_changes_nothing(
    installation: Installation, tenantry: Tenantry, arguments: tuple[str, ...], sentence: str
) -> None:
    count = "SELECT (SELECT count(*) FROM tenants), (SELECT count(*) FROM api_keys)"
    before = installation.rows(count)
    refused = tenantry(*arguments)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"tenantry: {sentence}")
    assert refused.stderr.count("\n") == 1
    assert installation.rows(count) == before


def test_a_wrong_way_to_call_is_exit_two(tenantry: Tenantry) -> None:
    assert tenantry("key", "create").returncode == 2
    assert tenantry("fly").returncode == 2


def test_without_a_server_it_says_that_none_answers(tenantry: Tenantry) -> None:
    refused = tenantry("run", "show", "run_x", TENANTRY_API_KEY="k", TENANTRY_URL="http://127.0.0.1:1")
    assert refused.returncode == 1
    assert refused.stderr.startswith("tenantry: http://127.0.0.1:1 does not answer")


@pytest.mark.parametrize("way", ["option", "environment"])
def test_without_an_installation_it_says_how_to_get_one(tmp_path: Path, way: str) -> None:
    option, environment = (
        (["--state", str(tmp_path)], {}) if way == "option" else ([], {"TENANTRY_STATE": str(tmp_path)})
    )
    refused = subprocess.run(
        [sys.executable, "-m", "api.cli", "doctor", *option],
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        check=False,
    )
    assert refused.returncode == 1
    assert refused.stderr == (
        f"tenantry: There is no installation in {tmp_path}: run ./dev up first, or set DATABASE_URL.\n"
    )


def test_a_superusers_address_is_refused_before_anything_is_read(
    installation: Installation, servers: Servers, tenantry: Tenantry
) -> None:
    name = installation.addresses.app.rpartition("/")[2]
    admin = servers.admin_url.removesuffix("postgres") + name
    refused = tenantry("key", "create", "--tenant", "_operator", "--name", "k", "--scope", "*", DATABASE_URL=admin)
    assert refused.returncode == 1
    assert "is a superuser or a member of one: use tenantry_app" in refused.stderr


def test_doctor_names_what_is_wrong(installation: Installation, tenantry: Tenantry) -> None:
    found = tenantry("doctor", "--json", TENANTRY_ENGINE__GRANT_KEYS="{}")
    wrong = {check["name"]: check for check in json.loads(found.stdout)["checks"] if not check["ok"]}
    assert found.returncode == 1
    assert set(wrong) == {"secrets", "workers", "dispatcher"}
    assert wrong["secrets"]["message"] == "missing: TENANTRY_ENGINE__GRANT_KEYS"
    assert "none leads" in wrong["dispatcher"]["message"]


def test_migrate_brings_an_empty_database_to_the_head(servers: Servers, tenantry: Tenantry) -> None:
    secret = roles.Passwords(owner="owner-for-tests", app="app-for-tests", system="system-for-tests")
    made = roles.create(servers.admin_url, secret, database="empty_until_migrated")
    done = tenantry("migrate", "--json", DATABASE_OWNER_URL=made.owner)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"revision": "head"}
    connection = psycopg2.connect(made.owner)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT slug FROM tenants")
        assert cursor.fetchall() == [("_operator",)]
    connection.close()


def test_database_init_takes_the_passwords_of_the_addresses_and_may_be_repeated(
    servers: Servers, tenantry: Tenantry, installation: Installation
) -> None:
    host = servers.admin_url.rpartition("@")[2].removesuffix("/postgres")
    addresses = {
        "DATABASE_URL": f"postgresql://tenantry_app:app-for-tests@{host}/given",
        "DATABASE_SYSTEM_URL": f"postgresql://tenantry_system:system-for-tests@{host}/given",
        "DATABASE_OWNER_URL": f"postgresql://tenantry_owner:owner-for-tests@{host}/given",
    }
    for _ in range(2):
        done = tenantry("database", "init", "--admin-url", servers.admin_url, "--json", **addresses)
        assert json.loads(done.stdout) == addresses, done.stderr
    psycopg2.connect(addresses["DATABASE_URL"]).close()


def test_the_exported_schema_is_the_one_in_the_tree(tenantry: Tenantry) -> None:
    assert tenantry("schema", "export").stdout.strip() == (ROOT / "schema" / "schema.graphql").read_text().strip()


@pytest.mark.parametrize(
    ("written", "understood"),
    [
        (["--scope", "a", "b", "--name", "n"], ["--scope", "a", "--scope", "b", "--name", "n"]),
        (["--scope", "a", "--scope", "b"], ["--scope", "a", "--scope", "b"]),
        (
            ["create", "slug", "--family", "a", "b", "c"],
            ["create", "slug", "--family", "a", "--family", "b", "--family", "c"],
        ),
        (["--name", "n", "x"], ["--name", "n", "x"]),
    ],
)
def test_several_values_may_follow_one_option(written: list[str], understood: list[str]) -> None:
    assert cli._spread(written) == understood


def test_secrets_are_new_each_time(tenantry: Tenantry) -> None:
    one, other = (json.loads(tenantry("secrets", "--json").stdout) for _ in range(2))
    assert one.keys() == other.keys()
    assert not set(one.values()) & set(other.values())
    assert all(re.search(r"[0-9a-f]{32}", value) for value in one.values())


def test_limits_are_set_shown_and_removed_by_an_operator(installation: Installation, tenantry: Tenantry) -> None:
    tenantry("tenant", "create", "limited", "--family", "diagnostics")
    limits = ("--tenant", "limited", "--json")
    made = tenantry("limits", "set", *limits, "--name", "mail", "--rate", "100/m", "--burst", "5", "--concurrency", "3",
                    "--task", "echo", "--key", "*")  # fmt: skip
    assert made.returncode == 0, made.stderr
    tenantry("limits", "set", *limits, "--name", "share", "--weight", "4")
    found = json.loads(tenantry("limits", "list", *limits).stdout)["limits"]
    shown = [
        (one["name"], one["kind"], one["amount"], one["perSeconds"], one["burst"], one["taskName"]) for one in found
    ]
    assert shown == [
        ("mail", "CONCURRENCY", 3, None, None, "diagnostics.echo"),
        ("mail", "RATE", 100, 60, 5, "diagnostics.echo"),
        ("share", "WEIGHT", 4, None, None, None),
    ]
    assert installation.rows("SELECT DISTINCT actor_kind, actor FROM limits") == [("OPERATOR", "tenantry limits set")]
    text = tenantry("limits", "list", "--tenant", "limited").stdout
    assert "mail: rate 100 per 60 s, burst 5 (diagnostics.echo, key *)" in text
    assert tenantry("limits", "remove", "--tenant", "limited", "--name", "mail").returncode == 0
    assert [one["name"] for one in json.loads(tenantry("limits", "list", *limits).stdout)["limits"]] == ["share"]
    assert tenantry("limits", "remove", "--tenant", "limited", "--name", "mail").returncode == 1
