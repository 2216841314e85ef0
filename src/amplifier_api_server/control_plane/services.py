"""Everything a request can ask for, built once by `app.py`: `request.app.state.services`."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request

from amplifier_api_server.control_plane.audit.service import Audit
from amplifier_api_server.control_plane.auth.authenticate import Authenticator
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.catalog.garbage import Garbage
from amplifier_api_server.control_plane.catalog.installations import Installations
from amplifier_api_server.control_plane.catalog.profiles import Profiles
from amplifier_api_server.control_plane.catalog.service import Catalogue
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.disk import Disk
from amplifier_api_server.control_plane.edge import Call
from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.idempotency.service import Idempotency
from amplifier_api_server.control_plane.limits.admission import Admission
from amplifier_api_server.control_plane.logins.service import LoginDesk
from amplifier_api_server.control_plane.model_gateway.gateway import ModelGateway
from amplifier_api_server.control_plane.model_gateway.listeners import GatewayListeners
from amplifier_api_server.control_plane.pods.fleet import Fleet
from amplifier_api_server.control_plane.pods.reconciler import Reconciler
from amplifier_api_server.control_plane.provider_keys.service import ProviderKeys
from amplifier_api_server.control_plane.readiness import Readiness
from amplifier_api_server.control_plane.router.pool import Pool
from amplifier_api_server.control_plane.sessions.approvals import Approvals
from amplifier_api_server.control_plane.sessions.callbacks import Callbacks
from amplifier_api_server.control_plane.sessions.copies import Copies
from amplifier_api_server.control_plane.sessions.endings import Endings
from amplifier_api_server.control_plane.sessions.executions import Executions
from amplifier_api_server.control_plane.sessions.exports import Exports
from amplifier_api_server.control_plane.sessions.hot import HotEndpoints
from amplifier_api_server.control_plane.sessions.open_calls import OpenCalls
from amplifier_api_server.control_plane.sessions.service import Sessions
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.control_plane.sessions.turns import Turns
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.control_plane.tenant_events.followers import Followers
from amplifier_api_server.control_plane.watchdog import Watchdog
from amplifier_api_server.tenants.ids import CredentialId, KeyId, LoginId, MemberId, TenantId


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    settings: Settings
    clock: Clock
    database: Database
    disk: Disk
    telemetry: Telemetry
    watchdog: Watchdog
    fair_queue: FairQueue
    readiness: Readiness
    authenticator: Authenticator
    admission: Admission
    pool: Pool
    gateway: ModelGateway
    listeners: GatewayListeners
    fleet: Fleet
    reconciler: Reconciler
    turns: Turns
    endings: Endings
    sessions: Sessions
    catalogue: Catalogue
    installations: Installations
    profiles: Profiles
    garbage: Garbage
    streams: OpenStreams
    provider_keys: ProviderKeys
    executions: Executions
    open_calls: OpenCalls
    callbacks: Callbacks
    logins: LoginDesk
    approvals: Approvals
    copies: Copies
    exports: Exports
    audit: Audit
    followers: Followers
    idempotency: Idempotency
    hot: HotEndpoints
    pepper: bytes = field(repr=False)

    async def on_key_revoked(self, key_id: KeyId) -> None:
        """A key that works no more ends what it has open."""
        self.authenticator.forget(key_id)
        self.streams.end_credential(CredentialId(key_id))

    async def on_member_stopped(self, tenant_id: TenantId, member_id: MemberId) -> None:
        """A member who may do less, or nothing: its streams can be opened again with what it still may."""
        self.authenticator.forget_member(tenant_id, member_id)
        self.streams.end_member(member_id)

    async def on_login_changed(self, login_id: LoginId) -> None:
        """It is over, or acts as another member: what it has open ends."""
        self.authenticator.forget_credential(CredentialId(login_id))
        self.streams.end_credential(CredentialId(login_id))

    async def on_role_changed(self, tenant_id: TenantId, *, is_narrowed: bool) -> None:
        """Who has it is not looked up: everybody's streams can be opened again by those who still may."""
        self.authenticator.forget_tenant(tenant_id)
        if is_narrowed:
            self.streams.end_tenant(tenant_id)

    async def on_tenant_changed(self, tenant_id: TenantId) -> None:
        """New limits hold from the next request; a tenant that is active no more loses its streams and sandboxes."""
        self.authenticator.forget_tenant(tenant_id)

    async def on_tenant_stopped(self, tenant_id: TenantId) -> None:
        """Suspended or deleted: nothing of it goes on."""
        self.authenticator.forget_tenant(tenant_id)
        self.provider_keys.forget_tenant(tenant_id)
        self.streams.end_tenant(tenant_id)
        await self.installations.end_tenant(tenant_id)
        await self.fleet.end_tenant(tenant_id, "its tenant was suspended")


def services(request: Request) -> Services:
    """The process's services, as a FastAPI dependency."""
    found: Services = request.app.state.services
    return found


def call(request: Request) -> Call:
    """This request as the edge let it in."""
    found: Call = request.scope["state"]["call"]
    return found


def caller(request: Request) -> Principal:
    """Who is calling."""
    return call(request).caller
