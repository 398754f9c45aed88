"""Memberships and roles, invitations, links in mails, logins, identity providers."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from tenants.db import Base, TenantRow
from tenants.models.tenants import Key, Moment

_ROLES = "role IN ('OWNER', 'ADMIN', 'MEMBER', 'VIEWER')"
_ONE_ROLE = "(role IS NULL) <> (role_id IS NULL)"


class User(Base):
    """A person: visible only from tenants the person is a member of."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    email: Mapped[str] = mapped_column(Text, unique=True)
    password_hash: Mapped[str | None] = mapped_column(Text, deferred=True)
    """Which the app login can't read: what is to be done with it, functions do."""
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())


class CustomRole(TenantRow, Base):
    """A tenant's own role: a named set of scopes."""

    __tablename__ = "roles"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        Index("uq_roles_name", "tenant_id", "name", unique=True),
    )

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())


class Membership(TenantRow, Base):
    """A person's role in a tenant: a built-in one or one of the tenant's own."""

    __tablename__ = "memberships"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["tenant_id", "role_id"], ["roles.tenant_id", "roles.id"]),
        CheckConstraint(_ROLES, name="role"),
        CheckConstraint(_ONE_ROLE, name="one_role"),
        Index("ix_memberships_user_id", "user_id"),
    )

    user_id: Mapped[UUID] = mapped_column(Key, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str | None] = mapped_column(Text)
    role_id: Mapped[UUID | None] = mapped_column(Key)
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())
    user: Mapped[User] = relationship(viewonly=True, lazy="raise")
    custom: Mapped[CustomRole | None] = relationship(viewonly=True, lazy="raise")


class Invitation(TenantRow, Base):
    """What an address is invited to become in a tenant, once. The link in the mail is derived, and stored nowhere."""

    __tablename__ = "invitations"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["tenant_id", "role_id"], ["roles.tenant_id", "roles.id"]),
        CheckConstraint(_ROLES, name="role"),
        CheckConstraint(_ONE_ROLE, name="one_role"),
        Index(
            "uq_invitations_open",
            "tenant_id",
            "email",
            unique=True,
            postgresql_where=text("accepted_at IS NULL AND revoked_at IS NULL"),
        ),
    )

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    email: Mapped[str] = mapped_column(Text)
    role: Mapped[str | None] = mapped_column(Text)
    role_id: Mapped[UUID | None] = mapped_column(Key)
    invited_by: Mapped[str] = mapped_column(Text)
    inviter: Mapped[UUID | None] = mapped_column(Key)
    """The person who did it, or who made the key that did; None for operators."""
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())
    expires_at: Mapped[datetime] = mapped_column(Moment)
    accepted_at: Mapped[datetime | None] = mapped_column(Moment)
    revoked_at: Mapped[datetime | None] = mapped_column(Moment)
    custom: Mapped[CustomRole | None] = relationship(viewonly=True, lazy="raise")


class AccountLink(TenantRow, Base):
    """What somebody asked for who is in no tenant yet: a new password, or a tenant. In the operators' tenant."""

    __tablename__ = "account_links"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        CheckConstraint("kind IN ('RESET', 'SIGN_UP')", name="kind"),
    )

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    email: Mapped[str] = mapped_column(Text)
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.clock_timestamp())
    expires_at: Mapped[datetime] = mapped_column(Moment)
    used_at: Mapped[datetime | None] = mapped_column(Moment)


class LoginSession(TenantRow, Base):
    """A login: a family of refresh tokens of which only the newest is good."""

    __tablename__ = "login_sessions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "user_id"], ["memberships.tenant_id", "memberships.user_id"], ondelete="CASCADE"
        ),
        Index("ix_login_sessions_user_id", "user_id"),
    )

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    user_id: Mapped[UUID] = mapped_column(Key)
    agent: Mapped[str | None] = mapped_column(Text)
    provider: Mapped[str | None] = mapped_column(Text)
    """The identity provider that vouched for it, to this tenant alone; None where their own password opened it."""
    token_hash: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())
    refreshed_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(Moment)
    revoked_at: Mapped[datetime | None] = mapped_column(Moment)


class IdentityProvider(TenantRow, Base):
    """An OpenID provider that members of the tenant log in through. Its client secret is a credential."""

    __tablename__ = "identity_providers"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        Index("uq_identity_providers_issuer", "tenant_id", "issuer", unique=True),
    )

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    issuer: Mapped[str] = mapped_column(Text)
    client_id: Mapped[str] = mapped_column(Text)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    domains: Mapped[list[str]] = mapped_column(ARRAY(Text))
    groups_claim: Mapped[str] = mapped_column(Text)
    roles: Mapped[dict[str, str]] = mapped_column(JSONB)
    """Group → role."""
    default_role: Mapped[str | None] = mapped_column(Text)
    just_in_time: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())
    changed_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())


class Identity(TenantRow, Base):
    """A member as an identity provider knows them: by issuer and subject, never by an address, which can change."""

    __tablename__ = "identities"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "issuer"],
            ["identity_providers.tenant_id", "identity_providers.issuer"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["tenant_id", "user_id"], ["memberships.tenant_id", "memberships.user_id"], ondelete="CASCADE"
        ),
        Index("uq_identities_user_id", "tenant_id", "issuer", "user_id", unique=True),
    )

    issuer: Mapped[str] = mapped_column(Text, primary_key=True)
    subject: Mapped[str] = mapped_column(Text, primary_key=True)
    user_id: Mapped[UUID] = mapped_column(Key)
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())
    used_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())
