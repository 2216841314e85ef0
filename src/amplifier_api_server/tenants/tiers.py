"""Tiers and limits: frozen values, and how overrides are laid over them. Pure.

A limit is an integer, or None for unlimited. Overrides come from configuration (per tier), the tenant, the member and
the key, in that order; the last that says something wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from amplifier_api_server.tenants.errors import Invalid


@dataclass(frozen=True, slots=True)
class Limits:
    """What one principal may take. Requests and sessions hold per user; what is named for the tenant, tokens, sandboxes,
    disk, members and keys hold for all users of a tenant together.
    """

    requests_per_minute: int | None = 60
    tokens_per_day: int | None = 100_000
    concurrent_sessions: int | None = 5  # active ones: a suspended session holds nothing
    sessions_per_user: int | None = 10  # not closed, suspended ones included
    sandboxes: int | None = 4  # claimed runtimes of the tenant at once
    disk_bytes: int | None = 10 * 1024**3  # of all that the tenant keeps, sessions at rest included
    disk_files: int | None = 500_000  # the same of files and folders
    tenant_requests_per_minute: int | None = 300
    tenant_concurrent_sessions: int | None = 25
    tenant_sessions: int | None = 100  # not closed
    members: int | None = 50  # not removed, those that were made for keys among them
    keys: int | None = 100  # that work


DEFAULT = Limits()


def _disk(gibibytes: int, files: int) -> dict[str, int | None]:
    return {"disk_bytes": gibibytes * 1024**3, "disk_files": files}


# What each built-in tier says differently from DEFAULT.
TIERS: Mapping[str, Mapping[str, int | None]] = {
    "free": _disk(1, 100_000)
    | {
        "requests_per_minute": 10,
        "tokens_per_day": 10_000,
        "sandboxes": 1,
        "tenant_requests_per_minute": 20,
        "tenant_concurrent_sessions": 5,
        "tenant_sessions": 20,
        "members": 10,
        "keys": 20,
    },
    "default": {},
    "pro": _disk(50, 1_000_000)
    | {
        "requests_per_minute": 100,
        "tokens_per_day": 500_000,
        "concurrent_sessions": 10,
        "sessions_per_user": 50,
        "tenant_requests_per_minute": 1_000,
        "tenant_concurrent_sessions": 50,
        "tenant_sessions": 500,
        "members": 500,
        "keys": 1_000,
    },
    "enterprise": _disk(200, 4_000_000)
    | {
        "requests_per_minute": 1_000,
        "tokens_per_day": None,
        "concurrent_sessions": 50,
        "sessions_per_user": 500,
        "sandboxes": 16,
        "tenant_requests_per_minute": 10_000,
        "tenant_concurrent_sessions": 500,
        "tenant_sessions": 10_000,
        "members": 10_000,
        "keys": 20_000,
    },
}

# Members' limits, and the tenant's ceiling over each.
CEILINGS: Mapping[str, str] = {
    "requests_per_minute": "tenant_requests_per_minute",
    "concurrent_sessions": "tenant_concurrent_sessions",
    "sessions_per_user": "tenant_sessions",
}

LIMIT_NAMES = tuple(field.name for field in fields(Limits))
UNLIMITED = "unlimited"


def parse_overrides(given: Mapping[str, Any], *, where: str = "limits") -> dict[str, int | None]:
    """`given` as a mapping of limit names to integers or None, from `unlimited` or null too.

    Raises Invalid naming the field for a name that is no limit and for a value that is neither a whole number from 0 to
    2**53 nor "unlimited".
    """
    parsed: dict[str, int | None] = {}
    for name, value in given.items():
        if name not in LIMIT_NAMES:
            raise Invalid(
                f"{where}.{name} is no limit; there are {', '.join(LIMIT_NAMES)}",
                errors=[{"field": f"{where}.{name}", "message": "no such limit"}],
            )
        if value is None or value == UNLIMITED:
            parsed[name] = None
        elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53:
            parsed[name] = value
        else:
            message = f'should be a whole number from 0 on, or "{UNLIMITED}"'
            raise Invalid(
                f"{where}.{name} is {value!r}; it {message}", errors=[{"field": f"{where}.{name}", "message": message}]
            )
    return parsed


def overlaid(limits: Limits, *overrides: Mapping[str, Any]) -> Limits:
    """`limits` with each of `overrides` (as `parse_overrides` gives them) laid over it in turn."""
    for override in overrides:
        if override:
            limits = replace(limits, **override)
    return limits


def overlaid_for_tenant(limits: Limits, *overrides: Mapping[str, Any]) -> Limits:
    """The same for a tier or a tenant. Whoever gives one member more, and says nothing of the ceiling, gives the tenant as
    much at least.
    """
    for override in overrides:
        limits = overlaid(limits, override)
        for name, ceiling in CEILINGS.items():
            if name in override and ceiling not in override:
                each, together = getattr(limits, name), getattr(limits, ceiling)
                more = None if each is None or together is None else max(each, together)
                limits = replace(limits, **{ceiling: more})
    return limits


def capped(limits: Limits, bounds: Limits) -> Limits:
    """`limits`, none of them above `bounds`: what a tenant's admin gives a member or a key can lower, never raise."""
    return Limits(**{name: _lower(getattr(limits, name), getattr(bounds, name)) for name in LIMIT_NAMES})


def _lower(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
