"""Redis keys and object paths stay in their tenant, whatever they are made of."""

from __future__ import annotations

import posixpath
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants import names


@given(st.uuids(), st.uuids(), st.text(), st.text())
def test_a_tenants_keys_begin_with_the_tenant_and_meet_no_others(
    one: UUID, other: UUID, family: str, name: str
) -> None:
    for make in (names.cache, names.counter, names.budget):
        key = make(one, family, name)
        assert key.startswith(f"t:{one}:")
        assert one == other or not key.startswith(f"t:{other}:")
        assert key != names.stream(one)


@given(st.uuids(), st.lists(st.text(), min_size=1, max_size=4))
def test_an_object_path_cannot_leave_its_tenant(tenant: UUID, parts: list[str]) -> None:
    try:
        path = names.object_path(tenant, *parts)
    except ValueError:
        return
    assert posixpath.normpath(path) == path
    assert path.split("/") == [str(tenant), *parts]


@pytest.mark.parametrize("part", ["", ".", "..", "a/b", "a\\b", "a\0b", "/etc"])
def test_what_is_no_single_segment_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="path segment"):
        names.object_path(UUID(int=1), "files", part)
