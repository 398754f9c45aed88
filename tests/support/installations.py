"""Real installations for tests: a database cloned from the migrated one, and processes by their ids."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psycopg2
import redis

from tasks.engine import runs
from tasks.engine.models import Run, RunEvent
from tasks.engine.publish import Bell
from tasks.engine.states import TERMINAL
from tenants import db, names, settings, system
from tenants.context import ActorKind, Principal
from tenants.roles import Addresses
from tenants.settings import Settings
from tests.support import forkserver
from tests.support.forkserver import Process

T = TypeVar("T")


def eventually(question: Callable[[], T], seconds: float = 60.0, every: float = 0.02) -> T:
    """Ask until the answer is true; fails when it never is."""
    until = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s; the last answer was {answer!r}")
        pause.wait(every)


@dataclass
class Installation:
    """Addresses of the servers, and the processes started on them."""

    addresses: Addresses
    redis_url: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    accepted: dict[UUID, UUID] = field(default_factory=dict)
    """Every run that was accepted, and its tenant."""
    told: dict[UUID, tuple[UUID, int, str]] = field(default_factory=dict)
    """What a subscriber was last told of each run: its tenant, sequence and state."""
    caps: dict[UUID, int] = field(default_factory=dict)
    """How many runs of a tenant may be released or running at once, where that is limited."""

    @property
    def variables(self) -> dict[str, str]:
        """The environment of its processes."""
        return {
            "DATABASE_URL": self.addresses.app,
            "DATABASE_SYSTEM_URL": self.addresses.system,
            "DATABASE_OWNER_URL": self.addresses.owner,
            "REDIS_URL": self.redis_url,
            "TENANTRY_DIAGNOSTICS": "true",
            "TENANTRY_ENVIRONMENT": "development",
            "TENANTRY_STATE": str(self.folder),
            "TENANTRY_STORAGE__URL": f"file://{self.folder}/objects",
            "TENANTRY_ENGINE__GRANT_KEYS": '{"k1":"a-key-for-tests-only-0123456789abcdef"}',
            "TENANTRY_AUTH__TOKEN_KEYS": '{"k1":"another-key-for-tests-0123456789abcdef"}',
            "TENANTRY_AUTH__LINK_KEYS": '{"k1":"a-third-key-for-tests-0123456789abcdef"}',
            "TENANTRY_AUTH__CREDENTIAL_KEYS": '{"k1":"one-more-key-for-tests-0123456789abcdef"}',
            "TENANTRY_AUTH__KEY_PEPPER": "a-pepper-for-tests-0123456789abcdef",
            **self.environment,
        }

    @property
    def settings(self) -> Settings:
        """Its settings, as its processes read them."""
        before = dict(os.environ)
        os.environ.update(self.variables)
        try:
            return settings.load()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def start(self, name: str, *command: str, **environment: str) -> Process:
        """Start `python -m` with this command, in a group of its own, its output in a file named after it."""
        process = forkserver.start(
            command,
            {
                "PATH": os.environ["PATH"],
                "TMPDIR": str(self.folder),  # What they leave behind when they are killed.
                **self.variables,
                **environment,
            },
            self.folder / f"{name}.log",
        )
        self.processes[name] = process
        return process

    def start_worker(self, name: str = "w1", *options: str, concurrency: int = 2, **environment: str) -> None:
        """Start a Celery worker and wait until it has reported itself."""
        self.start(
            name, "celery", "-A", "tasks.worker", "worker", "-n", f"{name}@test", "-c", str(concurrency),
            "--without-mingle", "--without-gossip", "-l", "INFO", *options, **environment,
        )  # fmt: skip
        eventually(
            lambda: self.rows(
                "SELECT 1 FROM workers WHERE name = %s AND last_seen > now() - interval '5 s'", f"{name}@test"
            )
        )

    def start_dispatcher(self, name: str = "d1", **environment: str) -> None:
        """Start `celery beat`, which dispatches."""
        self.start(name, "celery", "-A", "tasks.worker", "beat", "-l", "INFO", "--pidfile", "", **environment)

    def lead(self) -> None:
        """Wait until a dispatcher leads."""
        eventually(lambda: self.rows("SELECT 1 FROM dispatcher_leader WHERE expires_at > clock_timestamp()"))

    def kill(self, name: str, number: int = signal.SIGKILL, *, group: bool = True) -> None:
        """Send a signal to a process, or to its whole group."""
        process = self.processes[name]
        (os.killpg if group else os.kill)(process.pid, number)
        if number == signal.SIGKILL:
            process.wait(10)
            del self.processes[name]

    def stop(self) -> None:
        """End everything that was started."""
        for process in self.processes.values():
            for number in (signal.SIGCONT, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    break
        for process in self.processes.values():
            process.wait(10)
        self.processes.clear()

    def log(self, name: str) -> str:
        """What a process has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the database as its owner."""
        with closing(psycopg2.connect(self.addresses.owner)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []

    @contextmanager
    def locked(self, number: int) -> Iterator[None]:
        """Hold an advisory lock of the database."""
        with closing(psycopg2.connect(self.addresses.owner)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (number,))
            yield

    def tenant(self, slug: str, *families: str) -> Principal:
        """Make a tenant; an API key's principal with every scope in it."""
        made = system.create_tenant(self.settings, slug, families=families or ("diagnostics",))
        return Principal(made.id, ActorKind.API_KEY, "key_tests", frozenset({"*"}))

    def slug(self, tenant: Principal) -> str:
        """What a tenant is called."""
        [(found,)] = self.rows("SELECT slug FROM tenants WHERE id = %s", str(tenant.tenant))
        return str(found)

    def write(self, principal: Principal, service: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a service inside the principal's tenant, commit, and ring its bells."""
        engine = db.sync_engine(self.addresses.app, pool_size=1)
        with db.open_session(engine, principal) as session:
            result = service(session, *args, **kwargs)
            session.commit()
            bells = [notice for notice in db.notices(session) if isinstance(notice, Bell)]
        engine.dispose()
        self.ring(bells)
        return result

    def ring(self, bells: list[Bell]) -> None:
        """Ring, best effort."""
        client = redis.Redis.from_url(self.redis_url, socket_timeout=0.2, socket_connect_timeout=0.2)
        try:
            for bell in bells:
                client.publish(names.BELL, bell.encode())
        except (redis.RedisError, OSError):
            return
        finally:
            client.close()

    def trigger(self, principal: Principal, task: str, args: dict[str, Any] | None = None, **options: Any) -> UUID:
        """Trigger a run; its id."""
        return self.trigger_many(principal, [runs.TriggerRequest(task, args or {}, **options)])[0]

    def trigger_many(self, principal: Principal, requests: Sequence[runs.TriggerRequest]) -> list[UUID]:
        """Trigger runs in one transaction; their ids in the order given."""
        accepted = [made.run.id for made in self.write(principal, runs.trigger_many, requests)]
        self.accepted.update(dict.fromkeys(accepted, principal.tenant))
        return accepted

    def children(self, name: str) -> list[int]:
        """The processes that a process has started."""
        process = self.processes[name].pid
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]

    def run(self, principal: Principal, run: UUID) -> Run:
        """The run as its tenant sees it."""
        return self.write(principal, runs.get, run)

    def history(self, run: UUID) -> list[tuple[int, str, int]]:
        """Sequence, state and attempt of every event of the run."""
        return [
            (sequence, state, attempt)
            for sequence, state, attempt in self.rows(
                f"SELECT sequence, state, attempt FROM {RunEvent.__tablename__} WHERE run_id = %s ORDER BY sequence",
                str(run),
            )
        ]

    def states(self, run: UUID) -> list[str]:
        """Every state the run has been in."""
        return [state for _, state, _ in self.history(run)]

    def ended(self, principal: Principal, run: UUID, seconds: float = 60.0) -> Run:
        """Wait until the run has ended."""
        statement, states = "SELECT 1 FROM runs WHERE id = %s AND state = ANY (%s)", [state.value for state in TERMINAL]
        eventually(lambda: self.rows(statement, str(run), states), seconds, every=0.05)
        return self.run(principal, run)
