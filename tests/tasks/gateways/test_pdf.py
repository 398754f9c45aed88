"""Documents drawn from data that is never markup."""

from __future__ import annotations

import io
from pathlib import Path

from pypdf import PdfReader

from tasks.gateways import pdf


def text_of(document: bytes) -> str:
    return PdfReader(io.BytesIO(document)).pages[0].extract_text()


def test_text_is_set_as_it_stands_and_never_read_as_markup(tmp_path: Path) -> None:
    template = tmp_path / "letter.typ"
    template.write_text("#let data = json(bytes(sys.inputs.data))\n#data.name")
    (tmp_path / "secret.txt").write_text("hidden")

    document = pdf.render(template, {"name": '#read("secret.txt") $x$ *bold* // gone'})

    assert document.startswith(b"%PDF-")
    assert text_of(document).split() == ['#read("secret.txt")', "$x$", "*bold*", "//", "gone"]
