"""A running API for tests: its process, its tenants' keys, and requests to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx2

from api.embedded import free_port
from tenants import ids, keys, system
from tenants.context import Principal
from tests.support.installations import Installation, eventually


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a credential, and the API to send it to."""

    url: str
    client: httpx2.Client
    credential: str | None
    key_id: UUID | None = None

    @property
    def actor(self) -> str:
        """The outside id of its key."""
        assert self.key_id is not None
        return ids.show("key", self.key_id)

    @property
    def headers(self) -> dict[str, str]:
        """Its credential as a header."""
        return {} if self.credential is None else {"Authorization": f"Bearer {self.credential}"}

    def post(self, query: str, variables: dict[str, Any] | None = None, **headers: str) -> httpx2.Response:
        """One operation over HTTP."""
        return self.client.post(
            f"{self.url}/graphql",
            json={"query": query, "variables": variables or {}},
            headers={**self.headers, **headers},
        )

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of one operation that succeeds."""
        answer = self.post(query, variables).json()
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def fail(self, query: str, **variables: Any) -> str:
        """The code of the one error of an operation that fails."""
        answer = self.post(query, variables).json()
        assert len(answer.get("errors", ())) == 1, answer
        code: str = answer["errors"][0]["extensions"]["code"]
        return code


@dataclass
class Api:
    """A running API."""

    url: str
    client: httpx2.Client
    installation: Installation
    name: str

    def caller(self, tenant: Principal, *scopes: str, tasks: Sequence[str] | None = None, **options: Any) -> Caller:
        """A caller with a new API key in the tenant."""
        made = self.installation.write(
            tenant,
            keys.create,
            self.installation.settings.auth.key_pepper,
            name="tests",
            scopes=scopes or ("*",),
            task_names=tasks,
            **options,
        )
        return Caller(self.url, self.client, made.secret, made.key.id)

    def operator(self) -> Caller:
        """A caller with an operators' key."""
        acting = system.acting(self.installation.settings, system.OPERATORS, "tests")
        return self.caller(acting)

    def stranger(self) -> Caller:
        """A caller without a credential."""
        return Caller(self.url, self.client, None)


@contextmanager
def running(installation: Installation, name: str = "api", **environment: str) -> Iterator[Api]:
    """Start an API on a free port of loopback."""
    url = f"http://127.0.0.1:{free_port()}"
    try:
        with httpx2.Client(timeout=15, trust_env=False) as client:
            made = Api(url, client, installation, name)
            start(made, **environment)
            yield made
    finally:
        process = installation.processes.get(name)
        if process is not None and process.poll() is None:
            installation.kill(name)


def start(api: Api, **environment: str) -> None:
    """Start its process, the first time or again, and wait until it answers."""
    launch(api, **environment)
    eventually(lambda: _answers(api.client, api.url) or _ended(api.installation, api.name))


def launch(api: Api, **environment: str) -> None:
    """Start its process."""
    port = str(urlsplit(api.url).port)
    frame_bytes = str(api.installation.settings.api.bulk_body_bytes)
    api.installation.start(
        api.name, "uvicorn", "--factory", "api.app:create", "--port", port, "--ws-max-size", frame_bytes, **environment
    )


def _answers(client: httpx2.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health/live").status_code == 200
    except httpx2.TransportError:
        return False


def _ended(installation: Installation, name: str) -> bool:
    if installation.processes[name].poll() is not None:
        raise AssertionError(installation.log(name))
    return False
