"""What is written down: nothing that looks like a credential, and no secret that the process has been given."""

from __future__ import annotations

from typing import Any

import pytest

from tenants import log

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "blotted"),
    [
        ("postgresql://app:hunter2@host:5432/name", "postgresql://[redacted]@host:5432/name"),
        ("postgresql://app:a,b'c&d@host/name", "postgresql://[redacted]@host/name"),
        ("cannot reach redis://:hunter2@host/0 now", "cannot reach redis://[redacted]@host/0 now"),
        ("host=h password=hunter2 dbname=x", "host=h password=[redacted] dbname=x"),
        ("https://host/x?token=hunter2&page=1", "https://host/x?token=[redacted]&page=1"),
        ("PASSWORD=hunter2", "PASSWORD=[redacted]"),
        ("tnt_live_0123456789abcdefghijABCDEFGHIJ_0aB1cD was refused", "tnt_live_[redacted] was refused"),
        (f"the token {JWT} is over", "the token eyJ[redacted] is over"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer [redacted]"),
        ("Authorization: Basic aHVudGVyMjpodW50ZXIy", "Authorization: Basic [redacted]"),
        ("nothing to see: https://example.org/a@b, 12:30", "nothing to see: https://example.org/a@b, 12:30"),
    ],
)
def test_what_looks_like_a_credential_is_blotted_out(text: str, blotted: str) -> None:
    assert log.blot(text) == blotted
    assert log.redact(None, "info", {"event": text})["event"] == blotted


@pytest.mark.parametrize("part", ["eyJ", "eyJa.", "://", "Bearer ", "password=", "tnt_live_", "x", "x@", "=@ "])
def test_a_long_text_is_read_once_whatever_stands_there(part: str) -> None:
    """If it were read over and over, this would take minutes, and the test's own limit would end it."""
    assert len(log.blot(part * (500_000 // len(part)))) > 9


def test_values_under_secret_names_are_blotted_out_however_deep_they_stand() -> None:
    given: dict[str, Any] = {
        "password": "x",
        "apiKey": 5,
        "token": None,
        "list": [{"client_secret": ["a"]}, "postgresql://a:b@c"],
        "deep": {"more": {"cookie": "y", "kept": 1.5}},
        "resetToken": False,
    }
    assert log.blotted(given) == {
        "password": "[redacted]",
        "apiKey": "[redacted]",
        "token": None,
        "list": [{"client_secret": "[redacted]"}, "postgresql://[redacted]@c"],
        "deep": {"more": {"cookie": "[redacted]", "kept": 1.5}},
        "resetToken": False,
    }


def test_a_secret_that_was_given_to_the_process_is_blotted_out_wherever_it_stands() -> None:
    assert "hidden-0815" in log.blot("the provider refused hidden-0815.")
    log.hide("hidden-0815")
    log.hide("short")
    assert log.blot("the provider refused hidden-0815.") == "the provider refused [redacted]."
    assert log.blot("a short word") == "a short word"
