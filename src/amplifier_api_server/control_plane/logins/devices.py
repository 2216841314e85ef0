"""Device logins (RFC 8628): a program without a browser gets an API key by the word of a person who has one.

The person may be logged in, or show an API key of theirs: who has a key or a login can let a device in. By a login, the
device gets a new key of the member, with the member's role; it gets none where that login ended before it asked, or the role
changed. By a key it gets that very key: a new one would outlive the revocation of the one that was shown.

Invariants: codes are stored as digests; a grant is decided once, and exchanged once; nobody guesses a code, because wrong
ones are counted; when too many wait, the oldest of the network that has most of them makes room.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

import structlog
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.audit.recording import record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.keys import service as keys_service
from amplifier_api_server.control_plane.logins.known_logins import counts
from amplifier_api_server.control_plane.logins.service import LoginServices
from amplifier_api_server.control_plane.logins.user_codes import digest_of, new_device_code, new_user_code, normal
from amplifier_api_server.control_plane.origin import current_origin
from amplifier_api_server.control_plane.roles import rights
from amplifier_api_server.control_plane.secrets import SealBroken
from amplifier_api_server.tenants.errors import Conflict, DomainError, Forbidden, NotFound, Refused, Unavailable
from amplifier_api_server.tenants.ids import CredentialId, LoginId, MemberId, TenantId, new_device_grant_id
from amplifier_api_server.tenants.models import DeviceGrant
from amplifier_api_server.tenants.repository import device_grants, logins, members, tenants
from amplifier_api_server.tenants.tiers import DEFAULT

log = structlog.get_logger(__name__)

LIFETIME: Final = timedelta(minutes=10)
INTERVAL_SECONDS: Final = 5  # RFC 8628, 3.2
_MAX_WAITING: Final = 10_000
_NAME_CHARS: Final = 100


class GrantStatus(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXCHANGED = "exchanged"


class PollError(DomainError):
    """What a device is told instead of a key; `error` is RFC 6749's and RFC 8628's word for it."""

    code = "device_login_refused"

    def __init__(self, error: str, detail: str, *, code: str) -> None:
        super().__init__(detail, code=code)
        self.error = error


@dataclass(frozen=True, slots=True)
class StartedDevice:
    device_code: str
    user_code: str
    expires_in_seconds: int

    def __repr__(self) -> str:
        return "StartedDevice()"


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """What the device gets, once."""

    text: str
    key_id: str
    tenant_id: str
    expires_at: float | None
    is_new: bool  # made for the device, not one that the person had

    def __repr__(self) -> str:
        return f"DeviceKey(key_id={self.key_id!r})"


async def start(services: LoginServices, client_name: str) -> StartedDevice:
    """A device that waits from now on. Commits. Raises Forbidden (`device_login_off`), Refused."""
    if not services.settings.auth.keys:
        raise Forbidden(
            "this server takes no API keys, so that there is nothing a device could get", code="device_login_off"
        )
    origin, now = current_origin(), services.clock.now()
    services.logins.throttles.starts.take(origin.network)
    device_code, user_code = new_device_code(), new_user_code()
    grant = DeviceGrant(
        id=new_device_grant_id(),
        device_digest=digest_of(services.logins.pepper, "device", device_code),
        user_digest=digest_of(services.logins.pepper, "user", user_code),
        name=client_name[:_NAME_CHARS] or "a device",
        status=GrantStatus.PENDING.value,
        address=origin.address,
        network=origin.network,
        created_at=now,
        expires_at=now + LIFETIME,
    )
    async with services.database.read() as db:
        waiting = await device_grants.waiting_by_network_of_all_tenants(db, now)
    too_many = sum(waiting.values()) + 1 - _MAX_WAITING
    async with services.database.write() as db:
        if too_many > 0:  # whoever has most of them makes room: nobody else is kept from logging in
            fullest = max(waiting, key=lambda network: waiting[network])
            await device_grants.forget_oldest_of_all_tenants(db, fullest, now, too_many)
            log.warning("too many devices wait; the oldest of a network was forgotten", network=fullest, count=too_many)
        await device_grants.add_of_all_tenants(db, grant)
    return StartedDevice(device_code, user_code, int(LIFETIME.total_seconds()))


async def find(services: LoginServices, by: Principal, typed: str) -> DeviceGrant:
    """The device that waits with this code. Raises NotFound (`no_such_device_code`), Refused (`too_many_attempts`)."""
    throttles, network = services.logins.throttles, current_origin().network
    throttles.guesses.take(by.credential_id)
    throttles.guesses_of_network.take(network)
    code, found = normal(typed), None
    if code is not None:
        async with services.database.read() as db:
            digest = digest_of(services.logins.pepper, "user", code)
            found = await device_grants.find_by_user_digest_of_all_tenants(db, digest)
    if found is None or found.expires_at <= services.clock.now() or found.status != GrantStatus.PENDING:
        raise NotFound(
            "no device waits with this code: it is mistyped, has expired, or was decided already",
            code="no_such_device_code",
        )
    throttles.guesses.give_back(by.credential_id)
    throttles.guesses_of_network.give_back(network)
    return found


async def decide(
    services: LoginServices, by: Principal, typed: str, *, approves: bool, key_text: str | None = None
) -> DeviceGrant:
    """Let the device in as who decides, or not. Commits. `key_text` is the key that they showed instead of a login.

    Raises NotFound, Refused, Conflict (`device_already_decided`).
    """
    found = await find(services, by, typed)
    now = services.clock.now()
    status = GrantStatus.APPROVED if approves else GrantStatus.DENIED
    values: dict[str, str | bytes | None] = {"status": status.value}
    if approves:
        values |= {"tenant_id": by.tenant_id, "member_id": by.member_id}
        if key_text is None:
            values |= {"login_id": by.credential_id, "role": by.role}
        else:
            values["sealed_key"] = services.logins.vault.seal(SecretStr(key_text), _owner(found))
    async with services.database.write() as db:
        if not await device_grants.move_of_all_tenants(db, found.id, GrantStatus.PENDING.value, now, **values):
            raise Conflict("this device was decided on already, or its time is over", code="device_already_decided")
        changes = {"status": (GrantStatus.PENDING.value, status.value), "name": (None, found.name)}
        await record(db, services.clock, by, "decideDeviceLogin", target=found.id, changes=changes)
    return found


async def finish(services: LoginServices, device_code: str) -> DeviceKey:
    """The key of a device that was let in, once. Commits. Raises PollError as RFC 8628, 3.5 says."""
    digest = digest_of(services.logins.pepper, "device", device_code)
    async with services.database.read() as db:  # who only waits, or invents codes, takes no turn among the writers
        is_approved = await _is_approved(services, db, digest)
    if is_approved:
        async with services.database.write() as db:
            found = await device_grants.find_by_device_digest_of_all_tenants(db, digest)
            if found is None:
                raise _no_such_code()
            return await _exchange(services, db, found)
    if services.logins.throttles.polls.is_too_soon(digest):
        detail = f"wait {INTERVAL_SECONDS} seconds longer between two polls than before"
        raise PollError("slow_down", detail, code="slow_down")
    raise PollError("authorization_pending", "nobody has decided yet", code="authorization_pending")


async def _is_approved(services: LoginServices, db: AsyncSession, digest: bytes) -> bool:
    """Whether a person has let the device in; else it waits. Raises PollError where there is nothing to wait for."""
    found = await device_grants.find_by_device_digest_of_all_tenants(db, digest)
    if found is None:
        raise _no_such_code()
    if found.status == GrantStatus.DENIED:
        raise PollError("access_denied", "a person said no", code="device_login_denied")
    if found.status == GrantStatus.EXCHANGED:
        raise PollError("invalid_grant", "this device code was used already", code="device_code_used")
    if found.expires_at <= services.clock.now():
        raise PollError("expired_token", "nobody decided in time; begin again", code="device_code_expired")
    return found.status == GrantStatus.APPROVED


async def _exchange(services: LoginServices, db: AsyncSession, found: DeviceGrant) -> DeviceKey:
    """Whoever moves the row gets the key; the others see that it was used."""
    sealed, now = found.sealed_key, services.clock.now()
    moved = await device_grants.move_of_all_tenants(
        db, found.id, GrantStatus.APPROVED.value, now, status=GrantStatus.EXCHANGED.value, sealed_key=None
    )
    if not moved:
        raise PollError("invalid_grant", "this device code was used already", code="device_code_used")
    try:
        return await _shown(services, found, sealed) if sealed is not None else await _made(services, db, found)
    except (DomainError, SealBroken) as error:
        if isinstance(error, (Refused, Unavailable)):
            raise
        raise PollError(
            "access_denied", "who let this device in may not any more", code="device_login_denied"
        ) from error


async def _shown(services: LoginServices, found: DeviceGrant, sealed: bytes) -> DeviceKey:
    """The key that the person showed, if it works still."""
    text = services.logins.vault.open(sealed, _owner(found)).get_secret_value()
    principal = await services.authenticator.principal_of(text)
    return DeviceKey(text, principal.credential_id, principal.tenant_id, principal.expires_at, is_new=False)


async def _made(services: LoginServices, db: AsyncSession, found: DeviceGrant) -> DeviceKey:
    """A new key of the member who let it in, as long as their login goes on and their role is what it was then."""
    tenant_id, member_id = TenantId(found.tenant_id or ""), MemberId(found.member_id or "")
    tenant = await tenants.find(db, tenant_id)
    member = await members.find(db, tenant_id, member_id)
    login = await logins.find_of_all_tenants(db, LoginId(found.login_id or ""))
    if tenant is None or member is None or tenant.status != "active":
        raise NotFound("the member or the tenant is not there any more", code="member_not_found")
    if not counts(login, services.settings, services.clock.now()) or member.role != found.role:
        raise Forbidden("the login is over, or the member's role is another one now")
    by = Principal(
        CredentialId(found.id),
        tenant_id,
        member_id,
        member.role,
        await rights.grants_of(db, tenant_id, member.role),
        tenant.tier,
        DEFAULT,
        method="login",
    )
    expires_at = services.clock.now() + services.settings.auth.login.device_key_lifetime
    wish = keys_service.Wish(found.name, member.role, expires_at, member.id)
    made = await keys_service.add(services, db, tenant, wish, by)
    return DeviceKey(made.text, made.row.id, tenant_id, expires_at.timestamp(), is_new=True)


def _no_such_code() -> PollError:
    return PollError("invalid_grant", "there is no such device code; begin again", code="no_such_device_code")


def _owner(found: DeviceGrant) -> tuple[str, ...]:
    return ("device", found.id)
