"""The edge: HTTP, WebSocket and the command line come in here."""
