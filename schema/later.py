"""Fields of the contract whose work is not yet in this version: they answer UNAVAILABLE, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import strawberry
from strawberry.extensions.field_extension import FieldExtension

from tenants.errors import Unavailable


def field(rule: FieldExtension, description: str | None = None, **arguments: Any) -> Any:
    """A root field that is not available yet.

    Args:
        rule: who may ask for it, checked first.
        description: for the schema.
        arguments: each argument's type, or its type and its default.
    """
    return strawberry.field(resolver=_resolver(arguments), extensions=[rule], description=description)


def _resolver(arguments: dict[str, Any]) -> Callable[..., NoReturn]:
    def unavailable(**_: Any) -> NoReturn:
        raise Unavailable("This part of the service is not available in this version.")

    unavailable.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_parameter(name, given) for name, given in arguments.items()]
    )
    unavailable.is_later = True  # type: ignore[attr-defined]
    return unavailable


def _parameter(name: str, given: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    if isinstance(given, tuple):
        return inspect.Parameter(name, kind, annotation=given[0], default=given[1])
    default = None if _may_be_null(given) else inspect.Parameter.empty
    return inspect.Parameter(name, kind, annotation=given, default=default)


def _may_be_null(annotation: Any) -> bool:
    return type(None) in getattr(annotation, "__args__", ())
