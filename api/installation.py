"""An installation on one machine: its addresses, its secrets, and which of them each process is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api import embedded, state
from tenants import db, roles, settings, system
from tenants.errors import Misconfigured
from tenants.roles import Addresses
from tenants.settings import Settings

Part = Literal["migrate", "api", "worker", "operator", "beat", "command"]

ROOT = Path(__file__).resolve().parent.parent
"""The checkout, or the folder that the packages are installed in."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where its parts meet."""

    folder: Path
    url: str
    database: Addresses
    redis_url: str
    redis_users: bool = False
    """Whether its Redis knows the users of `embedded`; another's is used as it is given."""

    def environment(self, part: Part) -> dict[str, str]:
        """The environment of one part: what this process has, and no secret that the part has no use for."""
        given = {name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in _ADDRESSES}
        secrets = {name: make(self.folder) for name, make in _SECRETS[part].items() if f"{name}_FILE" not in os.environ}
        return {**self._defaults(), **secrets, **given, **self._addresses(part), "PYTHONPATH": str(ROOT)}

    def save(self, pids: dict[str, int]) -> None:
        """Write `state.json`."""
        state.write(
            self.folder,
            state.ADDRESSES,
            {
                "url": self.url,
                "database_url": self.database.app,
                "database_system_url": self.database.system,
                "database_owner_url": self.database.owner,
                "redis_url": self.redis_url,
                "supervisor": os.getpid(),
                "pids": pids,
            },
        )

    def _defaults(self) -> dict[str, str]:
        return {
            "TENANTRY_ENVIRONMENT": "development",
            "TENANTRY_DIAGNOSTICS": "true",
            "TENANTRY_LOG_JSON": "false",
            "TENANTRY_STATE": str(self.folder),
            "TENANTRY_STORAGE__URL": (self.folder / "objects").as_uri(),
            "TENANTRY_MAIL__URL": (self.folder / "mail").as_uri(),
            "TENANTRY_API__PUBLIC_URL": self.url,
        }

    def _addresses(self, part: Part) -> dict[str, str]:
        every = {
            "DATABASE_URL": self.database.app,
            "DATABASE_SYSTEM_URL": self.database.system,
            "DATABASE_OWNER_URL": self.database.owner,
            "REDIS_URL": self.redis_url,
        }
        user = _REDIS_USERS.get(part)
        if self.redis_users and user is not None:
            every["REDIS_URL"] = embedded.redis_address(self.folder, self.redis_url, user)
        return {name: every[name] for name in _REACH[part]}


def settle(folder: Path | None) -> Settings:
    """The settings of the installation that a command is about: a folder's, or the environment's.

    Args:
        folder: the state folder; None for what the environment names, or else `TENANTRY_STATE`, or `.tenantry`.

    Raises:
        Misconfigured: there is no such installation.
    """
    given = settings.load()
    if folder is None and (given.database.url or given.database.system_url or given.database.owner_url):
        return given
    folder = (folder or given.state).absolute()
    known = state.read(folder, state.ADDRESSES) if folder.is_dir() else {}
    if not known:
        raise Misconfigured(f"There is no installation in {folder}: run ./dev up first, or set DATABASE_URL.")
    database = Addresses(known["database_url"], known["database_system_url"], known["database_owner_url"])
    found = Installation(folder, known["url"], database, known["redis_url"])
    os.environ.update(found.environment("command"))
    return settings.load()


@contextmanager
def inside(current: Settings, slug: str, command: str, *, snapshot: bool = False) -> Iterator[Session]:
    """A session in a tenant for an operator on this machine; committed at the end.

    Args:
        slug: the tenant.
        command: named as the actor.
        snapshot: whether all that is read is of one moment.

    Raises:
        NotFound: there is no such tenant.
        Misconfigured: row-level security doesn't bind the login.
    """
    principal = system.acting(current, slug, command)
    isolation = "REPEATABLE READ" if snapshot else "READ COMMITTED"
    with (
        _engine(current) as engine,
        db.open_session(engine.execution_options(isolation_level=isolation), principal) as session,
    ):
        yield session
        session.commit()


def everywhere(current: Settings, command: str) -> Iterator[tuple[str, Session]]:
    """Each tenant's slug, and a session in it for an operator on this machine; committed before the next.

    Args:
        command: named as the actor.

    Raises:
        Misconfigured: row-level security doesn't bind the login.
    """
    with _engine(current) as engine:
        for slug, principal in system.acting_everywhere(current, command):
            with db.open_session(engine, principal) as session:
                yield slug, session
                session.commit()


@contextmanager
def _engine(current: Settings) -> Iterator[Engine]:
    roles.check(current.database.url)
    engine = db.sync_engine(current.database.url, pool_size=1, application="tenantry-command")
    try:
        yield engine
    finally:
        engine.dispose()


def _ring(name: str) -> Callable[[Path], str]:
    return lambda folder: json.dumps({"k1": state.secret(folder, name)})


_CREDENTIALS = {"TENANTRY_AUTH__CREDENTIAL_KEYS": _ring("credential_key")}
_GRANTS = {"TENANTRY_ENGINE__GRANT_KEYS": _ring("grant_key")}
_LINKS = {"TENANTRY_AUTH__LINK_KEYS": _ring("link_key")}
_AUTHENTICATION: dict[str, Callable[[Path], str]] = {
    "TENANTRY_AUTH__TOKEN_KEYS": _ring("token_key"),
    "TENANTRY_AUTH__KEY_PEPPER": lambda folder: state.secret(folder, "key_pepper"),
}
_SECRETS: dict[Part, dict[str, Callable[[Path], str]]] = {
    "migrate": {},
    "api": {**_AUTHENTICATION, **_CREDENTIALS, **_LINKS},
    "worker": {**_CREDENTIALS, **_GRANTS, **_LINKS},
    "operator": {**_CREDENTIALS, **_GRANTS, **_LINKS},
    "beat": _GRANTS,
    "command": {**_AUTHENTICATION, **_CREDENTIALS, **_LINKS, **_GRANTS},
}
_REACH: dict[Part, tuple[str, ...]] = {
    "migrate": ("DATABASE_OWNER_URL",),
    "api": ("DATABASE_URL", "REDIS_URL"),
    "worker": ("DATABASE_URL", "REDIS_URL"),
    "operator": ("DATABASE_URL", "DATABASE_SYSTEM_URL", "REDIS_URL"),
    "beat": ("DATABASE_SYSTEM_URL", "REDIS_URL"),
    "command": ("DATABASE_URL", "DATABASE_SYSTEM_URL", "DATABASE_OWNER_URL", "REDIS_URL"),
}
_REDIS_USERS: dict[Part, embedded.RedisUser] = {
    "api": "api",
    "worker": "worker",
    "operator": "worker",
    "beat": "dispatcher",
}
_ADDRESSES = {
    spelling
    for plain in _REACH["command"]
    for spelling in (plain, "TENANTRY_" + "__".join(settings.PLAIN_NAMES[plain]).upper())
}
"""The variables that each part gets anew, under both their names."""
