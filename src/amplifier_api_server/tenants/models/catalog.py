"""What sandboxes run: runtimes, installed collections, profiles and keys of providers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Column, Index, LargeBinary
from sqlmodel import Field, SQLModel

from amplifier_api_server.tenants.models.columns import at, json_list, json_object, optional_at


class Runtime(SQLModel, table=True):
    """One sandboxed process or pod. The row is written first, then the process is started."""

    id: str = Field(primary_key=True)
    tenant_id: str | None = Field(default=None, index=True)  # None until it is claimed
    collections_key: str = ""
    status: str = Field(index=True)  # lifecycle.RuntimeStatus
    reason: str = ""  # why it is gone or draining
    created_at: datetime = at()
    claimed_at: datetime | None = optional_at()
    idle_since: datetime | None = optional_at()  # no session since; None while it has one
    gone_at: datetime | None = optional_at()


class Collection(SQLModel, table=True):
    """An installed collection of a tenant. Its trees lie in the object store, each under its content hash."""

    __table_args__ = (Index("ux_collection_tenant_name", "tenant_id", "name", unique=True),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    name: str
    version: str
    description: str = ""
    source: str
    commit: str | None = None
    content_hash: str  # of the image, as canonical JSON: the same hash is the same collection, all it includes too
    image: dict[str, Any] = json_object()  # runtime.protocol.Image: what to install again from
    manifest: dict[str, Any] = json_object()  # runtime.protocol.CollectionManifest
    installed_at: datetime = at()
    installed_by: str


class Installation(SQLModel, table=True):
    """A job that installs a collection. Its row is its progress; only the process that began it works on it."""

    __table_args__ = (Index("ix_installation_tenant_created", "tenant_id", "created_at", "id"),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    member_id: str
    source: str
    status: str = Field(index=True)  # lifecycle.InstallationStatus
    phase: str = ""  # what is being done, in a word: fetching, inspecting, downloading, building, keeping
    detail: str = ""
    done: int = 0  # of `total` sources, as far as they are known
    total: int = 0
    warnings: list[str] = json_list(str)
    failure: dict[str, Any] | None = json_object(nullable=True)  # {"code", "detail"}
    collection: str | None = None  # its name, once it is installed
    created_at: datetime = at()
    finished_at: datetime | None = optional_at()


class Profile(SQLModel, table=True):
    """One version of a profile of a tenant's own. Versions are never changed; the highest one is current."""

    __table_args__ = (Index("ux_profile_tenant_name_version", "tenant_id", "name", "version", unique=True),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    name: str
    version: int
    description: str = ""
    content: str  # a bundle or a profile, as it was sent
    is_removed: bool = False  # this version says: there is no such profile any more
    created_at: datetime = at()
    created_by: str


class ProviderKey(SQLModel, table=True):
    """A tenant's own key for a model provider, encrypted. It leaves in one header of a call to that provider."""

    __tablename__ = "provider_key"
    __table_args__ = (Index("ux_provider_key_tenant_provider", "tenant_id", "provider", unique=True),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    provider: str  # as the operator's configuration names it
    ciphertext: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    hint: str  # the last four characters
    created_at: datetime = at()
    created_by: str
