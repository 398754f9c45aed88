"""`./dev`: what the first call installs is what the lock files say, and the next calls don't install again."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from api.installation import ROOT

CLI = "import sys, sample; print('sample', sample.VERSION, *sys.argv[1:])"


class Checkout:
    """A small checkout with the real `dev`, whose locks name one package that pip finds in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root / "checkout"
        self.wheels = root / "wheels"
        self.wheels.mkdir()
        (self.root / "requirements").mkdir(parents=True)
        shutil.copy(ROOT / "dev", self.root)
        shutil.copy(ROOT / "requirements" / "install.py", self.root / "requirements")
        (self.root / "api").mkdir()
        (self.root / "api" / "cli.py").write_text(CLI)
        self.lock("1.0")

    def lock(self, version: str) -> None:
        """Publish that version, and lock it."""
        wheel = _build_wheel(self.wheels, version)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        for name in ("runtime", "dev"):
            content = f"# made by hand\nsample=={version} \\\n    --hash=sha256:{digest}\n"
            (self.root / "requirements" / f"{name}.lock").write_text(content)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start `./dev` with these arguments."""
        return subprocess.Popen(
            [str(self.root / "dev"), *arguments],
            env={"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Its exit status, output and errors."""
        with self.start(*arguments, **environment) as process:
            output, errors = process.communicate(timeout=60)
            return process.returncode, output, errors


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def _build_wheel(folder: Path, version: str) -> Path:
    files = {
        "sample.py": f"VERSION = {version!r}\n",
        f"sample-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: sample\nVersion: {version}\n",
        f"sample-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},{len(text)}"
        for name, text in files.items()
    ]
    wheel = folder / f"sample-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"sample-{version}.dist-info/RECORD", "\n".join(record))
    return wheel


def test_the_first_call_installs_and_the_next_does_not(checkout: Checkout) -> None:
    assert checkout.run("tenantry", "run", "show") == (
        0,
        "sample 1.0 run show\n",
        f"Installing into {checkout.root}/.venv …\n",
    )
    shutil.rmtree(checkout.wheels)
    (checkout.root / "requirements" / "install.py").write_text("raise SystemExit('installed again')")
    assert checkout.run("tenantry") == (0, "sample 1.0\n", "")


def test_two_first_calls_at_once_share_one_installation(checkout: Checkout) -> None:
    with checkout.start("tenantry") as one, checkout.start("tenantry") as other:
        answers = [process.communicate(timeout=60) for process in (one, other)]
    assert [output for output, _ in answers] == ["sample 1.0\n"] * 2
    assert sum("Installing" in errors for _, errors in answers) == 1


def test_a_package_that_does_not_match_its_hash_is_refused(checkout: Checkout) -> None:
    with zipfile.ZipFile(checkout.wheels / "sample-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("extra.py", "")
    status, output, errors = checkout.run("tenantry")
    assert status == 1
    assert output == ""
    assert "DO NOT MATCH THE HASHES" in errors
    assert errors.endswith("./dev: pip failed; what it said stands above.\n")
    assert not list(checkout.root.glob(".venv/lib/python*/site-packages/sample*"))
    assert checkout.run("tenantry")[0] == 1


def test_a_changed_lock_is_installed(checkout: Checkout) -> None:
    checkout.run("tenantry")
    checkout.lock("2.0")
    assert checkout.run("tenantry")[:2] == (0, "sample 2.0\n")


def test_a_checkout_that_was_copied_makes_an_environment_of_its_own(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("tenantry")
    copy = shutil.copytree(checkout.root, tmp_path / "copy", symlinks=True)
    (copy / "api" / "cli.py").write_text("print('the copy')")
    checkout.root = copy
    assert checkout.run("tenantry")[:2] == (0, "the copy\n")


def test_without_a_recent_python_it_says_so(checkout: Checkout, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "cmp", "dirname"):
        (tools / name).symlink_to(str(shutil.which(name)))
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    assert checkout.run("tenantry", PATH=str(tools)) == (
        1,
        "",
        "./dev: Tenantry needs Python 3.11 or newer, and there is none on PATH.\n",
    )
    assert not (checkout.root / ".venv").exists()
    (tools / "python3.13").symlink_to(sys.executable)
    assert checkout.run("tenantry", PATH=str(tools))[:2] == (0, "sample 1.0\n")


def test_an_unknown_command_is_refused_before_anything_is_installed(checkout: Checkout) -> None:
    status, output, errors = checkout.run("fly")
    assert (status, output) == (2, "")
    assert errors.startswith("usage: ./dev COMMAND")
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize(
    ("name", "extras"), [("production", []), ("runtime", ["embedded"]), ("dev", ["embedded", "dev"])]
)
def test_the_locks_hold_what_the_project_asks_for_and_no_address(name: str, extras: list[str]) -> None:
    lock = (ROOT / "requirements" / f"{name}.lock").read_text()
    assert "://" not in lock
    locked = dict(re.findall(r"(?m)^([a-z0-9._-]+)==([^ ;]+)", lock))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    for requirement in map(Requirement, wanted):
        assert requirement.name in locked, f"run ./dev lock: {requirement} is not in {name}.lock"
        assert requirement.specifier.contains(locked[requirement.name]), f"run ./dev lock: {requirement}"


def test_the_locks_agree() -> None:
    production, runtime, dev = (
        dict(re.findall(r"(?m)^([a-z0-9._-]+)==([^ ;]+)", (ROOT / "requirements" / f"{name}.lock").read_text()))
        for name in ("production", "runtime", "dev")
    )
    assert production.items() <= runtime.items() <= dev.items()
