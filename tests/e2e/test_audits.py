"""The audits of GraphQL over HTTP, as the protocol's own authors publish them: every one of them passes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.support import apis
from tests.support.installations import Installation

CLIENTS = Path(__file__).parent / "clients"


def test_the_audits_of_graphql_over_http_pass(installation: Installation, node: str) -> None:
    with apis.running(installation) as api:
        audit = subprocess.run(
            [node, "audit.mjs", f"{api.url}/graphql"],
            cwd=CLIENTS,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    results = [json.loads(line) for line in audit.stdout.splitlines()]
    assert len(results) >= 61
    assert [result for result in results if result["status"] != "ok"] == []
