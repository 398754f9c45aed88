"""Calls over HTTP: what a provider's refusal means for the attempt that called."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from tasks.engine.effects import NotDone
from tasks.engine.outcomes import RetryLater
from tasks.registry import LONGEST_WAIT_SECONDS

_LATER = (429, 503)


def check(answer: httpx2.Response) -> httpx2.Response:
    """The answer, if the provider did what it was asked.

    Raises:
        RetryLater: it is too busy, and says when to ask again.
        httpx2.HTTPStatusError: any other answer but 2xx.
    """
    seconds = retry_after(answer) if answer.status_code in _LATER else None
    if seconds is not None:
        raise RetryLater(seconds, f"{answer.url.host} answered {answer.status_code}, try again in {seconds:.0f} s")
    return answer.raise_for_status()


def check_done(answer: httpx2.Response) -> httpx2.Response:
    """The same for a call that is an effect: a provider that refuses has done nothing.

    Raises:
        NotDone: it refused, by 4xx or by saying when to ask again; from what `check` raises.
        httpx2.HTTPStatusError: any other answer but 2xx: it may have done it or not.
    """
    try:
        return check(answer)
    except RetryLater as error:
        raise NotDone(str(error)) from error
    except httpx2.HTTPStatusError as error:
        if answer.is_client_error:
            raise NotDone(str(error)) from error
        raise


def retry_after(answer: httpx2.Response) -> float | None:
    """How many seconds the provider asks to be left alone, at most 366 days; None where it does not say.

    A date is taken from the provider's own clock, where it tells of it.

    Source: RFC 9110, sections 10.2.3 (Retry-After) and 6.6.1 (Date).
    """
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        seconds = float(text)
    elif (until := _date(text)) is not None:
        seconds = (until - (_date(answer.headers.get("Date", "")) or datetime.now(UTC))).total_seconds()
    else:
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
