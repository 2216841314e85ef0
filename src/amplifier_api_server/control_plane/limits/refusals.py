"""What is said when a limit says no: which one, how it stands, and what to do about it. Pure."""

from __future__ import annotations

import math
from typing import Any

from amplifier_api_server.control_plane.limits import wants
from amplifier_api_server.control_plane.limits.backend import Denied, Standing
from amplifier_api_server.tenants.errors import QuotaExceeded, Refused

_CODES = {
    wants.REQUESTS: "rate_limited",
    wants.TOKENS: "quota_exceeded",
    wants.CONCURRENT: "concurrent_sessions_exceeded",
    wants.OWNED: "sessions_per_user_exceeded",
    wants.SANDBOXES: "sandboxes_exceeded",
    wants.TENANT_REQUESTS: "rate_limited",
    wants.TENANT_CONCURRENT: "concurrent_sessions_exceeded",
    wants.TENANT_OWNED: "tenant_sessions_exceeded",
}


_OR_ONCE = "; a run that nothing follows needs none with POST /v1/executions, which closes its session at its end"
_BY_TIME = (wants.REQUESTS, wants.TENANT_REQUESTS, wants.TOKENS)


def refusal_of(denied: Denied, idle_minutes: float) -> Refused:
    """The error that a denial is told as. `standings` of all limits that were asked go with it, for headers."""
    standing = next(one for one in denied.standings if one.name == denied.name)
    kind = QuotaExceeded if denied.name == wants.TOKENS else Refused
    extra: dict[str, Any] = {"limit": denied.name, "limit_value": standing.limit, "used": standing.used}
    if standing.reserved:
        extra["reserved"] = standing.reserved
    if standing.holders and denied.name in (wants.CONCURRENT, wants.OWNED):
        extra["holders"] = list(standing.holders)
    # A place's lease is renewed for as long as its holder lives: when it would run out says nothing of when to come back.
    retry_after = denied.retry_after_seconds if denied.name in _BY_TIME else None
    refused = kind(
        _detail(standing, retry_after, idle_minutes),
        code=_CODES[denied.name],
        retry_after_seconds=retry_after,
        **extra,
    )
    refused.standings = denied.standings
    return refused


def _detail(standing: Standing, retry_after_seconds: float | None, idle_minutes: float) -> str:
    limit = standing.limit
    if standing.name in (wants.REQUESTS, wants.TENANT_REQUESTS):
        after = f"; try again in {math.ceil(retry_after_seconds)} s" if retry_after_seconds is not None else ""
        whose = " of all members of the tenant" if standing.name == wants.TENANT_REQUESTS else ""
        return f"more than {limit} requests a minute{whose} ({standing.name}){after}"
    if standing.name == wants.TOKENS:
        reserved = f" and {standing.reserved} reserved by running turns" if standing.reserved else ""
        return (
            f"the tenant's {limit} tokens of today (tokens_per_day) are taken: {standing.used} used{reserved}; "
            "they are there again at midnight UTC"
        )
    if standing.name == wants.CONCURRENT:
        return (
            f"{standing.used} of {limit} sessions are active at once (concurrent_sessions); close one, or wait: "
            f"an idle one is suspended after {idle_minutes:g} minutes and holds no place then"
        )
    if standing.name == wants.TENANT_CONCURRENT:
        return (
            f"{standing.used} of {limit} sessions of all members of the tenant are active at once ({standing.name}); one of "
            f"them must be closed, or be idle for {idle_minutes:g} minutes: then it is suspended and holds no place"
        )
    if standing.name == wants.TENANT_OWNED:
        return (
            f"{standing.used} of {limit} sessions of all members of the tenant are open ({standing.name}), suspended ones "
            f"included; one of them must be closed{_OR_ONCE}"
        )
    if standing.name == wants.OWNED:
        return (
            f"{standing.used} of {limit} sessions are open (sessions_per_user), suspended ones included; "
            f"close one with DELETE /v1/sessions/{{id}}{_OR_ONCE}"
        )
    return (
        f"the tenant has {standing.used} of {limit} sandboxes (sandboxes); close sessions, "
        "or wait until idle ones are suspended"
    )
