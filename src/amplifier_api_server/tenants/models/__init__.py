"""Every table. Rows are facts; rules about them live beside this file, SQL only in `repository/`.

SQLModel tables don't validate: nothing from outside is made into a row without a schema class in between. All times are
aware UTC. Every table but `runtime` and operator keys carries a tenant, so that row-level security can double the
repository's own rule.
"""

from __future__ import annotations

from amplifier_api_server.tenants.models.accounts import (
    ApiKey,
    DeviceGrant,
    Identity,
    Invitation,
    Login,
    Member,
    Person,
    Role,
    Tenant,
)
from amplifier_api_server.tenants.models.catalog import Collection, Installation, Profile, ProviderKey, Runtime
from amplifier_api_server.tenants.models.columns import UtcDateTime
from amplifier_api_server.tenants.models.records import AuditEntry, TenantEvent, Usage
from amplifier_api_server.tenants.models.sessions import (
    IdempotentRequest,
    Message,
    Session,
    Turn,
    TurnCallback,
    TurnEvents,
)

__all__ = [
    "ApiKey",
    "AuditEntry",
    "Collection",
    "DeviceGrant",
    "IdempotentRequest",
    "Identity",
    "Installation",
    "Invitation",
    "Login",
    "Member",
    "Message",
    "Person",
    "Profile",
    "ProviderKey",
    "Role",
    "Runtime",
    "Session",
    "Tenant",
    "TenantEvent",
    "Turn",
    "TurnCallback",
    "TurnEvents",
    "Usage",
    "UtcDateTime",
]
