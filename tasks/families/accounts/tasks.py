"""The bodies: each writes one mail and sends it once. What a link says stands in the mail and nowhere else."""

from __future__ import annotations

from functools import partial
from typing import Any

from tasks import registry
from tasks.engine.context import RunContext
from tasks.families.accounts import inputs
from tasks.families.accounts.service import letters
from tasks.families.accounts.service.letters import Letter
from tasks.gateways import mail
from tenants import ids


@registry.body(inputs.SEND_INVITATION)
def send_invitation(ctx: RunContext, args: inputs.Invited) -> dict[str, Any]:
    """Mail an invitation, unless it has ended meanwhile."""
    return _send(ctx, letters.invitation(ctx.session, ctx.settings, ids.read("inv", args.invitation)))


@registry.body(inputs.SEND_RESET)
def send_reset(ctx: RunContext, args: inputs.Asked) -> dict[str, Any]:
    """Mail the link for a new password to who has the address, if anybody."""
    return _send(ctx, letters.reset(ctx.session, ctx.settings, ids.read("lnk", args.link)))


@registry.body(inputs.SEND_VERIFICATION)
def send_verification(ctx: RunContext, args: inputs.Asked) -> dict[str, Any]:
    """Mail the link by which a tenant is signed up."""
    return _send(ctx, letters.verification(ctx.session, ctx.settings, ids.read("lnk", args.link)))


def _send(ctx: RunContext, letter: Letter | None) -> dict[str, Any]:
    if letter is None:
        return {"sent": False}
    message = mail.Message(letter.to, letter.subject, letter.text)
    answer = ctx.effect("mail", partial(mail.send, ctx.settings.mail, message, now=ctx.now))
    if "file" in answer:
        ctx.log.info("mail_kept", file=answer["file"])
    return {"sent": True}
