"""Files that browsers load from this service, so that no page asks a stranger's server: GraphiQL, and account forms."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "graphiql"
GRAPHIQL = FOLDER / "index.html"
ACCOUNT = Path(__file__).parent / "account"
"""The form behind each link in a mail."""
