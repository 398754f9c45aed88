"""What is written down: nothing that looks like a credential, and no secret that whoever works there was given."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tenants import log, settings

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


def test_a_secret_that_was_given_is_blotted_out_wherever_it_stands() -> None:
    with log.hiding():
        log.hide("hidden-0815")
        log.hide("hidden-0815-and-more")
        log.hide("shorter")
        assert log.blot("the provider refused hidden-0815.") == "the provider refused [redacted]."
        assert log.blotted({"a": ["hidden-0815-and-more"]}) == {"a": ["[redacted]"]}
        assert log.redact(None, "info", {"exception": "no hidden-0815"}) == {"exception": "no [redacted]"}
        assert log.blot("a shorter word") == "a shorter word"


def test_a_secret_is_hidden_only_while_it_is_used_and_only_where() -> None:
    seen = {}
    both_hide = asyncio.Barrier(2)

    async def work(own: str, other: str) -> None:
        with log.hiding():
            log.hide(own)
            await both_hide.wait()
            seen[own] = log.blot(f"{own} {other}"), log.redact(None, "info", {"why": f"{own} {other}"})["why"]

    async def both() -> None:
        await asyncio.gather(work("secret-of-one", "secret-of-another"), work("secret-of-another", "secret-of-one"))

    asyncio.run(both())
    assert seen == {
        "secret-of-one": ("[redacted] secret-of-another",) * 2,
        "secret-of-another": ("[redacted] secret-of-one",) * 2,
    }
    with log.hiding():
        log.hide("secret-of-one")
    assert log.blot("secret-of-one") == "secret-of-one"


def test_no_secret_makes_a_line_of_our_own_unreadable() -> None:
    line = {"event": "attempt_failed", "run": "run_1", "task": "diagnostics.echo", "level": "warning", "why": "failed!"}
    with log.hiding():
        for secret in ("attempt_", "diagnostics", "warning!", "attempt_failed"):
            log.hide(secret)
        assert log.redact(None, "warning", dict(line)) == line
        foreign = log.redact(None, "info", {"event": "attempt_failed", "_from_structlog": False})
        assert foreign["event"] == "[redacted]"


def test_the_installations_own_secrets_are_in_no_log_line_and_alter_nothing_that_tenants_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log, "_own", set(log._secrets(settings.load(auth={"key_pepper": "pepper-4711"}))))
    assert log.redact(None, "info", {"why": "with pepper-4711"})["why"] == "with [redacted]"
    assert log.blot("with pepper-4711") == "with pepper-4711"
