"""Which counters a limit is counted in: from a principal's limits to a backend's wants. Pure.

Requests and sessions are counted for the member and for the tenant, tokens and sandboxes for the tenant. Every key begins
with the tenant in braces, which is what keeps the counters of one tenant in one slot of a Redis cluster.
"""

from __future__ import annotations

from functools import lru_cache

from amplifier_api_server.control_plane.limits.backend import Budget, Held, Rate
from amplifier_api_server.tenants.ids import MemberId, RuntimeId, SessionId, TenantId, TurnId

REQUESTS = "requests_per_minute"
TOKENS = "tokens_per_day"
CONCURRENT = "concurrent_sessions"
OWNED = "sessions_per_user"
SANDBOXES = "sandboxes"
TENANT_REQUESTS = "tenant_requests_per_minute"
TENANT_CONCURRENT = "tenant_concurrent_sessions"
TENANT_OWNED = "tenant_sessions"


def requests_key(tenant_id: TenantId, member_id: MemberId) -> str:
    return f"{{{tenant_id}}}:requests:{member_id}"


def concurrent_key(tenant_id: TenantId, member_id: MemberId) -> str:
    return f"{{{tenant_id}}}:concurrent:{member_id}"


def owned_key(tenant_id: TenantId, member_id: MemberId) -> str:
    return f"{{{tenant_id}}}:sessions:{member_id}"


def tokens_key(tenant_id: TenantId) -> str:
    return f"{{{tenant_id}}}:tokens"


def all_concurrent_key(tenant_id: TenantId) -> str:
    return f"{{{tenant_id}}}:concurrent"


def all_owned_key(tenant_id: TenantId) -> str:
    return f"{{{tenant_id}}}:sessions"


def sandboxes_key(tenant_id: TenantId) -> str:
    return f"{{{tenant_id}}}:sandboxes"


@lru_cache(maxsize=20_000)  # asked at every request, of those members who are there now
def request(tenant_id: TenantId, member_id: MemberId, limit: int | None) -> Rate:
    """One request of the member."""
    return Rate(requests_key(tenant_id, member_id), REQUESTS, limit, 60.0)


@lru_cache(maxsize=20_000)
def request_of_all(tenant_id: TenantId, limit: int | None) -> Rate:
    """One request of the tenant, whoever's."""
    return Rate(f"{{{tenant_id}}}:requests", TENANT_REQUESTS, limit, 60.0)


def concurrent_of_all(tenant_id: TenantId, session_id: SessionId, limit: int | None, ttl_seconds: float) -> Held:
    """A place among the tenant's sessions that are active."""
    return Held(all_concurrent_key(tenant_id), TENANT_CONCURRENT, limit, session_id, ttl_seconds)


def owned_of_all(tenant_id: TenantId, session_id: SessionId, limit: int | None) -> Held:
    """A place among the tenant's sessions that are not closed."""
    return Held(all_owned_key(tenant_id), TENANT_OWNED, limit, session_id, None)


def concurrent(
    tenant_id: TenantId, member_id: MemberId, session_id: SessionId, limit: int | None, ttl_seconds: float
) -> Held:
    """A place among the member's sessions that are active."""
    return Held(concurrent_key(tenant_id, member_id), CONCURRENT, limit, session_id, ttl_seconds)


def owned(tenant_id: TenantId, member_id: MemberId, session_id: SessionId, limit: int | None) -> Held:
    """A place among the member's sessions that are not closed."""
    return Held(owned_key(tenant_id, member_id), OWNED, limit, session_id, None)


def sandbox(tenant_id: TenantId, runtime_id: RuntimeId, limit: int | None, ttl_seconds: float) -> Held:
    """A place among the tenant's sandboxes."""
    return Held(sandboxes_key(tenant_id), SANDBOXES, limit, runtime_id, ttl_seconds)


def tokens(tenant_id: TenantId, turn_id: TurnId, limit: int | None, amount: int, ttl_seconds: float) -> Budget:
    """A part of the tenant's tokens of today. A turn begins while there is any left, and is cut where there is none."""
    return Budget(tokens_key(tenant_id), TOKENS, limit, turn_id, amount, at_least=1, ttl_seconds=ttl_seconds)
