"""`tenantry doctor`: what is wrong with an installation, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import redis
import typer
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import SQLAlchemyError

from api import installation
from api.commands import terminal
from api.commands.terminal import Json, State
from tasks import registry
from tasks.engine import figures
from tasks.engine.models import DispatcherLeader, Worker
from tenants import db, roles
from tenants.errors import Misconfigured
from tenants.settings import Settings

_POSTGRES_FLOOR = 150_000
_REDIS_FLOOR = 7
_UP = "start the parts again (./dev up, or the services of deploy/)"
_VERSION = text("SELECT current_setting('server_version_num')::int")
_REVISION = text("SELECT version_num FROM alembic_version")
_REFUSED = text("SELECT reason, total FROM refused_counts ORDER BY reason")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `remedy` is empty where nothing is wrong."""

    name: str
    message: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.remedy


def doctor(state: State = None, as_json: Json = False) -> None:
    """Say what is wrong and how to mend it; exit 1 if anything is."""
    settings = installation.settle(state)
    findings = [*_secrets(settings), *_logins(settings), *_schema(settings), *_broker(settings)]
    refused: dict[str, int] = {}
    try:
        with _connect(settings.database.system_url) as connection:
            findings += [*_workers(connection), *_dispatcher(connection)]
            refused = dict(connection.execute(_REFUSED).tuples().all())
    except (SQLAlchemyError, Misconfigured):
        findings.append(Finding("workers", "cannot be asked", "mend the login system and the migrations first"))
    well = all(finding.ok for finding in findings)
    value = {
        "ok": well,
        "checks": [{**asdict(finding), "ok": finding.ok} for finding in findings],
        "refused_messages": refused,
    }
    lines = [_line(finding) for finding in findings]
    lines += [f"note  {total} messages were refused: {reason}" for reason, total in refused.items()]
    terminal.answer(value, "\n".join(lines), as_json=as_json)
    if not well:
        raise typer.Exit(1)


def _secrets(settings: Settings) -> Iterator[Finding]:
    needed = {
        "TENANTRY_AUTH__TOKEN_KEYS": settings.auth.token_keys,
        "TENANTRY_AUTH__LINK_KEYS": settings.auth.link_keys,
        "TENANTRY_AUTH__KEY_PEPPER": settings.auth.key_pepper.get_secret_value(),
        "TENANTRY_AUTH__CREDENTIAL_KEYS": settings.auth.credential_keys,
        "TENANTRY_ENGINE__GRANT_KEYS": settings.engine.grant_keys,
    }
    missing = [name for name, value in needed.items() if not value]
    if missing:
        yield Finding("secrets", f"missing: {', '.join(missing)}", "set them, or name files by …_FILE")
    else:
        yield Finding("secrets", "all are set")


def _logins(settings: Settings) -> Iterator[Finding]:
    database = settings.database
    for login, variable, address in (
        ("app", "DATABASE_URL", database.url),
        ("system", "DATABASE_SYSTEM_URL", database.system_url),
        ("owner", "DATABASE_OWNER_URL", database.owner_url),
    ):
        name = f"login {login}"
        try:
            with _connect(address) as connection:
                version = connection.scalar(_VERSION)
                if version < _POSTGRES_FLOOR:
                    yield Finding(name, f"PostgreSQL {version // 10_000} is too old", "use PostgreSQL 15 or newer")
                    continue
                if login != "owner":
                    roles.refuse_bypass(connection)
        except SQLAlchemyError as error:
            cause = str(error.__cause__ or error).strip().splitlines()[0]
            yield Finding(name, f"cannot connect: {cause}", f"check {variable}, or run tenantry database init")
        except Misconfigured as error:
            yield Finding(name, error.message, f"mend {variable}")
        else:
            yield Finding(name, f"reaches PostgreSQL {version // 10_000}, with no power too many")


def _schema(settings: Settings) -> Iterator[Finding]:
    scripts = ScriptDirectory.from_config(Config(installation.ROOT / "alembic.ini"))
    try:
        with _connect(settings.database.owner_url) as connection:
            found = connection.scalar(_REVISION)
    except (SQLAlchemyError, Misconfigured):
        found = None
    head = scripts.get_current_head()
    if found == head:
        yield Finding("migrations", f"at the head, {head}")
    else:
        yield Finding("migrations", f"at {found or 'none'}, the head is {head}", "run tenantry migrate")


def _broker(settings: Settings) -> Iterator[Finding]:
    try:
        with redis.Redis.from_url(
            settings.redis.url, socket_timeout=settings.redis.timeout_seconds, decode_responses=True
        ) as client:
            facts = client.info()
    except (redis.RedisError, ValueError) as error:
        yield Finding("redis", f"cannot be reached: {error}", "check REDIS_URL and the server")
        return
    version = str(facts.get("redis_version"))
    if int(version.partition(".")[0]) < _REDIS_FLOOR:
        yield Finding("redis", f"version {version} is too old", "use Redis 7 or newer, or Valkey")
    elif facts.get("maxmemory_policy") != "noeviction":
        policy = facts.get("maxmemory_policy")
        yield Finding("redis", f"drops data under {policy}", "set maxmemory-policy noeviction")
    else:
        yield Finding("redis", f"answers, version {version}, noeviction")


def _workers(connection: Connection) -> Iterator[Finding]:
    reported = select(Worker.name, Worker.queues).where(figures.alive()).order_by(Worker.name)
    alive: dict[str, list[str]] = dict(connection.execute(reported).tuples().all())
    covered = {queue for queues in alive.values() for queue in queues}
    missing = [queue for queue in registry.queues() if queue not in covered]
    if missing:
        yield Finding("workers", f"no live worker consumes {', '.join(missing)}", f"{_UP}: worker")
    else:
        yield Finding("workers", f"{len(alive)} alive: {', '.join(alive)}")


def _dispatcher(connection: Connection) -> Iterator[Finding]:
    leaders = select(DispatcherLeader.holder).where(figures.leading())
    holder = connection.scalar(leaders)
    if holder is None:
        yield Finding("dispatcher", "none leads, so nothing starts", f"{_UP}: beat")
    else:
        yield Finding("dispatcher", f"{holder} leads")


@contextmanager
def _connect(address: str) -> Iterator[Connection]:
    if not address:
        raise Misconfigured("no address is set.")
    engine = db.sync_engine(address, pool_size=1, application="tenantry-doctor")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _line(finding: Finding) -> str:
    mend = "" if finding.ok else f"\n      → {finding.remedy}"
    return f"{'ok   ' if finding.ok else 'wrong'} {finding.name}: {finding.message}{mend}"
