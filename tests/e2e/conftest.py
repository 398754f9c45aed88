"""Node with the stock clients, for the tests that drive them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with the clients installed from their lock file."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        pytest.skip("Node and npm are not installed here")
    if not (CLIENTS / "node_modules/graphql-http").exists():
        installed = subprocess.run(
            [npm, "ci", "--ignore-scripts"], cwd=CLIENTS, capture_output=True, text=True, timeout=120, check=False
        )
        if installed.returncode:
            pytest.skip("the clients cannot be installed from npm here")
    return found
