"""What is over goes, in portions that hold up nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from uuid import UUID

import psycopg2
import pytest
from psycopg2 import errors
from structlog.testing import capture_logs

from tasks.engine import housekeeping
from tasks.engine.housekeeping import Housekeeping
from tasks.engine.ledger import Ledger
from tenants import ids
from tenants.context import Principal
from tests.support.installations import Installation, eventually

_KEYS = """
INSERT INTO idempotency_keys (tenant_id, key, run_id, digest, expires_at)
SELECT %s, n, gen_random_uuid(), 'd', now() + %s FROM generate_series(1, %s) AS n
"""
_LEFT = "SELECT count(*) FROM idempotency_keys WHERE expires_at < now()"


@pytest.fixture
def house(installation: Installation) -> Iterator[Housekeeping]:
    """That nobody keeps yet."""
    made = Housekeeping(installation.addresses.system, installation.settings.engine)
    yield made
    made.end()
    made.join()
    eventually(lambda: not _connected(installation))
    installation.rows("DELETE FROM idempotency_keys")


def _connected(installation: Installation) -> bool:
    statement = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'tenantry-housekeeping'"
    return bool(installation.rows(f"{statement} AND datname = current_database()"))


def _left(installation: Installation) -> int:
    [(count,)] = installation.rows(_LEFT)
    return int(count)


def test_what_is_over_is_deleted_in_portions_and_what_somebody_holds_is_passed_over(
    installation: Installation, tenant: Principal, house: Housekeeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_PORTION", 100)
    installation.rows(_KEYS, str(tenant.tenant), timedelta(hours=-1), 250)
    installation.rows(_KEYS.replace("n, gen", "'new' || n, gen"), str(tenant.tenant), timedelta(hours=1), 3)
    installation.rows(
        "INSERT INTO limit_states (tenant_id, limit_id, key, arrival)"
        " SELECT %s, gen_random_uuid(), n, CASE WHEN n <= 250 THEN 1 ELSE extract(epoch FROM now()) + 3600 END"
        " FROM generate_series(1, 253) AS n",
        str(tenant.tenant),
    )
    installation.rows(
        "INSERT INTO bulk_actions (tenant_id, id, kind, actor_kind, actor, pending, total, finished_at)"
        " SELECT %s, gen_random_uuid(), 'CANCEL', 'API_KEY', 'a', '{}', 0,"
        "   CASE WHEN n <= 250 THEN now() - interval '31 days' WHEN n <= 252 THEN now() END"
        " FROM generate_series(1, 253) AS n",
        str(tenant.tenant),
    )
    tables = ("idempotency_keys", "limit_states", "bulk_actions")
    installation.rows("CREATE TABLE portions (name text, deleted int)")
    installation.rows(
        "CREATE FUNCTION count_portion() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        " INSERT INTO portions SELECT TG_TABLE_NAME, count(*) FROM gone; RETURN NULL; END $$"
    )
    for table in tables:
        installation.rows(
            f"CREATE TRIGGER portion AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone"
            " FOR EACH STATEMENT EXECUTE FUNCTION count_portion()"
        )
    with closing(psycopg2.connect(installation.addresses.owner)) as holder, holder.cursor() as cursor:
        for table, row in zip(
            tables, ("key = '7'", "key = '7'", "finished_at < now() - interval '1 day'"), strict=True
        ):
            cursor.execute(f"SELECT FROM {table} WHERE {row} LIMIT 1 FOR UPDATE")
        house.begin()
        counted = "SELECT array_agg(deleted ORDER BY deleted DESC) FROM portions WHERE name = %s"
        for table in tables:
            eventually(lambda table=table: installation.rows(counted, table) == [([100, 100, 49, 0],)])  # type: ignore[misc]
    installation.rows("DROP FUNCTION count_portion CASCADE")
    installation.rows("DROP TABLE portions")
    for table in tables:
        assert installation.rows(f"SELECT count(*) FROM {table}") == [(4,)], table
        installation.rows(f"DELETE FROM {table}")


def test_links_and_logins_go_a_week_after_their_end(
    installation: Installation, tenant: Principal, house: Housekeeping
) -> None:
    installation.rows(
        "INSERT INTO account_links (tenant_id, id, kind, email, detail, expires_at)"
        " SELECT id, gen_random_uuid(), 'RESET', n || '@example.org', '{}', now() - n * interval '1 day'"
        " FROM tenants, generate_series(6, 9) n WHERE slug = '_operator'"
    )
    user = str(ids.new())
    installation.rows("INSERT INTO users (id, email) VALUES (%s, %s)", user, f"{user}@example.org")
    installation.rows(
        "INSERT INTO memberships (tenant_id, user_id, role) VALUES (%s, %s, 'OWNER')", str(tenant.tenant), user
    )
    for agent, expires, revoked in (("open", 1, None), ("over", -6, None), ("gone", -8, None), ("ended", 1, -8)):
        installation.rows(
            "INSERT INTO login_sessions (tenant_id, id, user_id, agent, token_hash, expires_at, revoked_at)"
            " VALUES (%s, gen_random_uuid(), %s, %s, 'h', now() + %s * interval '1 d', now() + %s * interval '1 d')",
            str(tenant.tenant), user, agent, expires, revoked,
        )  # fmt: skip
    house.begin()
    links, logins = "SELECT email FROM account_links", "SELECT agent FROM login_sessions ORDER BY agent"
    eventually(lambda: installation.rows(links) == [("6@example.org",)])
    eventually(lambda: installation.rows(logins) == [("open",), ("over",)])
    installation.rows("DELETE FROM account_links")


def test_it_ends_after_a_portion_and_goes_on_when_it_begins_again(
    installation: Installation, tenant: Principal, house: Housekeeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_PORTION", 1)
    monkeypatch.setattr(housekeeping, "_AGAIN_SECONDS", 0.0)
    installation.rows(_KEYS, str(tenant.tenant), timedelta(hours=-1), 3000)
    house.begin()
    eventually(lambda: _left(installation) < 3000)
    house.end()
    house.join()
    eventually(lambda: not _connected(installation))
    left = _left(installation)
    assert left > 0
    monkeypatch.setattr(housekeeping, "_PORTION", 1000)
    house.begin()
    eventually(lambda: _left(installation) == 0)


def test_a_step_that_fails_or_finds_a_table_in_use_keeps_no_other_from_its_turn(
    installation: Installation, tenant: Principal, house: Housekeeping
) -> None:
    installation.rows(_KEYS, str(tenant.tenant), timedelta(hours=-1), 1)
    installation.rows("REVOKE EXECUTE ON FUNCTION delete_finished_bulk_actions FROM tenantry_system")
    installation.rows("INSERT INTO workers (name, queues, slots, last_seen) VALUES ('w', '{}', 1, '2026-01-01')")
    [(last,)] = installation.rows("SELECT max(relname) FROM pg_class WHERE relname ~ '^run_progress_p[0-9]+$'")
    installation.rows(f"DROP TABLE {last}")
    with closing(psycopg2.connect(installation.addresses.owner)) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT FROM run_progress")
        with capture_logs() as logs:
            house.begin()
            eventually(lambda: not installation.rows("SELECT 1 FROM workers"))
    installation.rows("GRANT EXECUTE ON FUNCTION delete_finished_bulk_actions TO tenantry_system")
    assert _left(installation) == 0
    told = [(entry["event"], entry["step"]) for entry in logs if "housekeeping" in entry["event"]]
    assert told == [("housekeeping_put_off", "partitions"), ("housekeeping_failed", "bulk_actions")]
    assert installation.rows("SELECT to_regclass(%s)", last) == [(None,)]


@pytest.mark.parametrize("wait", ["statement", "lock"])
def test_what_took_too_long_is_not_tried_again_at_once(
    installation: Installation, new_ledger: Callable[[], Ledger], wait: str
) -> None:
    installation.rows("CREATE SEQUENCE tries")
    installation.rows("GRANT USAGE ON SEQUENCE tries TO tenantry_system")
    ledger = new_ledger()
    ledger.call(f"SET {wait}_timeout = '20ms'")
    held = {"statement": "pg_sleep(20)", "lock": "pg_advisory_xact_lock(5)"}
    with installation.locked(5), pytest.raises((errors.QueryCanceled, errors.LockNotAvailable)):
        ledger.call(f"SELECT nextval('tries'), {held[wait]}")
    assert ledger.call(f"SHOW {wait}_timeout") == [("20ms",)], "on the same connection"
    assert installation.rows("SELECT last_value FROM tries") == [(1,)]
    installation.rows("DROP SEQUENCE tries")


@pytest.fixture
def new_ledger(installation: Installation) -> Iterator[Callable[[], Ledger]]:
    """Makes ledgers of the system login."""
    made: list[Ledger] = []

    def make() -> Ledger:
        made.append(Ledger(installation.addresses.system, installation.settings.engine, application="tests"))
        return made[-1]

    yield make
    for ledger in made:
        ledger.close()


def test_an_effect_stays_as_long_as_a_run_may_ask_for_it(
    installation: Installation, tenant: Principal, other_tenant: Principal, house: Housekeeping,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(housekeeping, "_PORTION", 2)
    kept, repeated, gone = installation.trigger(tenant, "diagnostics.echo"), ids.new(), ids.new()
    repetition = installation.trigger(tenant, "diagnostics.echo")
    installation.rows("UPDATE runs SET effects_of = %s WHERE id = %s", str(repeated), str(repetition))

    def done(principal: Principal, run: UUID | str, name: str, days: int) -> str:
        installation.rows(
            "INSERT INTO effects (tenant_id, key, run_id, fence, token, created_at)"
            " VALUES (%s, %s, gen_random_uuid(), 1, gen_random_uuid(), now() - make_interval(days => %s))",
            str(principal.tenant), f"{run}:{name}", days,
        )  # fmt: skip
        return f"{run}:{name}"

    stays = {
        done(tenant, kept, "of a run that is there", 31),
        done(tenant, repeated, "shared by a repetition", 400),
        done(tenant, gone, "young", 29),
    }
    for name in ("a", "b", "c"):
        done(tenant, gone, name, 31)
    done(other_tenant, kept, "of a run of another tenant", 31)
    done(other_tenant, repeated, "of a repetition of another tenant", 31)
    done(other_tenant, "nothing", "of no run", 31)
    house.begin()
    eventually(lambda: len(installation.rows("SELECT 1 FROM effects")) <= len(stays))
    house.end()
    house.join()
    assert {key for (key,) in installation.rows("SELECT key FROM effects")} == stays
    installation.rows("DELETE FROM effects")
