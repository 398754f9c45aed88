"""The state folder of an installation on one machine: its lock, and files that only their owner can read."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenants.errors import Conflict, Misconfigured

ADDRESSES = "state.json"
_SECRETS = "secrets.json"


def open_folder(folder: Path) -> Path:
    """Make the folder if there is none, and return its absolute path. Others may pass through it, not list it."""
    folder = folder.absolute()
    try:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"The state folder {folder} cannot be made: {error.strerror}.") from None
    return folder


@contextmanager
def lock(folder: Path, name: str) -> Iterator[None]:
    """Hold one of the folder's locks; the kernel frees it when this process ends.

    Raises:
        Conflict: another process holds it.
    """
    descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode() or "unknown"
            raise Conflict(f"The state folder {folder} is in use by process {holder}.") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def read(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in one of the folder's files; empty when there is no such file.

    Raises:
        Misconfigured: the file cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{folder / name} cannot be read: {error}.") from None
    return content


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Replace one of the folder's files, whole or not at all, mode 0600."""
    draft = folder / f".{name}.{os.getpid()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(descriptor)
    draft.replace(folder / name)


def secret(folder: Path, name: str) -> str:
    """A secret of this installation, made at its first use and the same ever after (64 hexadecimal digits)."""
    kept = read(folder, _SECRETS)
    if name not in kept:
        kept[name] = secrets.token_hex(32)
        write(folder, _SECRETS, kept)
    value: str = kept[name]
    return value
