"""Dead letters: one group for one reason, each run in it once, until somebody retries it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from tasks.engine import dead_letters, runs
from tasks.engine.dead_letters import Group
from tasks.engine.filters import RunFilter
from tasks.engine.ledger import Settlement
from tasks.engine.states import RunState
from tenants import ids, pages
from tenants.context import Principal
from tenants.errors import InvalidInput, NotFound
from tests.support.hands import Hands
from tests.support.installations import Installation, eventually

S = RunState


def die(
    hands: Hands, tenant: Principal, message: str, *, kind: str = "Boom", task: str = "diagnostics.echo",
    state: RunState = S.FAILED,
) -> UUID:  # fmt: skip
    """A run that ends as a dead letter."""
    run, fence = hands.running(tenant, task, {"seconds": 0} if task == "diagnostics.sleep" else None)
    hands.settle(tenant, run, fence, Settlement(state, error={"type": kind, "message": message, "retryable": True}))
    return run


def groups(installation: Installation, tenant: Principal) -> list[Group]:
    return installation.write(tenant, dead_letters.page, first=100).items


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("row 17 is bad", "row 4021 is bad"),
        ("took 3 s", "took 2.5 s"),
        ("no run_01kaqv5xq8e7frtgv5bq7r0vbz", "no run_01kaqv5xq9f7frtgv5bq7r0vcc"),
        ("no 8f14e45f-ceea-467f-a8a1-0c7e8b5d1b2a", "no c9f0f895-fb98-4b91-99f2-1fd0c1e4a6d3"),
        ("at 0xdeadbeef", "at 0x7ffe01"),
        ("commit 9fceb02d0ae598e95dc970b74767f19372d61af8", "commit 6dcb09b5b57875f334f61aebed695e2e4193db5e"),
        ("no file 'a.csv'", "no file 'b and c.csv'"),
        ('key "a" is taken', 'key "" is taken'),
        ("column `x` is gone", "column `y` is gone"),
        ("ann@example.org refused it", "bob.b@mail.example.org refused it"),
        ("10.0.0.1:5432 refused at 2026-11-20T09:30:00Z", "10.0.0.12:5432 refused at 2026-11-21T10:31:02.123Z"),
        ("it  failed\n", "it failed "),
        ("grün 1", "grün 2"),
    ],
)
def test_what_differs_in_particulars_only_is_one_group(
    installation: Installation, hands: Hands, tenant: Principal, one: str, other: str
) -> None:
    die(hands, tenant, one)
    newest = die(hands, tenant, other)
    [group] = groups(installation, tenant)
    assert (group.count, group.task, group.error_type, group.message) == (2, "diagnostics.echo", "Boom", other)
    letters = _letters(installation, tenant, group)
    assert letters[0] == newest
    last, first = (installation.run(tenant, run).finished_at for run in letters)
    assert (group.first_at, group.last_at) == (first, last)


def test_what_differs_in_its_words_its_type_or_its_task_is_another_group(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    die(hands, tenant, "can't read the user's file")
    die(hands, tenant, "can't write the user's file")
    die(hands, tenant, "can't read the user's file", kind="Bang")
    die(hands, tenant, "can't read the user's file", task="diagnostics.sleep")
    assert [group.count for group in groups(installation, tenant)] == [1, 1, 1, 1]


def test_every_way_to_become_a_dead_letter_leads_into_a_group(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    die(hands, tenant, "slow", kind="TimeLimitExceeded", state=S.TIMED_OUT)
    run, fence = hands.running(tenant)
    hands.settle(tenant, run, fence, Settlement(S.FAILED))
    crashed = installation.trigger(tenant, "diagnostics.echo")
    for _ in range(3):
        hands.due(crashed)
        hands.requeue(unclaimed_seconds=3600)
        fence = hands.release(tenant, crashed)[crashed]
        hands.claim(tenant, crashed, fence)
        hands.app.report_crash(tenant.tenant, crashed, fence, "lost: worker w7@here stopped renewing its lease")
    found = {(group.error_type, group.message, group.count) for group in groups(installation, tenant)}
    assert found == {
        ("TimeLimitExceeded", "slow", 1),
        ("", "", 1),
        ("WorkerLost", "lost: worker w7@here stopped renewing its lease", 1),
    }


@pytest.mark.parametrize(
    "settlement",
    [
        Settlement(S.SUCCEEDED),
        Settlement(S.CANCELLED, error={"type": "X", "message": "m"}),
        Settlement(S.SCHEDULED, error={"type": "X", "message": "m"}),
        Settlement(S.WAITING, event="paid"),
    ],
    ids=lambda settlement: settlement.state,
)
def test_what_is_no_dead_letter_is_in_no_group(
    installation: Installation, hands: Hands, tenant: Principal, settlement: Settlement
) -> None:
    run, fence = hands.running(tenant)
    hands.settle(tenant, run, fence, settlement)
    assert groups(installation, tenant) == []
    assert installation.run(tenant, run).fingerprint is None


def test_a_retried_letter_leaves_its_group_and_its_retry_comes_into_it(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    letter = die(hands, tenant, "no 1")
    [group] = groups(installation, tenant)
    retry = installation.write(tenant, runs.retry, letter)
    assert installation.run(tenant, letter).retried_by == retry.id
    assert groups(installation, tenant) == []
    with pytest.raises(NotFound):
        installation.write(tenant, dead_letters.get, group.id)
    fence = hands.release(tenant, retry.id)[retry.id]
    hands.claim(tenant, retry.id, fence)
    hands.settle(tenant, retry.id, fence, Settlement(S.FAILED, error={"type": "Boom", "message": "no 2"}))
    again = installation.write(tenant, dead_letters.get, group.id)
    assert (again.count, again.message) == (1, "no 2")
    assert _letters(installation, tenant, again) == [retry.id]


def test_the_groups_are_read_page_by_page_the_latest_first(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    words = ["one", "two", "three", "four", "five"]
    for word in (*words, "two"):
        die(hands, tenant, word)
    seen: list[str] = []
    after, more = None, True
    while more:
        page = installation.write(tenant, dead_letters.page, first=2, after=after)
        seen += [group.message for group in page.items]
        assert page.has_previous == (after is not None)
        after, more = page.cursors[-1], page.has_next
    assert seen == ["two", "five", "four", "three", "one"]


def test_groups_that_ended_at_one_moment_are_each_read_once(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    letters = [die(hands, tenant, word) for word in ("one", "two", "three")]
    installation.rows(
        "UPDATE runs SET finished_at = '2026-11-20 09:30:00.123457Z' WHERE id = ANY (%s::uuid[])",
        [str(letter) for letter in letters],
    )
    seen, after = [], None
    for _ in letters:
        page = installation.write(tenant, dead_letters.page, first=1, after=after)
        seen += [group.message for group in page.items]
        after = page.cursors[-1]
    assert sorted(seen) == ["one", "three", "two"]
    assert not page.has_next


@pytest.mark.parametrize(
    "cursor",
    ["", "nonsense", pages.encode("dlg", 1), pages.encode("dlg", UUID(int=2**128 - 1)), pages.encode("run", 1)],
)
def test_a_cursor_that_is_none_of_the_list_is_refused(
    installation: Installation, tenant: Principal, cursor: str
) -> None:
    with pytest.raises(InvalidInput):
        installation.write(tenant, dead_letters.page, after=cursor)


@pytest.mark.parametrize("first", [0, -1, 101])
def test_a_page_has_1_to_100_groups(installation: Installation, tenant: Principal, first: int) -> None:
    with pytest.raises(InvalidInput):
        installation.write(tenant, dead_letters.page, first=first)


def test_equal_failures_of_two_tenants_are_two_groups(
    installation: Installation, hands: Hands, tenant: Principal, other_tenant: Principal
) -> None:
    die(hands, tenant, "same")
    die(hands, other_tenant, "same")
    [ours], [theirs] = groups(installation, tenant), groups(installation, other_tenant)
    assert (ours.count, theirs.count) == (1, 1)
    assert ours.id != theirs.id
    for unknown in (theirs.id, ids.new()):
        with pytest.raises(NotFound):
            installation.write(tenant, dead_letters.get, unknown)
        assert installation.write(tenant, runs.page, RunFilter(dead_letter_group=unknown)).items == []


def test_a_hundred_thousand_letters_are_grouped_and_read_from_their_index(
    installation: Installation, new_tenant: Callable[..., Principal]
) -> None:
    tenant = new_tenant("diagnostics")
    installation.rows(
        "INSERT INTO runs (tenant_id, id, task, queue, args, priority, rank, state, max_attempts, actor_kind, actor,"
        " available_at, finished_at, error, fingerprint)"
        " SELECT %s, new_id(), 'diagnostics.echo', 'diagnostics', '{}', 5, now(), 'FAILED', 1, 'USER', 'u', now(),"
        "  now() - n * interval '1 ms', jsonb_build_object('type', 'T', 'message', repeat('x', 500)),"
        "  md5((n / 100)::text)::uuid"
        " FROM generate_series(1, 100000) n",
        str(tenant.tenant),
    )
    eventually(lambda: _vacuumed(installation), 60)
    found = groups(installation, tenant)
    assert [group.count for group in found] == [99] + [100] * 99
    page = RunFilter(dead_letter_group=found[1].id)
    assert len(installation.write(tenant, runs.page, page, first=100).items) == 100
    grouping = (
        "SELECT fingerprint, count(*), min(finished_at), max(finished_at) FROM runs"
        " WHERE fingerprint IS NOT NULL AND retried_by IS NULL GROUP BY fingerprint"
    )
    reading = f"SELECT * FROM runs WHERE fingerprint = '{found[1].id}' AND retried_by IS NULL ORDER BY id DESC LIMIT 20"
    assert _scans(installation, tenant, grouping) == {("Index Only Scan", "ix_runs_dead")}
    assert _scans(installation, tenant, reading) == {("Index Scan", "ix_runs_dead")}


def _vacuumed(installation: Installation) -> bool:
    """Whether every page is known to be visible to all: the server's own analysis may hold it up."""
    installation.rows("VACUUM ANALYZE runs")
    [(seen, pages)] = installation.rows(
        "SELECT sum(c.relallvisible), sum(c.relpages) FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid"
        " WHERE i.inhparent = 'runs'::regclass"
    )
    return bool(seen > 0.9 * pages)


def _scans(installation: Installation, tenant: Principal, statement: str) -> set[tuple[str, str]]:
    """How a statement comes by its rows: each kind of scan that found some, with the index of the whole table."""
    indexes = dict(
        installation.rows(
            "SELECT c.relname, p.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " JOIN pg_class p ON p.oid = i.inhparent WHERE c.relkind = 'i'"
        )
    )
    explained = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}")
    [plan] = installation.write(tenant, lambda session: session.scalar(explained))

    def scans(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
        if node["Node Type"].endswith("Scan") and node["Actual Rows"]:
            yield node["Node Type"], indexes.get(node.get("Index Name"), "none")
        for inner in node.get("Plans", ()):
            yield from scans(inner)

    return set(scans(plan["Plan"]))


def _letters(installation: Installation, tenant: Principal, group: Group) -> list[UUID]:
    page = installation.write(tenant, runs.page, RunFilter(dead_letter_group=group.id))
    return [run.id for run in page.items]
