"""Every expected failure: the docstring is the default message, the code is what clients branch on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class TenantryError(Exception):
    """Something expected went wrong."""

    code: ClassVar[str] = "INTERNAL_SERVER_ERROR"

    def __init__(self, message: str | None = None) -> None:
        self.message = message or inspect.cleandoc(type(self).__doc__ or "")
        super().__init__(self.message)


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing wrong with an input: where it stands and how to mend it."""

    path: tuple[str, ...]
    message: str


class InvalidInput(TenantryError):
    """The input is not valid."""

    code = "BAD_USER_INPUT"

    def __init__(self, message: str | None = None, *, issues: Sequence[Issue] = ()) -> None:
        if message is None and issues:
            first, more = issues[0], len(issues) - 1
            message = f"{'.'.join(first.path)}: {first.message}{f', and {more} more' if more else ''}."
        super().__init__(message)
        self.issues = tuple(issues)


class UnknownTask(TenantryError):
    """There is no such task among the families enabled here."""

    code = "UNKNOWN_TASK"

    def __init__(self, message: str | None = None, *, candidates: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


class AmbiguousTask(TenantryError):
    """The name fits several tasks: write it with its family."""

    code = "AMBIGUOUS_TASK"

    def __init__(self, message: str | None = None, *, candidates: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


class NotFound(TenantryError):
    """There is no such object."""

    code = "NOT_FOUND"


class Forbidden(TenantryError):
    """You may not do this."""

    code = "FORBIDDEN"

    def __init__(self, message: str | None = None, *, required_scope: str | None = None) -> None:
        super().__init__(message)
        self.required_scope = required_scope


class Conflict(TenantryError):
    """This contradicts something that exists already."""

    code = "CONFLICT"

    def __init__(self, message: str | None = None, *, existing: object | None = None) -> None:
        super().__init__(message)
        self.existing = existing


class RateLimited(TenantryError):
    """Too many requests: come back later."""

    code = "RATE_LIMITED"

    def __init__(
        self, message: str | None = None, *, retry_after_seconds: float, limit_name: str | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = math.ceil(retry_after_seconds * 10) / 10
        """In tenths of a second, and never too early."""
        self.limit_name = limit_name


class QuotaExceeded(TenantryError):
    """The tenant's quota is used up."""

    code = "QUOTA_EXCEEDED"

    def __init__(self, message: str | None = None, *, limit_name: str, limit: float, used: float) -> None:
        super().__init__(message)
        self.limit_name = limit_name
        self.limit = limit
        self.used = used


class TenantSuspended(TenantryError):
    """This tenant is suspended."""

    code = "TENANT_SUSPENDED"


class TenantErased(TenantSuspended):
    """This tenant is being erased, or has been."""


class InvalidState(TenantryError):
    """The object's state does not allow this."""

    code = "INVALID_STATE"

    def __init__(self, message: str | None = None, *, state: str) -> None:
        super().__init__(message)
        self.state = state


class Unauthenticated(TenantryError):
    """Sign in, or send an API key: none was sent, or it is wrong, expired or revoked."""

    code = "UNAUTHENTICATED"

    def __init__(self, message: str | None = None, *, reason: str = "missing") -> None:
        super().__init__(message)
        self.reason = reason


class Unavailable(TenantryError):
    """This part of the service is not available."""

    code = "UNAVAILABLE"

    def __init__(self, message: str | None = None, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Misconfigured(TenantryError):
    """The configuration is wrong."""

    code = "MISCONFIGURED"
