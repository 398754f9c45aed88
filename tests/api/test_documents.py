"""Documents by their hash: sent once for each tenant, or trusted from the start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api import documents
from api.documents import Documents, NotPersisted
from tenants import ids
from tenants.context import Principal
from tenants.errors import Misconfigured
from tenants.settings import Api as Edge
from tests.support import apis, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation

KIND = "query Kind { viewer { kind } }"
OTHER = "query Other { viewer { kind email } }"
TRIGGER = 'mutation Begin { triggerBackgroundTask(taskName: "echo", args: {value: 1}) { success } }'
DATA = {"viewer": {"kind": "API_KEY"}}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _extensions(digest: str, version: int = 1) -> dict[str, Any]:
    return {"persistedQuery": {"version": version, "sha256Hash": digest}}


def _post(caller: Caller, digest: str, query: str | None = None, version: int = 1) -> httpx2.Response:
    body = {"extensions": _extensions(digest, version)} | ({} if query is None else {"query": query})
    return caller.client.post(f"{caller.url}/graphql", json=body, headers=caller.headers)


def _get(caller: Caller, digest: str) -> httpx2.Response:
    parameters = {"extensions": json.dumps(_extensions(digest))}
    return caller.client.get(f"{caller.url}/graphql", params=parameters, headers=caller.headers)


def _code(answer: httpx2.Response) -> str:
    [error] = answer.json()["errors"]
    assert error["extensions"]["code"] != "PERSISTED_QUERY_NOT_FOUND" or error["message"] == "PersistedQueryNotFound"
    code: str = error["extensions"]["code"]
    return code


def test_a_document_is_sent_once_and_then_asked_for_by_its_hash(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    unknown = _post(caller, _hash(KIND))
    assert (unknown.status_code, _code(unknown)) == (200, "PERSISTED_QUERY_NOT_FOUND")
    assert _post(caller, _hash(KIND), KIND).json()["data"] == DATA
    assert _post(caller, _hash(KIND)).json()["data"] == DATA
    assert _get(caller, _hash(KIND)).json()["data"] == DATA
    with streams.socket(caller) as socket:
        socket.send({"id": "1", "type": "subscribe", "payload": {"extensions": _extensions(_hash(KIND))}})
        assert socket.receive()["payload"]["data"] == DATA
        assert socket.receive()["type"] == "complete"
        socket.send({"id": "2", "type": "subscribe", "payload": {"extensions": _extensions(_hash(OTHER))}})
        refused = socket.receive()
        assert (refused["type"], refused["payload"][0]["message"]) == ("error", "PersistedQueryNotFound")
        socket.send({"id": "2", "type": "subscribe", "payload": {"extensions": {"nothing": 1}}})
        assert socket.receive()["payload"][0]["extensions"]["code"] == "BAD_USER_INPUT"


def test_no_tenant_finds_what_another_sent(api: Api, tenant: Principal, other_tenant: Principal) -> None:
    caller, other, stranger = api.caller(tenant), api.caller(other_tenant), api.stranger()
    assert _post(caller, _hash(OTHER), OTHER).status_code == 200
    assert _code(_post(other, _hash(OTHER))) == "PERSISTED_QUERY_NOT_FOUND"
    assert _code(_post(stranger, _hash(OTHER), OTHER)) == "UNAUTHENTICATED"
    assert _code(_post(stranger, _hash(OTHER))) == "PERSISTED_QUERY_NOT_FOUND"


def test_a_hash_that_is_none_is_refused_and_nothing_is_kept(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    assert _code(_post(caller, _hash(KIND), OTHER)) == "BAD_USER_INPUT"
    assert _code(_post(caller, _hash(KIND))) == "PERSISTED_QUERY_NOT_FOUND"
    for digest, version in (("", 1), ("x" * 64, 1), (_hash(KIND).upper(), 1), (_hash(KIND), 2)):
        assert _code(_post(caller, digest, KIND, version)) == "BAD_USER_INPUT"


def test_a_mutation_by_its_hash_may_not_come_by_get(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    assert _post(caller, _hash(TRIGGER), TRIGGER).json()["data"]["triggerBackgroundTask"]["success"] is True
    assert _get(caller, _hash(TRIGGER)).status_code in {400, 405}
    assert caller.ask("{ runs { totalCount } }")["runs"]["totalCount"] == 1


@pytest.fixture
def trusting(installation: Installation, tmp_path: Path) -> Iterator[Api]:
    """An API that runs trusted documents only."""
    manifest = tmp_path / "documents.json"
    manifest.write_text(json.dumps({_hash(KIND): KIND}))
    settings = {"TENANTRY_API__DOCUMENTS": "trusted", "TENANTRY_API__TRUSTED_DOCUMENTS": str(manifest)}
    with apis.running(installation, "trusting", **settings) as started:
        yield started


def test_where_only_trusted_documents_run_no_other_does(trusting: Api, tenant: Principal) -> None:
    caller = trusting.caller(tenant)
    assert _post(caller, _hash(KIND)).json()["data"] == DATA
    assert _get(caller, _hash(KIND)).json()["data"] == DATA
    assert caller.ask(KIND) == DATA
    for answer in (caller.post(TRIGGER), _post(caller, _hash(TRIGGER), TRIGGER)):
        assert (answer.status_code, _code(answer)) == (403, "FORBIDDEN")
    assert _code(_post(caller, _hash(TRIGGER))) == "PERSISTED_QUERY_NOT_FOUND"
    with streams.socket(caller) as socket:
        socket.subscribe(TRIGGER)
        assert socket.receive()["payload"][0]["extensions"]["code"] == "FORBIDDEN"
        socket.subscribe(KIND)
        assert socket.receive()["payload"]["data"] == DATA
    assert trusting.installation.rows("SELECT count(*) FROM runs WHERE tenant_id = %s", str(tenant.tenant)) == [(0,)]


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("[]", "holds no trusted documents"),
        ("{", "holds no trusted documents"),
        ('{"a": 5}', "holds no trusted documents"),
        ('{"abc": "{ viewer { kind } }"}', "is not the SHA-256"),
        (None, "cannot read"),
    ],
)
def test_a_wrong_file_of_trusted_documents_stops_the_start(content: str | None, wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "documents.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Misconfigured, match=wrong):
        Documents(Edge(trusted_documents=file))


def test_the_manifest_of_apollos_tools_is_read(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    operation = {"id": _hash(KIND), "name": "Kind", "type": "query", "body": KIND}
    file.write_text(json.dumps({"format": "apollo-persisted-query-manifest", "version": 1, "operations": [operation]}))
    assert documents.read_trusted(file) == {_hash(KIND): KIND}


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_OF_TENANT", 100)
    monkeypatch.setattr(documents, "_OF_ALL", 250)
    kept, (first, *others) = Documents(Edge()), [ids.new() for _ in range(4)]

    def send(tenant: Any, text: str) -> None:
        assert kept.find(tenant, text, _extensions(_hash(text))) == text

    def has(tenant: Any, text: str) -> bool:
        try:
            return kept.find(tenant, None, _extensions(_hash(text))) == text
        except NotPersisted:
            return False

    old, new = "a" * 60, "b" * 60
    send(first, old)
    assert has(first, old)
    send(first, new)
    assert (has(first, old), has(first, new)) == (False, True)
    for tenant in others:
        send(tenant, old)
        send(tenant, old)
        assert has(first, new)  # It is in use.
    send(ids.new(), new)
    assert [has(tenant, old) for tenant in others] == [False, True, True]
    send(first, "c" * 101)
    assert not has(first, "c" * 101)
