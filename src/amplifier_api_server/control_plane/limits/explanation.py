"""Admission in words: the answer to GET /v1/limits, whichever door asks."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.limits import disk_use, wants
from amplifier_api_server.control_plane.limits.admission import Admission
from amplifier_api_server.control_plane.limits.backend import Standing
from amplifier_api_server.control_plane.limits.schemas import LastRefusal, LimitsExplained, Policy, whole_seconds

_OF_TENANT = (
    *(wants.TOKENS, wants.SANDBOXES, wants.TENANT_REQUESTS, wants.TENANT_CONCURRENT, wants.TENANT_OWNED),
    *(disk_use.BYTES, disk_use.FILES),
)
_FREES = {
    wants.REQUESTS: "time: a request's place comes back at the pace of the limit",
    wants.TOKENS: "midnight UTC; a running turn's reservation comes back when it ends, less what it used",
    wants.CONCURRENT: "closing a session, or its suspension when it is idle",
    wants.OWNED: "closing a session",
    disk_use.BYTES: "closing sessions, deleting their files, removing collections and profiles",
    disk_use.FILES: "the same",
    wants.TENANT_REQUESTS: "time: a request's place comes back at the pace of the limit",
    wants.TENANT_CONCURRENT: "closing a session of any member, or its suspension when it is idle",
    wants.TENANT_OWNED: "closing a session of any member",
    wants.SANDBOXES: "closing sessions, or their suspension: a sandbox without sessions ends",
}
_LEASED = (
    wants.CONCURRENT,
    wants.TENANT_CONCURRENT,
    wants.SANDBOXES,
)  # renewed while their holders live: an expiry says nothing


async def explain(admission: Admission, principal: Principal) -> LimitsExplained:
    """How the principal's limits stand, and why it was refused last."""
    standings = await admission.standings(principal)
    refusal = admission.last_refusal(principal)
    last = None
    if refusal is not None:
        last = LastRefusal(
            at=refusal.at,
            limit=refusal.limit,
            code=refusal.code,
            detail=refusal.detail,
            retry_after_seconds=whole_seconds(refusal.retry_after_seconds),
        )
    return LimitsExplained(
        tier=principal.tier,
        enforced=admission.is_enforced,
        limits=[_policy(one) for one in standings],
        last_refusal=last,
    )


def _policy(standing: Standing) -> Policy:
    is_timeless = standing.name in _LEASED or not math.isfinite(standing.resets_at)
    return Policy(
        name=standing.name,
        scope="tenant" if standing.name in _OF_TENANT else "member",
        limit=standing.limit,
        used=standing.used,
        reserved=standing.reserved,
        remaining=standing.remaining,
        resets_at=None if is_timeless else datetime.fromtimestamp(standing.resets_at, UTC),
        frees=_FREES[standing.name],
        # Of a tenant's sessions a member sees its own alone, and those above.
        holders=[] if standing.name in (wants.TENANT_CONCURRENT, wants.TENANT_OWNED) else list(standing.holders),
    )
