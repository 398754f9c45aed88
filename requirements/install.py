"""Makes `.venv` from a lock file, every hash checked; run by `./dev` with the standard library alone."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"

_AT_ONCE = 4
_PIP_FLOOR = (22, 3)
_SCRIPT = """#!/bin/sh
exec "$(dirname "$0")/python" -P -m api.cli "$@"
"""


def install(name: str) -> None:
    """Bring `.venv` to what `requirements/{name}.lock` says. Several calls at once wait for each other.

    Args:
        name: the lock file's name without its ending.
    """
    lock = ROOT / "requirements" / f"{name}.lock"
    stamp = VENV / lock.name
    with _turn():
        content = lock.read_bytes()
        here = _text(VENV / "checkout") == str(ROOT)
        if here and stamp.exists() and stamp.read_bytes() == content:
            return
        sys.stderr.write(f"Installing into {VENV} …\n")
        pip = _make_venv(clear=not here)
        for kept in VENV.glob("*.lock"):
            kept.unlink()
        _install(pip, lock.read_text(encoding="utf-8"))
        _link()
        stamp.write_bytes(content)


@contextmanager
def _turn() -> Iterator[None]:
    descriptor = os.open(ROOT / "requirements", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_venv(*, clear: bool) -> list[str]:
    """Make the virtual environment if there is none, and return how to call pip for it."""
    pip = [sys.executable, "-m", "pip"]
    asked = subprocess.run([*pip, "--version"], capture_output=True, text=True, check=False)
    version = re.match(r"pip (\d+)\.(\d+)", asked.stdout)
    if version and tuple(map(int, version.groups())) >= _PIP_FLOOR:
        venv.create(VENV, clear=clear, symlinks=True)
        return [*pip, "--python", str(PYTHON)]
    try:
        venv.create(VENV, clear=clear, symlinks=True, with_pip=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(VENV)
        sys.exit("./dev: Python's pip is missing (Debian and Ubuntu: apt install python3-venv).")
    return [str(PYTHON), "-m", "pip"]


def _install(pip: list[str], lock: str) -> None:
    """Install a lock's packages by several pips at once, each with its share: unpacking takes the time."""
    packages = re.split(r"\n(?=[A-Za-z0-9])", "\n" + re.sub(r"(?m)^\s*#.*\n", "", lock))[1:]
    options = ["--quiet", "--quiet", "--require-hashes", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for share in range(min(_AT_ONCE, len(packages))):
            part = Path(folder, f"{share}.lock")
            part.write_text("\n".join(packages[share::_AT_ONCE]) + "\n", encoding="utf-8")
            running.append(subprocess.Popen([*pip, "install", *options, "--requirement", str(part)]))
        statuses = [process.wait() for process in running]
        if any(statuses):
            sys.exit("./dev: pip failed; what it said stands above.")


def _link() -> None:
    """Make the checkout importable, and give it its console script."""
    [packages] = VENV.glob("lib/python*/site-packages")
    (packages / "tenantry.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    script = VENV / "bin" / "tenantry"
    script.write_text(_SCRIPT, encoding="utf-8")
    script.chmod(0o755)
    (VENV / "checkout").write_text(str(ROOT), encoding="utf-8")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    os.environ["PIP_USER"] = "0"
    install(sys.argv[1])
