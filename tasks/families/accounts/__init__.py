"""The mails that make people members: invitations, new passwords, sign-ups. On in every tenant, asked for by nobody."""

from tasks.families.accounts import inputs
from tasks.registry import Family

FAMILY = Family(
    name="accounts",
    description="Mails with links: invitations, new passwords, sign-ups.",
    tasks=(inputs.SEND_INVITATION, inputs.SEND_RESET, inputs.SEND_VERIFICATION),
    internal=True,
)
