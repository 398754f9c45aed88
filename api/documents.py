"""Documents that clients ask for by their hash: those sent before, and those an operator trusts.

Source: automatic persisted queries, https://www.apollographql.com/docs/apollo-server/performance/apq
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import orjson

from tenants.errors import Forbidden, InvalidInput, Misconfigured, TenantryError
from tenants.settings import Api

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_OF_TENANT: Final = 512 * 1024
_OF_ALL: Final = 64 * 1024 * 1024
"""How many characters are kept."""


class NotPersisted(TenantryError):
    """PersistedQueryNotFound"""

    code = "PERSISTED_QUERY_NOT_FOUND"


class Documents:
    """The texts behind hashes.

    What clients send is kept in this process, for each tenant by itself, so that no tenant learns what another asks.

    Args:
        settings: of the edge.

    Raises:
        Misconfigured: the file of trusted documents can't be read.
    """

    def __init__(self, settings: Api) -> None:
        self._trusted = {} if settings.trusted_documents is None else read_trusted(settings.trusted_documents)
        self._only_trusted = settings.documents == "trusted"
        self._sent: OrderedDict[UUID, OrderedDict[str, str]] = OrderedDict()
        self._sizes: dict[UUID, int] = {}

    def find(self, tenant: UUID | None, text: str | None, extensions: Mapping[str, Any] | None) -> str | None:
        """The text that a request asks to run.

        Args:
            tenant: the caller's; None for a stranger, for whom nothing is kept.
            text: the text it has sent, if any.
            extensions: what it says beside; a hash in `persistedQuery`.

        Raises:
            NotPersisted: the hash is unknown: the client sends the text with it.
            InvalidInput: what stands in `persistedQuery` is no hash, or not that of the text.
            Forbidden: only trusted documents are run here, and this is none.
        """
        wanted = extensions.get("persistedQuery") if extensions else None
        if wanted is None and not self._only_trusted:
            return text
        digest = None if wanted is None else _digest(wanted)
        if text is None:
            return None if digest is None else self._find(tenant, digest)
        known = _hash(text)
        if digest not in {None, known}:
            raise InvalidInput("The hash is not that of the query.")
        if self._only_trusted and known not in self._trusted:
            raise Forbidden("Only trusted documents are run here.")
        if digest is not None and tenant is not None and known not in self._trusted:
            self._keep(tenant, known, text)
        return text

    def _find(self, tenant: UUID | None, digest: str) -> str:
        text = self._trusted.get(digest)
        if text is None and tenant is not None and tenant in self._sent:
            text = self._sent[tenant].get(digest)
            self._sent.move_to_end(tenant)
        if text is None:
            raise NotPersisted
        return text

    def _keep(self, tenant: UUID, digest: str, text: str) -> None:
        """Keep a text; the oldest of the tenant go when it has too many, then those of who was not here for longest."""
        mine = self._sent.setdefault(tenant, OrderedDict())
        self._sent.move_to_end(tenant)
        if digest in mine:
            return
        mine[digest] = text
        size = self._sizes.get(tenant, 0) + len(text)
        while size > _OF_TENANT:
            size -= len(mine.popitem(last=False)[1])
        self._sizes[tenant] = size
        while sum(self._sizes.values()) > _OF_ALL:
            idle, _ = self._sent.popitem(last=False)
            del self._sizes[idle]


def read_trusted(path: Path) -> dict[str, str]:
    """The trusted documents of a file by their hashes: JSON, hash to text, or the manifest that Apollo's tools make.

    Raises:
        Misconfigured: it can't be read, or a hash is not that of its text.
    """
    try:
        content: Any = orjson.loads(path.read_bytes())
        if isinstance(content.get("operations"), list):
            content = {one["id"]: one["body"] for one in content["operations"]}
        wrong = [digest for digest, text in content.items() if _hash(text) != digest]
    except OSError as error:
        raise Misconfigured(f"TENANTRY_API__TRUSTED_DOCUMENTS: cannot read {path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Misconfigured(f"TENANTRY_API__TRUSTED_DOCUMENTS: {path} holds no trusted documents") from None
    if wrong:
        raise Misconfigured(f"TENANTRY_API__TRUSTED_DOCUMENTS: {wrong[0]} is not the SHA-256 of its document")
    return dict(content)


def _digest(wanted: Any) -> str:
    digest = wanted.get("sha256Hash") if isinstance(wanted, dict) and wanted.get("version") == 1 else None
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise InvalidInput("persistedQuery must have version 1 and sha256Hash, in lower-case hex.")
    return digest


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
