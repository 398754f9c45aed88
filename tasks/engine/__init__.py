"""The life of a run. Knows no family, no GraphQL and no HTTP server."""
