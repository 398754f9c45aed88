"""Files that browsers load from this service: GraphiQL and what it needs, so that no page asks a stranger's server."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "graphiql"
GRAPHIQL = FOLDER / "index.html"
