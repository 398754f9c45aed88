"""Mail goes out once it is composed, and says clearly when it did not."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from smtplib import SMTPException

import pytest

from tasks.engine.effects import NotDone
from tasks.engine.outcomes import Fail
from tasks.gateways import mail
from tenants.errors import Misconfigured
from tenants.settings import Mail
from tests.support import mailbox
from tests.support.mailbox import Mailbox

NOW = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)


@pytest.fixture
def box() -> Iterator[Mailbox]:
    with mailbox.opened() as found:
        yield found


def settings(url: str) -> Mail:
    return Mail(url=url, sender="Shop <shop@tenantry.example>", timeout_seconds=2)


def test_a_mail_arrives_with_its_text_and_attachments(box: Mailbox) -> None:
    attachment = mail.Attachment("figures.csv", "text/csv", b"a,b\r\n")
    message = mail.Message("ana@shop.example", "Umsätze\r\nBcc: evil@x.example", "Guten Tag — 5 €", [attachment])

    answer = mail.send(settings(box.url), message, "k1", now=NOW)

    (found,) = box.messages
    assert answer == {"message_id": "<k1@tenantry.example>"} == {"message_id": found["Message-ID"]}
    assert found["Subject"] == "Umsätze Bcc: evil@x.example"
    assert found["Bcc"] is None
    assert found["From"] == "Shop <shop@tenantry.example>"
    assert found["Date"].datetime == NOW
    body = found.get_body()
    assert body is not None
    assert body.get_content().strip() == "Guten Tag — 5 €"
    assert [part.get_filename() for part in found.iter_attachments()] == ["figures.csv"]


@pytest.mark.parametrize(("reply", "cause"), [("450 later", SMTPException), ("550 never", Fail)])
def test_a_refusal_says_whether_it_is_final(box: Mailbox, reply: str, cause: type[Exception]) -> None:
    box.replies.append(reply)

    with pytest.raises(NotDone) as refused:
        mail.send(settings(box.url), mail.Message("ana@shop.example", "s", "t"), "k1", now=NOW)

    assert isinstance(refused.value.__cause__, cause)
    assert box.messages == []


def test_a_server_that_is_away_has_done_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"smtp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(NotDone) as refused:
            mail.send(settings(url), mail.Message("ana@shop.example", "s", "t"), "k1", now=NOW)

    assert isinstance(refused.value.__cause__, OSError)


def test_in_development_a_mail_is_a_file_that_nobody_else_reads(tmp_path: Path) -> None:
    message = mail.Message("ana@shop.example", "Willkommen", "https://app.example/#token=secret")
    answer = mail.send(settings((tmp_path / "mail box").as_uri()), message, "k1", now=NOW)
    [file] = (tmp_path / "mail box").iterdir()
    assert answer["file"] == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "https://app.example/#token=secret" in file.read_text()


@pytest.mark.parametrize("url", ["http://mail.example", "smtp://", "smtp://user:secret@127.0.0.1:25"])
def test_a_wrong_address_is_named_without_its_password(url: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        mail.send(settings(url), mail.Message("ana@shop.example", "s", "t"), "k1", now=NOW)

    assert "TENANTRY_MAIL__URL" in refused.value.message
    assert "secret" not in refused.value.message


def test_what_must_be_encrypted_is_never_sent_in_the_clear(box: Mailbox) -> None:
    with pytest.raises(NotDone):
        mail.send(
            settings(box.url.replace("smtp://", "smtp+starttls://")),
            mail.Message("ana@shop.example", "s", "t"),
            "k1",
            now=NOW,
        )

    assert box.messages == []
