"""What the management services need of the application; `services.Services` has it, and the command line makes its own.

The hooks are called after the commit that they tell of, and are safe to call again.
"""

from __future__ import annotations

from typing import Protocol

from amplifier_api_server.control_plane.auth.authenticate import Authenticator
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.ids import KeyId, MemberId, TenantId


class Management(Protocol):
    """For accounts, keys, members, roles, invitations and usage."""

    @property
    def database(self) -> Database: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def authenticator(self) -> Authenticator: ...

    async def on_key_revoked(self, key_id: KeyId) -> None:
        """The key works no more: forget it, end what was opened with it."""

    async def on_member_stopped(self, tenant_id: TenantId, member_id: MemberId) -> None:
        """Removed, disabled, or may do less than before: forget what was known of its credentials, end what it has open."""

    async def on_role_changed(self, tenant_id: TenantId, *, is_narrowed: bool) -> None:
        """Forget what was known of its tenant's credentials; where it holds less now, end what they have open."""

    async def on_tenant_changed(self, tenant_id: TenantId) -> None:
        """Its limits, tier or status are others: forget what was known of its keys."""

    async def on_tenant_stopped(self, tenant_id: TenantId) -> None:
        """It is suspended or deleted: end its streams and sandboxes too."""
