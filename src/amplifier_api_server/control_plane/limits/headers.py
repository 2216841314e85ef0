"""Limits as response headers. Pure, and cheap: they are on every answer.

`X-RateLimit-*` (Reset in epoch seconds) is what clients know; `RateLimit` and `RateLimit-Policy` are the IETF's draft
(draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4: `r` left, `t` seconds until it is whole, `q` quota, `w`
window in seconds); `x-ratelimit-*-tokens` is what clients of model APIs know. An unlimited limit has no header.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from amplifier_api_server.control_plane.limits import wants
from amplifier_api_server.control_plane.limits.backend import Standing
from amplifier_api_server.tenants.quotas import DAY_SECONDS

Headers = list[tuple[bytes, bytes]]

_MINUTE_SECONDS = 60


def nearest(standings: Iterable[Standing]) -> Standing:
    """Of limits on one thing, that which is nearer to its end; an unlimited one is farthest."""
    return min(standings, key=lambda one: math.inf if one.remaining is None else one.remaining)


def of_request(standing: Standing, now: float) -> Headers:
    """Headers for requests, the member's or the tenant's. `now` is seconds since the epoch."""
    if standing.limit is None:
        return []
    limit = b"%d" % standing.limit
    remaining = b"%d" % (standing.remaining or 0)
    return [
        (b"x-ratelimit-limit", limit),
        (b"x-ratelimit-remaining", remaining),
        (b"x-ratelimit-reset", b"%d" % math.ceil(standing.resets_at)),
        (b"ratelimit-policy", b'"requests";q=%b;w=%d' % (limit, _MINUTE_SECONDS)),
        (b"ratelimit", b'"requests";r=%b;t=%d' % (remaining, max(0, math.ceil(standing.resets_at - now)))),
    ]


def of_tokens(standing: Standing, now: float) -> Headers:
    """Headers for `tokens_per_day`; Reset is in seconds from now with a unit, as model APIs have it."""
    if standing.limit is None:
        return []
    seconds = max(0, math.ceil(standing.resets_at - now))
    limit, remaining = b"%d" % standing.limit, b"%d" % (standing.remaining or 0)
    return [
        (b"x-ratelimit-limit-tokens", limit),
        (b"x-ratelimit-remaining-tokens", remaining),
        (b"x-ratelimit-reset-tokens", b"%ds" % seconds),
        (b"ratelimit-policy", b'"tokens";q=%b;w=%d' % (limit, DAY_SECONDS)),
        (b"ratelimit", b'"tokens";r=%b;t=%d' % (remaining, seconds)),
    ]


def of(standings: Iterable[Standing], now: float) -> Headers:
    """Headers for all of `standings` that have any; of requests, for the limit that is nearer to its end.

    Two lines of one name are one list (RFC 9110, 5.3).
    """
    told = list(standings)
    requests = [one for one in told if one.name in (wants.REQUESTS, wants.TENANT_REQUESTS)]
    found = of_request(nearest(requests), now) if requests else []
    for standing in told:
        if standing.name == wants.TOKENS:
            found += of_tokens(standing, now)
    return found
