"""PDF documents from Typst templates. Data goes in as JSON, so that no text of a tenant's is ever read as markup."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typst


def render(template: Path, data: Mapping[str, Any]) -> bytes:
    """The document that a template draws from data.

    Args:
        template: a Typst file; it reads `json(bytes(sys.inputs.data))` and nothing outside its folder.
        data: JSON values.
    """
    document = typst.compile(
        template,
        root=template.parent,
        font_paths=[],
        ignore_system_fonts=True,
        sys_inputs={"data": json.dumps(data)},
        format="pdf",
    )
    assert isinstance(document, bytes)
    return document
