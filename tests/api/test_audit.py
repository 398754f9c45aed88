"""The audit log: one entry for each mutation, sealed in a chain that shows what was changed afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from graphql import GraphQLObjectType

from schema import root
from tenants import audit, context, ids
from tenants.audit import Verdict
from tenants.context import Principal
from tests.architecture.test_schema_guards import LATER
from tests.support.apis import Api, Caller
from tests.support.hands import Hands
from tests.support.installations import Installation

LOG = "{ auditLog(first: 100) { nodes { id at actor action target detail } } }"
PROBLEM = "{ success message problem { message } }"
ECHO = "diagnostics.echo"


class Mutations:
    """Calls each mutation once so that it changes something; most of them name what another one made."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def call(self, name: str, given: str, wanted: str = "") -> Any:
        """What a mutation answers."""
        found = self.caller.ask(f"mutation {{ {name}{given} {{ success message {wanted} problem {{ message }} }} }}")
        assert found[name]["success"], found
        return found[name]
