"""Outgoing mail over SMTP; in development also into a folder."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tasks.engine.effects import NotDone
from tasks.engine.outcomes import Fail
from tenants.errors import Misconfigured
from tenants.settings import Mail

_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a mail."""

    name: str
    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A mail to one person.

    Args:
        to: the address.
        subject: one line.
        text: the body.
    """

    to: str
    subject: str
    text: str
    attachments: Sequence[Attachment] = ()


def send(settings: Mail, message: Message, key: str, *, now: datetime) -> dict[str, str]:
    """Hand a mail to the server, or put it into the folder that stands for one; to be called as an effect.

    Args:
        key: the effect's idempotency key: the same message has the same Message-ID.
        now: the mail's date.

    Returns:
        The Message-ID; and the file, where there is no server.

    Raises:
        NotDone: the server did not take it: by a Fail if it never will, else by what went wrong.
        Misconfigured: the server's address is wrong.
    """
    parcel = _compose(settings, message, key, now)
    if settings.url.startswith("file:"):
        return {"message_id": parcel["Message-ID"], "file": _keep(settings, parcel, key, now)}
    try:
        connection = _connect(settings)
    except (OSError, smtplib.SMTPException) as error:
        raise NotDone(str(error)) from error
    with connection:
        try:
            connection.send_message(parcel)
        except smtplib.SMTPResponseException as error:
            raise NotDone(str(error)) from _cause(error.smtp_code, error)
        except smtplib.SMTPNotSupportedError as error:  # An address beyond ASCII, which this server does not know.
            raise NotDone(str(error)) from Fail(f"The mail server can't take the address: {error}")
        except smtplib.SMTPRecipientsRefused as error:
            code, _ = next(iter(error.recipients.values()))
            raise NotDone(str(error)) from _cause(code, error)
    return {"message_id": parcel["Message-ID"]}


def _compose(settings: Mail, message: Message, key: str, now: datetime) -> EmailMessage:
    domain = parseaddr(settings.sender)[1].rpartition("@")[2]
    parcel = EmailMessage()
    parcel["From"] = settings.sender
    parcel["To"] = message.to
    parcel["Subject"] = " ".join(message.subject.split())
    parcel["Date"] = format_datetime(now)
    parcel["Message-ID"] = f"<{key}@{domain}>"
    parcel["Auto-Submitted"] = "auto-generated"
    parcel.set_content(message.text)
    for attachment in message.attachments:
        kind, _, detail = attachment.media_type.partition("/")
        parcel.add_attachment(attachment.content, maintype=kind, subtype=detail, filename=attachment.name)
    return parcel


def _keep(settings: Mail, parcel: EmailMessage, key: str, now: datetime) -> str:
    """Put a mail where a developer finds it, and nobody else: links in it are secret."""
    folder = Path(unquote(urlsplit(settings.url).path))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / f"{now:%Y%m%dT%H%M%S}-{key[:12]}.eml"
    file.touch(mode=0o600)
    file.write_bytes(parcel.as_bytes())
    return str(file)


def _connect(settings: Mail) -> smtplib.SMTP:
    """A connection, secured if the scheme says so, signed in if the address has a user."""
    address = urlsplit(settings.url)
    if address.scheme not in _PORTS or not address.hostname:
        raise Misconfigured(f"TENANTRY_MAIL__URL: must begin with one of {', '.join(_PORTS)} and name a host.")
    if address.username and address.scheme == "smtp":
        raise Misconfigured("TENANTRY_MAIL__URL: a password needs smtps:// or smtp+starttls://.")
    host, port, timeout = address.hostname, address.port or _PORTS[address.scheme], settings.timeout_seconds
    if address.scheme == "smtps":
        connection: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=timeout, context=ssl.create_default_context())
    else:
        connection = smtplib.SMTP(host, port, timeout=timeout)
    try:
        if address.scheme == "smtp+starttls":
            connection.starttls(context=ssl.create_default_context())
        if address.username:
            connection.login(unquote(address.username), unquote(address.password or ""))
    except BaseException:
        connection.close()
        raise
    return connection


def _cause(code: int, error: Exception) -> Exception:
    """A reply of 5xx is final. Source: RFC 5321, section 4.2.1."""
    return Fail(f"The mail server refused the message for good (reply {code}).") if code >= 500 else error
