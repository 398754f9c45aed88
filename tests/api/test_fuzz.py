"""Whatever can be made up from the schema, well or badly formed, is answered: never with a failure of ours."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.graphql import nodes

from schema import costs, root
from tenants.context import Principal
from tests.support.apis import Api
from tests.support.tiers import Tier

SEED = 20_261_122
TOLD_NOWHERE = (
    "Traceback",
    "postgresql://",
    "redis://",
    "site-packages",
    ".py",
    "sqlalchemy",
    "asyncpg",
    "tenantry_app",
)
CODES = {
    "UNAUTHENTICATED",
    "FORBIDDEN",
    "BAD_USER_INPUT",
    "GRAPHQL_PARSE_FAILED",
    "GRAPHQL_VALIDATION_FAILED",
    "RATE_LIMITED",
    "UNAVAILABLE",
}
PROBLEMS = {"NOT_FOUND", "UNKNOWN_TASK", "AMBIGUOUS_TASK", "CONFLICT", "INVALID_STATE", "QUOTA_EXCEEDED"}
_TEXT = st.sampled_from(
    ["", "x", "2026-11-22T05:30:00Z", "2026-11-22", "9999-12-31T23:59:59.999999Z", "1e400", "\u202e\U0001f600"]
)
_SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "Cursor": _TEXT.map(nodes.String),
    "Date": _TEXT.map(nodes.String),
    "DateTime": _TEXT.map(nodes.String),
    "Decimal": _TEXT.map(nodes.String),
    "JSON": st.one_of(
        st.none().map(lambda _: nodes.Null),
        st.booleans().map(nodes.Boolean),
        st.integers().map(nodes.Int),
        st.floats(allow_nan=False, allow_infinity=False).map(nodes.Float),
        _TEXT.map(nodes.String),
    ),
}


@pytest.mark.timeout(3600)
def test_no_operation_finds_a_failure_of_ours(api: Api, tenant: Principal, tier: Tier) -> None:
    for name, strategy in _SCALARS.items():
        schemathesis.graphql.scalar(name, strategy)
    described = schemathesis.graphql.from_file(root.export())
    callers = [api.caller(tenant), api.caller(tenant, "runs:read"), api.stranger()]
    codes: set[str] = set()

    @seed(SEED)
    @settings(
        max_examples=tier(200, 10_000), suppress_health_check=[*HealthCheck], phases=[Phase.generate], database=None
    )
    @given(
        described.as_strategy(GenerationMode.POSITIVE) | described.as_strategy(GenerationMode.NEGATIVE),
        st.sampled_from(callers),
    )
    def check(case: Any, caller: Any) -> None:
        answer = caller.post(case.body)
        assert answer.status_code < 500 or answer.headers.get("retry-after"), (case.body, answer.text)
        content = answer.json()
        found = {error["extensions"]["code"] for error in content.get("errors", ())}
        codes.update(found)
        assert found <= CODES | PROBLEMS, (case.body, answer.text)
        cost = content["extensions"]["cost"]
        assert 0 <= cost["actual"] <= cost["requested"] + costs.reading(case.body) or found, (case.body, cost)
        assert not [text for text in TOLD_NOWHERE if text in answer.text], (case.body, answer.text)

    check()
    assert {"UNAUTHENTICATED", "GRAPHQL_VALIDATION_FAILED", "FORBIDDEN"} <= codes
    log = api.installation.log(api.name)
    assert "Traceback" not in log
    assert "request_failed" not in log
