"""What a provider's refusal means: wait as long as it asks, and know whether it did anything. Over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import httpx2
import pytest

from tasks.engine.effects import NotDone
from tasks.engine.outcomes import RetryLater
from tasks.gateways import http
from tests.support import peers
from tests.support.peers import Peer

YEAR = 366 * 86_400.0
DATE = "Sat, 21 Nov 2026 10:00:00 GMT"
LATER = {
    "120": 120.0,
    "0": 0.0,
    " 7 ": 7.0,
    "9" * 400: YEAR,
    "Sat, 21 Nov 2026 10:02:00 GMT": 120.0,
    "Sat, 21 Nov 2026 12:02:00 +0200": 120.0,
    "Saturday, 21-Nov-26 10:02:00 GMT": 120.0,
    "Sat Nov 21 10:02:00 2026": 120.0,
    "Sat, 21 Nov 2026 09:00:00 GMT": 0.0,
    "Sat, 21 Nov 9026 09:00:00 GMT": YEAR,
}
NEVER = ["", "-5", "1.5", "soon", "nan", "inf", "Sat, 99 Nov 2026 10:02:00 GMT", "\xb2"]


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A provider that answers as it is told."""
    with closing(Peer()) as made:
        yield made


def _ask(peer: Peer, status: int, **headers: str) -> httpx2.Response:
    peer.answers = peers.always(status, **{name.replace("_", "-"): value for name, value in headers.items()})
    return httpx2.post(peer.url, timeout=10)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("text", "seconds"), LATER.items())
def test_it_is_asked_again_when_it_said(peer: Peer, status: int, text: str, seconds: float) -> None:
    answer = _ask(peer, status, Retry_After=text, Date=DATE)
    with pytest.raises(RetryLater) as refused:
        http.check(answer)
    assert refused.value.after_seconds == seconds
    with pytest.raises(NotDone) as not_done:
        http.check_done(answer)
    assert isinstance(not_done.value.__cause__, RetryLater)
    assert not_done.value.__cause__.after_seconds == seconds


@pytest.mark.parametrize("text", NEVER)
def test_what_says_no_time_is_left_to_the_policy(peer: Peer, text: str) -> None:
    answer = _ask(peer, 503, Retry_After=text, Date=DATE)
    assert http.retry_after(answer) is None
    with pytest.raises(httpx2.HTTPStatusError):
        http.check(answer)


def test_a_date_without_the_providers_clock_is_taken_from_ours(peer: Peer) -> None:
    assert http.retry_after(_ask(peer, 503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT", Date="never")) == 0
    seconds = http.retry_after(_ask(peer, 503, Retry_After="Fri, 31 Dec 2100 07:28:00 GMT", Date=""))
    assert seconds == YEAR


@pytest.mark.parametrize("status", [200, 201, 204])
def test_what_was_done_is_done(peer: Peer, status: int) -> None:
    assert http.check_done(_ask(peer, status, Retry_After="5")).status_code == status


@pytest.mark.parametrize(("status", "error"), [(400, NotDone), (404, NotDone), (429, NotDone)])
def test_who_refuses_has_done_nothing(peer: Peer, status: int, error: type[Exception]) -> None:
    with pytest.raises(error) as refused:
        http.check_done(_ask(peer, status))
    assert isinstance(refused.value.__cause__, httpx2.HTTPStatusError)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 302])
def test_who_fails_may_have_done_it(peer: Peer, status: int) -> None:
    with pytest.raises(httpx2.HTTPStatusError):
        http.check_done(_ask(peer, status))
