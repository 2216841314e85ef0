"""From a key's row to a principal, or to the reason why not. Pure.

Refuses to know headers, caches and SQL. Invariant: a key that is revoked, over, or of a tenant that is not active
never makes a principal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import DomainError, Forbidden, Invalid, Unauthenticated
from amplifier_api_server.tenants.ids import CredentialId, MemberId, TenantId
from amplifier_api_server.tenants.lifecycle import TenantStatus
from amplifier_api_server.tenants.permissions import GRANTS, Role
from amplifier_api_server.tenants.repository.keys import Credential
from amplifier_api_server.tenants.tiers import DEFAULT, Limits, capped, overlaid, parse_overrides

log = structlog.get_logger(__name__)

UNKNOWN_KEY = "the API key is not known here; it may have been revoked"
_EXPIRED = "the API key has expired; ask an admin of your tenant for a new one"
_SUSPENDED = "the tenant is suspended; ask the operator of this service"
_NO_LIMIT = Limits(None, None, None, None, None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a key is good for, until `expires_at`. Exactly one of `principal` and `refusal` is set."""

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


def judge(found: Credential | None, settings: Settings, now: datetime) -> Verdict:
    """What `found` is good for now."""
    if found is None or found.revoked_at is not None:
        return UNKNOWN
    if found.expires_at is not None and found.expires_at <= now:
        return Verdict(None, detail=_EXPIRED)
    expires_at = None if found.expires_at is None else found.expires_at.timestamp()
    if found.tenant_id is None:
        return Verdict(_operator(found), expires_at=expires_at) if found.role == Role.OPERATOR else UNKNOWN
    if found.tenant_status == TenantStatus.SUSPENDED:
        return Verdict(None, Forbidden, _SUSPENDED, "tenant_suspended")
    if found.tenant_status != TenantStatus.ACTIVE or found.member_id is None or found.member_limits is None:
        return UNKNOWN
    return Verdict(_of_tenant(found, settings), expires_at=expires_at)


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
    )


def _of_tenant(found: Credential, settings: Settings) -> Principal:
    tier = found.tier or ""
    limits = settings.limits_of(tier)
    if limits is None:
        log.warning(
            "a tenant's tier is not configured; the default tier's limits hold", tenant=found.tenant_id, tier=tier
        )
        limits = settings.limits_of("default") or DEFAULT
    of_tenant = overlaid(limits, _readable(found.tenant_limits, found.key_id))
    own = [_readable(given, found.key_id) for given in (found.member_limits, found.key_limits)]
    grants = GRANTS[Role(found.role)] if found.role in GRANTS and found.role != Role.OPERATOR else frozenset[str]()
    return Principal(
        CredentialId(found.key_id),
        TenantId(found.tenant_id or ""),
        MemberId(found.member_id or ""),
        found.role,
        grants,
        tier,
        capped(overlaid(of_tenant, *own), of_tenant),
    )


def _readable(given: Mapping[str, Any] | None, key_id: str) -> Mapping[str, int | None]:
    """Overrides as they were stored; a limit that this version does not know is skipped, the others hold."""
    found: dict[str, int | None] = {}
    for name, value in (given or {}).items():
        try:
            found |= parse_overrides({name: value})
        except Invalid as error:
            log.warning("a stored limit can't be read and is skipped", key=key_id, limit=name, why=error.detail)
    return found
