"""Node with the stock clients and the stock identity provider, for the tests that drive them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with the clients installed from their lock file."""
    return _node(HERE / "clients", "graphql-http")


@pytest.fixture(scope="session")
def node_of_provider() -> str:
    """Node, with the identity provider installed from its lock file."""
    return _node(HERE / "provider", "oidc-provider")


def _node(folder: Path, package: str) -> str:
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        pytest.skip("Node and npm are not installed here")
    if not (folder / "node_modules" / package).exists():
        installed = subprocess.run(
            [npm, "ci", "--ignore-scripts"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        if installed.returncode:
            pytest.skip(f"{package} cannot be installed from npm here")
    return found
