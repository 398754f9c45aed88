"""What is asked for and mailed: noted, with the run that sends the mail, in one transaction."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.orm import Session

from tasks import registry
from tasks.engine import runs
from tasks.engine.runs import TriggerRequest
from tasks.families.accounts import inputs
from tenants import ids, invitations, links
from tenants.context import Role
from tenants.models import Invitation
from tenants.settings import Settings


def invite(session: Session, settings: Settings, email: str, role: Role | None, custom: UUID | None) -> Invitation:
    """Invite an address, and have it told.

    Raises:
        As `invitations.create` and `runs.trigger`.
    """
    row = invitations.create(session, email, role, custom, list(registry.offered()), settings.auth.invitation_days)
    _send(session, inputs.SEND_INVITATION.name, {"invitation": ids.show("inv", row.id)})
    return row


def ask_reset(session: Session, settings: Settings, email: str) -> None:
    """Have the link for a new password mailed, if somebody has the address; which it is, the worker finds out.

    Raises:
        InvalidInput: it is no address.
    """
    row = links.ask_reset(session, settings, email)
    _send(session, inputs.SEND_RESET.name, {"link": ids.show("lnk", row.id)})


def ask_sign_up(session: Session, settings: Settings, email: str, slug: str, name: str | None, timezone: str) -> None:
    """Have the link mailed by which a tenant is made.

    Raises:
        InvalidInput: a value is wrong.
    """
    row = links.ask_sign_up(session, settings, email, slug, name, timezone)
    _send(session, inputs.SEND_VERIFICATION.name, {"link": ids.show("lnk", row.id)})


def _send(session: Session, task: str, args: dict[str, str]) -> None:
    runs.trigger(session, TriggerRequest(task, args, internal=True))
