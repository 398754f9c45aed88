"""Folders: the project's own, and such as tests need and are removed at their end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project."""


@contextmanager
def passable() -> Iterator[Path]:
    """A folder that any account may pass through, as opposed to pytest's own: servers keep all their data in it."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o711)
        yield path
