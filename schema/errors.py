"""Failures on their way out: the expected ones as problems or with a code, all others masked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import structlog
from graphql import GraphQLError, GraphQLSyntaxError
from strawberry.extensions import MaskErrors
from strawberry.extensions.field_extension import FieldExtension

from schema import problems
from schema.nodes import Node
from schema.problems import ProblemCode
from tenants import errors

if TYPE_CHECKING:
    from schema.context import Context, Info

log = structlog.get_logger(__name__)

MASKED = "Something went wrong on our side."
_HINT = " Did you mean "
"""Before the names that are near, which tell of the schema. Strawberry leaves out those of fields only."""

_LONGEST = 200
"""How many characters of a message are told."""


class AsProblem(FieldExtension):
    """On a mutation: an expected failure becomes the payload's `problem`."""

    async def resolve_async(
        self, next_: Callable[..., Awaitable[Any]], source: Any, info: Info, **arguments: Any
    ) -> Any:
        try:
            return await next_(source, info, **arguments)
        except (errors.Unauthenticated, errors.Unavailable):
            raise
        except errors.TenantryError as error:
            problem = await _problem(error, info)
            if problem is None:
                raise
            payload = cast("Callable[..., Any]", info.return_type)
            return payload(success=False, message=error.message, problem=problem)


AS_PROBLEM = AsProblem()


async def _problem(error: errors.TenantryError, info: Info) -> problems.Problem | None:
    """The failure as data: the one place where our errors meet the contract's problems."""
    if error.code not in ProblemCode.__members__:
        return None
    known: dict[str, Any] = {"code": ProblemCode[error.code], "message": error.message}
    match error:
        case errors.InvalidInput():
            issues = [problems.InputIssue(path=list(issue.path), message=issue.message) for issue in error.issues]
            return problems.InvalidInput(issues=issues, **known)
        case errors.UnknownTask():
            return problems.UnknownTask(candidates=list(error.candidates), **known)
        case errors.AmbiguousTask():
            return problems.AmbiguousTask(candidates=list(error.candidates), **known)
        case errors.NotFound():
            return problems.NotFound(**known)
        case errors.Forbidden():
            return problems.Forbidden(required_scope=error.required_scope, **known)
        case errors.Conflict():
            return problems.Conflict(existing=await _existing(error.existing, info), **known)
        case errors.RateLimited():
            return problems.RateLimited(
                retry_after_seconds=error.retry_after_seconds, limit_name=error.limit_name, **known
            )
        case errors.QuotaExceeded():
            return problems.QuotaExceeded(limit_name=error.limit_name, limit=error.limit, used=error.used, **known)
        case errors.TenantSuspended():
            return problems.TenantSuspended(**known)
        case errors.InvalidState():
            return problems.InvalidState(state=error.state, **known)
    return None


async def _existing(existing: object, info: Info) -> Node | None:
    """What a conflict is about, when it is a run of the caller's."""
    from schema import runs  # It stands on this module.

    if not isinstance(existing, UUID):
        return None
    row = await info.context.loaders.runs.load(existing)
    return None if row is None else runs.show(row)


class Masked(MaskErrors):
    """Gives every error a code, and tells nothing of those that nobody expected but the request's id."""

    def _process_result(self, result: object) -> None:
        if getattr(result, "errors", None):  # Hardly ever; and to ask as the library does takes longer than the rest.
            super()._process_result(result)

    def anonymise_error(self, error: GraphQLError) -> GraphQLError:
        """The error as the client may see it; also for each result of a stream."""
        if self.execution_context.schema.config.disable_field_suggestions:
            error.message = error.message.partition(_HINT)[0]
        if len(error.message) > _LONGEST:  # It shows what was sent.
            error.message = f"{error.message[:_LONGEST]}…"
        original = error.original_error
        if isinstance(original, errors.TenantryError) and not isinstance(original, errors.Misconfigured):
            return _replaced(error, original.message, extensions(original))
        if error.extensions and "code" in error.extensions:
            return error
        if isinstance(error, GraphQLSyntaxError):
            return _replaced(error, error.message, {"code": "GRAPHQL_PARSE_FAILED"})
        if error.path is None and (original is None or error.nodes):
            # No resolver has run: the variables don't fit, or the operation is not one that can be run.
            return _replaced(error, error.message, {"code": "BAD_USER_INPUT"})
        context = cast("Context", self.execution_context.context)
        log.error(
            "request_failed",
            request_id=context.request_id,
            operation=self.execution_context.operation_name,
            path=error.path,
            exc_info=original or error,
        )
        return _replaced(error, MASKED, {"code": "INTERNAL_SERVER_ERROR", "requestId": context.request_id})


def extensions(error: errors.TenantryError) -> dict[str, Any]:
    """An expected failure's code and details, as they stand beside its message."""
    known: dict[str, Any] = {"code": error.code}
    match error:
        case errors.RateLimited():
            known["retryAfterSeconds"] = error.retry_after_seconds
        case errors.Forbidden() if error.required_scope:
            known["requiredScope"] = error.required_scope
        case errors.QuotaExceeded():
            known |= {"limitName": error.limit_name, "limit": error.limit, "used": error.used}
        case errors.Unauthenticated():
            known["reason"] = error.reason
        case errors.Unavailable() if error.retry_after_seconds:
            known["retryAfterSeconds"] = error.retry_after_seconds
        case errors.InvalidInput():
            known["issues"] = [{"path": list(issue.path), "message": issue.message} for issue in error.issues]
    return known


def _replaced(error: GraphQLError, message: str, extensions: dict[str, Any]) -> GraphQLError:
    return GraphQLError(
        message,
        nodes=error.nodes,
        source=error.source,
        positions=error.positions,
        path=error.path,
        original_error=error.original_error,
        extensions=extensions,
    )
