"""Commands that speak to a server over HTTP: TENANTRY_URL and TENANTRY_API_KEY name it and the caller."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import orjson

from api import state
from tenants import settings
from tenants.errors import Misconfigured, TenantryError, Unavailable

_SECONDS = 30.0
_SILENCE_SECONDS = 60.0


class Server:
    """A server, for the holder of a token or an API key."""

    def __init__(self, url: str, bearer: str | None = None) -> None:
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        self._client = httpx2.Client(base_url=url, headers=headers, timeout=_SECONDS)
        self._url = url

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send an object and return the one that comes back.

        Raises:
            Unavailable: the server doesn't answer.
            TenantryError: it answers with an error.
        """
        try:
            response = self._client.post(path, json=body)
        except httpx2.HTTPError as error:
            raise Unavailable(f"{self._url} does not answer: {error}.") from None
        content = _object(response.content)
        if errors := content.get("errors"):
            raise TenantryError(str(errors[0].get("message")))
        if response.is_error:
            raise TenantryError(str(content.get("message") or f"{self._url}{path} answered {response.status_code}."))
        return content

    def ask(self, document: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Execute a query or a mutation and return its data; errors as for `post`."""
        data: dict[str, Any] = self.post("/graphql", {"query": document, "variables": variables})["data"]
        return data

    def follow(self, document: str, variables: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """A subscription's events, until the server completes it. Source: GraphQL over SSE, distinct connections.

        Raises:
            Unavailable: the connection broke.
            TenantryError: the server ended it with an error.
        """
        body = {"query": document, "variables": variables}
        try:
            with self._client.stream(
                "POST", "/graphql", json=body, headers={"accept": "text/event-stream"}, timeout=_SILENCE_SECONDS
            ) as response:
                yield from _events(response)
        except httpx2.HTTPError as error:
            raise Unavailable(f"The connection to {self._url} broke: {error}.") from None


def connect(folder: Path | None = None) -> Server:
    """The server that the environment names, or the one of a state folder, for the caller in TENANTRY_API_KEY.

    Raises:
        Misconfigured: the address or the key is missing.
    """
    bearer = os.environ.get("TENANTRY_API_KEY")
    if not bearer:
        raise Misconfigured("TENANTRY_API_KEY is not set: put an API key or an access token there.")
    return Server(address(folder), bearer)


def address(folder: Path | None = None) -> str:
    """The server's address; errors as for `connect`."""
    folder = folder or settings.load().state
    url = os.environ.get("TENANTRY_URL") or (state.read(folder, state.ADDRESSES).get("url") if folder.is_dir() else "")
    if not url:
        raise Misconfigured("TENANTRY_URL is not set: put the server's address there, such as http://127.0.0.1:8000.")
    return str(url).rstrip("/")


def _events(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        errors = _object(response.read()).get("errors") or [{}]
        raise TenantryError(errors[0].get("message") or f"The server answered {response.status_code}.")
    event = ""
    for line in response.iter_lines():
        name, _, value = line.partition(":")
        if name == "event":
            event = value.strip()
        elif name == "data" and event == "next":
            content = _object(value)
            if errors := content.get("errors"):
                raise TenantryError(str(errors[0].get("message")))
            yield content["data"]
        elif event == "complete" and not line:
            return


def _object(content: bytes | str) -> dict[str, Any]:
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
