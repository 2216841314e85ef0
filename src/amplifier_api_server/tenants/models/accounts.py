"""Tenants, their members, roles and keys, and the people who log in."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Column, Index, LargeBinary, text
from sqlmodel import Field, SQLModel

from amplifier_api_server.tenants.models.columns import at, json_list, json_object, optional_at


class Tenant(SQLModel, table=True):
    """The paying organisation."""

    id: str = Field(primary_key=True)
    name: str
    tier: str
    status: str  # active | suspended | deleted
    limits: dict[str, Any] = json_object()  # overrides of the tier's, by the names of tiers.Limits
    web: dict[str, Any] = (
        json_object()
    )  # {"allow": [...], "deny": [...]}: hosts that its tools may fetch from; {} adds nothing
    created_at: datetime = at()
    updated_at: datetime = at()


class Member(SQLModel, table=True):
    """A person or a service of a tenant: the user that requests and sessions are counted for. Outlives its keys."""

    __table_args__ = (
        Index(
            "ux_member_tenant_person",
            "tenant_id",
            "person_id",
            unique=True,
            sqlite_where=text("person_id IS NOT NULL AND status <> 'removed'"),
            postgresql_where=text("person_id IS NOT NULL AND status <> 'removed'"),
        ),
    )

    id: str = Field(primary_key=True)
    tenant_id: str = Field(index=True, foreign_key="tenant.id")
    name: str
    role: str  # a built-in one, or the name of one of the tenant's own
    kind: str = Field(default="person", sa_column_kwargs={"server_default": "person"})  # person | service
    status: str = Field(default="active", sa_column_kwargs={"server_default": "active"})  # lifecycle.MemberStatus
    person_id: str | None = Field(default=None, index=True, foreign_key="person.id")  # who logs in as it
    email: str | None = None
    limits: dict[str, Any] = json_object()
    created_at: datetime = at()


class Person(SQLModel, table=True):
    """A human being who logs in: a member of any number of tenants."""

    id: str = Field(primary_key=True)
    name: str
    email: str | None = (
        None  # as the provider verified it; for people to read and for invitations, never to find somebody by
    )
    created_at: datetime = at()
    last_login_at: datetime | None = optional_at()


class Identity(SQLModel, table=True):
    """How a provider knows a person: by an id of its own that never changes hands."""

    __table_args__ = (Index("ux_identity_provider_subject", "provider", "subject", unique=True),)

    id: str = Field(primary_key=True)
    person_id: str = Field(index=True, foreign_key="person.id")
    provider: str  # an OIDC issuer's URL, or "github"
    subject: str  # `sub`, or GitHub's numeric id
    name: str = ""  # what the provider called them last
    email: str | None = None
    created_at: datetime = at()


class Role(SQLModel, table=True):
    """A role of a tenant's own."""

    __table_args__ = (Index("ux_role_tenant_name", "tenant_id", "name", unique=True),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    name: str
    description: str = ""
    permissions: list[str] = json_list(str)  # grants, as permissions.py reads them
    created_at: datetime = at()
    updated_at: datetime = at()
    created_by: str


class Invitation(SQLModel, table=True):
    """An offer to become a member, good for whoever holds its token and logs in with a verified e-mail address that fits."""

    __table_args__ = (Index("ix_invitation_tenant_created", "tenant_id", "created_at", "id"),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    email: str
    any_email: bool = False  # whoever holds the token may take it, whatever their address is
    role: str
    digest: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False, unique=True))  # of the token
    status: str  # lifecycle.InvitationStatus
    created_at: datetime = at()
    created_by: str
    expires_at: datetime = at()
    accepted_at: datetime | None = optional_at()
    member_id: str | None = None  # who it made


class Login(SQLModel, table=True):
    """A browser's session: a person, acting as one of their members at a time. Its cookie's text is stored nowhere."""

    id: str = Field(primary_key=True)
    person_id: str = Field(index=True, foreign_key="person.id")
    tenant_id: str | None = None  # where they act now; None for somebody who is no member anywhere yet
    member_id: str | None = Field(default=None, index=True)
    provider: str
    digest: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False, unique=True))
    created_at: datetime = at()
    expires_at: datetime = at()
    revoked_at: datetime | None = optional_at()
    last_used_at: datetime | None = optional_at()
    address: str = ""  # where the login came from
    user_agent: str = ""


class DeviceGrant(SQLModel, table=True):
    """A device that waits for a person's word (RFC 8628); approved, it is exchanged for an API key, once."""

    __tablename__ = "device_grant"

    id: str = Field(primary_key=True)
    device_digest: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False, unique=True))
    user_digest: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False, unique=True))
    name: str  # what the device calls itself
    status: str  # pending | approved | denied | exchanged
    tenant_id: str | None = None
    member_id: str | None = None
    login_id: str | None = None  # by which it was let in, where that was no key
    role: str | None = None  # of the member then
    # The key that it gets, where a person gave one of theirs; encrypted, and gone when the device has it.
    sealed_key: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    address: str = ""
    network: str | None = None  # as which the address is counted
    created_at: datetime = at()
    expires_at: datetime = at()


class ApiKey(SQLModel, table=True):
    """A credential of a member; an operator's belongs to no tenant and no member."""

    __tablename__ = "api_key"

    id: str = Field(primary_key=True)
    tenant_id: str | None = Field(default=None, index=True, foreign_key="tenant.id")
    member_id: str | None = Field(default=None, foreign_key="member.id")
    name: str
    role: str
    digest: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False, unique=True))  # HMAC-SHA256 with the pepper
    hint: str  # the last four characters, so that a person can tell keys apart
    limits: dict[str, Any] = json_object()
    created_at: datetime = at()
    created_by: str | None = None
    expires_at: datetime | None = optional_at()
    revoked_at: datetime | None = optional_at()
    last_used_at: datetime | None = optional_at()
    rotated_from: str | None = None
