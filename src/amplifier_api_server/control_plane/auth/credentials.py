"""From rows to a principal, or to the reason why not. Pure.

Refuses to know headers, caches and SQL. Invariant: a key that is revoked, over, of a member who is not active, or of a tenant
that is not, never makes a principal; and a key holds nothing that its member doesn't hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import DomainError, Forbidden, Invalid, Unauthenticated
from amplifier_api_server.tenants.ids import CredentialId, MemberId, TenantId
from amplifier_api_server.tenants.json_columns import is_spoiled
from amplifier_api_server.tenants.lifecycle import MemberStatus, TenantStatus
from amplifier_api_server.tenants.permissions import GRANTS, TENANT_ROLES, Role, both, is_grant
from amplifier_api_server.tenants.repository.keys import Credential
from amplifier_api_server.tenants.tiers import (
    DEFAULT,
    LIMIT_NAMES,
    Limits,
    capped,
    overlaid,
    overlaid_for_tenant,
    parse_overrides,
)

log = structlog.get_logger(__name__)

UNKNOWN_KEY = "the API key is not known here; it may have been revoked"
_EXPIRED = "the API key has expired; ask an admin of your tenant for a new one"
_NO_KEYS = "this server takes no API keys of tenants; send a token of your identity provider"
_NO_LIMIT = Limits(**dict.fromkeys(LIMIT_NAMES))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a credential is good for, until `expires_at`. Exactly one of `principal` and `refusal` is set."""

    principal: Principal | None
    refusal: type[DomainError] = Unauthenticated
    detail: str = ""
    code: str | None = None
    expires_at: float | None = None  # seconds since the epoch

    def admit(self, now: float) -> Principal:
        """The principal, or a new error that says why there is none."""
        if self.principal is None:
            raise self.refusal(self.detail, code=self.code)
        if self.expires_at is not None and self.expires_at <= now:
            raise Unauthenticated(_EXPIRED)
        return self.principal


UNKNOWN = Verdict(None, detail=UNKNOWN_KEY)
SUSPENDED = Verdict(None, Forbidden, "the tenant is suspended; ask the operator of this service", "tenant_suspended")
DISABLED = Verdict(None, Forbidden, "your membership is disabled; ask an admin of your tenant", "member_disabled")


def judge(found: Credential | None, settings: Settings, now: datetime) -> Verdict:
    """What a key is good for now."""
    if found is None or found.revoked_at is not None:
        return UNKNOWN
    if found.expires_at is not None and found.expires_at <= now:
        return Verdict(None, detail=_EXPIRED)
    expires_at = None if found.expires_at is None else found.expires_at.timestamp()
    if found.tenant_id is None:
        # The operator's own stay good where tenants' are not taken: there is no other way to be the operator.
        return Verdict(_operator(found), expires_at=expires_at) if found.role == Role.OPERATOR else UNKNOWN
    if not settings.auth.keys:
        return Verdict(None, detail=_NO_KEYS)
    if found.tenant_status == TenantStatus.SUSPENDED:
        return SUSPENDED
    if found.tenant_status != TenantStatus.ACTIVE or found.member_id is None or found.member_limits is None:
        return UNKNOWN
    if found.member_status == MemberStatus.DISABLED:
        return DISABLED
    if found.member_status != MemberStatus.ACTIVE:
        return UNKNOWN
    return Verdict(_of_tenant(found, settings), expires_at=expires_at)


def grants_by(role: str, own: Iterable[str] | None) -> frozenset[str]:
    """What a role of a tenant holds: a built-in one, or what its own row says; nothing for a role that is gone."""
    if role in TENANT_ROLES:
        return GRANTS[Role(role)]
    # What this version does not know, it does not grant: a later one may have written it.
    return frozenset(one for one in own or () if is_grant(one))


def limits_for(
    settings: Settings, tenant_id: str, tier: str, of_tenant: Mapping[str, Any] | None, *own: Mapping[str, Any] | None
) -> Limits:
    """A tier's limits with the tenant's overrides over them, and those of `own`, which only lower."""
    limits = settings.limits_of(tier)
    if limits is None:
        log.warning("a tenant's tier is not configured; the default tier's limits hold", tenant=tenant_id, tier=tier)
        limits = settings.limits_of("default") or DEFAULT
    bounds = overlaid_for_tenant(limits, _readable(of_tenant, tenant_id))
    return capped(overlaid(bounds, *(_readable(one, tenant_id) for one in own)), bounds)


def _operator(found: Credential) -> Principal:
    """Operators run the service and are not counted: what limits would be theirs to set."""
    member_id = MemberId("op_" + found.key_id)
    return Principal(
        CredentialId(found.key_id),
        TenantId(""),
        member_id,
        Role.OPERATOR.value,
        GRANTS[Role.OPERATOR],
        "operator",
        _NO_LIMIT,
        expires_at=_seconds(found.expires_at),
        proof=found.digest,
    )


def _of_tenant(found: Credential, settings: Settings) -> Principal:
    """A key's role, but no more than its member's: whoever was given a smaller role is not let in by an older key."""
    of_key = grants_by(found.role, found.role_grants)
    of_member = grants_by(found.member_role or "", found.member_grants)
    grants = both(of_key, of_member)
    tier = found.tier or ""
    return Principal(
        CredentialId(found.key_id),
        TenantId(found.tenant_id or ""),
        MemberId(found.member_id or ""),
        found.role if grants == of_key else (found.member_role or ""),
        grants,
        tier,
        limits_for(settings, found.tenant_id or "", tier, found.tenant_limits, found.member_limits, found.key_limits),
        expires_at=_seconds(found.expires_at),
        proof=found.digest,
    )


def _seconds(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def _readable(given: Mapping[str, Any] | None, tenant_id: str) -> Mapping[str, int | None]:
    """Overrides as they were stored; a limit that this version does not know is skipped, the others hold."""
    if is_spoiled(given):
        log.warning("stored limits can't be read and are skipped", tenant=tenant_id)
    found: dict[str, int | None] = {}
    for name, value in (given or {}).items():
        try:
            found |= parse_overrides({name: value})
        except Invalid as error:
            log.warning("a stored limit can't be read and is skipped", tenant=tenant_id, limit=name, why=error.detail)
    return found
