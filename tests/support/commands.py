"""The command `tenantry` on an installation, which its environment names."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.folders import ROOT
from tests.support.installations import Installation


def start(installation: Installation, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command; its output is the process's to read."""
    return subprocess.Popen(
        [sys.executable, "-m", "api.cli", *arguments],
        env={"PATH": os.environ["PATH"], **installation.variables, **environment},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    installation: Installation, *arguments: str, given: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        given: its standard input.
    """
    started = start(installation, *arguments, **environment)
    output, errors = started.communicate(given)
    return subprocess.CompletedProcess(arguments, started.returncode, output, errors)
