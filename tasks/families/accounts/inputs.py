"""What the tasks take: ids only. The secret of a link is derived when the mail is written."""

from __future__ import annotations

from pydantic import Field

from tasks.registry import OPERATOR_QUEUE, Input, RetryPolicy, TaskDefinition

_PRIORITY = 8
_RETRY = RetryPolicy(attempts=12, base_seconds=5, cap_seconds=600, max_elapsed_seconds=3600)
"""Who waits for a mail asks again after an hour."""


class Invited(Input):
    invitation: str = Field(pattern=r"^inv_[0-9a-z]{26}$")


class Asked(Input):
    link: str = Field(pattern=r"^lnk_[0-9a-z]{26}$")


SEND_INVITATION = TaskDefinition(
    "accounts.send_invitation",
    Invited,
    "Mail an invitation to whom it is for.",
    "accounts",
    priority=_PRIORITY,
    soft_seconds=30,
    hard_seconds=60,
    retry=_RETRY,
)
SEND_RESET = TaskDefinition(
    "accounts.send_reset",
    Asked,
    "Mail the link for a new password, if somebody has the address.",
    OPERATOR_QUEUE,
    priority=_PRIORITY,
    soft_seconds=30,
    hard_seconds=60,
    retry=_RETRY,
    operator_only=True,
)
SEND_VERIFICATION = TaskDefinition(
    "accounts.send_verification",
    Asked,
    "Mail the link by which a tenant is signed up.",
    OPERATOR_QUEUE,
    priority=_PRIORITY,
    soft_seconds=30,
    hard_seconds=60,
    retry=_RETRY,
    operator_only=True,
)
