"""What this process counts, for Prometheus."""

from __future__ import annotations

from functools import cache

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

REQUESTS = Counter("tenantry_http_requests_total", "HTTP requests answered.", ["method", "route", "status"])
SECONDS = Histogram(
    "tenantry_http_request_seconds",
    "How long HTTP requests took, streams left out.",
    ["route"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
SOCKETS = Gauge("tenantry_graphql_sockets", "Open WebSockets.")
LOGINS = Counter("tenantry_logins_total", "Attempts to log in.", ["outcome"])
AUTHENTICATIONS_REFUSED = Counter("tenantry_authentications_refused_total", "Tokens and API keys refused.", ["reason"])

_requests = cache(REQUESTS.labels)
_seconds = cache(SECONDS.labels)
_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"}


def observe(scope: Scope, status: int, seconds: float) -> None:
    """Count one answered request, under its route and never under its path."""
    route = getattr(scope.get("route"), "path", "none")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    _requests(method, route, str(status)).inc()
    _seconds(route).observe(seconds)


async def show(_: Request) -> Response:
    """`GET /metrics`: the figures of this process, and nothing of any tenant's."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
