"""Who may do what: a grant is "resource:action", "resource:*" or "*". Pure.

`*` is everything of a tenant; what belongs to the operator of the service (`tenants`) is never in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache

RESOURCES: dict[str, frozenset[str]] = {
    "sessions": frozenset({"create", "read", "execute", "update", "approve", "delete"}),
    "profiles": frozenset({"read", "write"}),
    "collections": frozenset({"read", "install", "remove"}),
    "tools": frozenset({"read", "execute"}),
    "keys": frozenset({"create", "read", "delete"}),
    "provider_keys": frozenset({"create", "read", "delete"}),
    "models": frozenset({"read"}),
    "web": frozenset({"read", "update"}),
    "members": frozenset({"create", "read", "update", "delete"}),
    "roles": frozenset({"create", "read", "update", "delete"}),
    "events": frozenset({"read"}),
    "audit": frozenset({"read"}),
    "me": frozenset({"read"}),
    "usage": frozenset({"read"}),
    "limits": frozenset({"read"}),
    "tenants": frozenset({"create", "read", "update", "delete"}),
}

OPERATOR_RESOURCES = frozenset({"tenants"})
_EVERYTHING = "*"

# Everybody may ask who they are and what holds for themselves; refusing to explain a refusal helps nobody.
EVERYBODY = frozenset({"limits:read", "me:read"})


class Role(StrEnum):
    ADMIN = "admin"
    DEVELOPER = "developer"
    READONLY = "readonly"
    OPERATOR = "operator"


GRANTS: dict[Role, frozenset[str]] = {
    Role.ADMIN: frozenset({"*"}),
    Role.DEVELOPER: frozenset({"sessions:*", "profiles:read", "tools:execute", "models:read", "events:read"}),
    Role.READONLY: frozenset({"sessions:read", "profiles:read", "models:read", "events:read"}),
    Role.OPERATOR: frozenset({"tenants:*", "audit:read"}),
}

TENANT_ROLES = (Role.ADMIN, Role.DEVELOPER, Role.READONLY)  # what a tenant's admin can give


def is_permission(name: str) -> bool:
    """Whether `name` is a "resource:action" that exists."""
    resource, _, action = name.partition(":")
    return action in RESOURCES.get(resource, frozenset())


def is_grant(text: str) -> bool:
    """Whether `text` is what a role of a tenant may hold: a permission, all of a resource, or everything."""
    resource, _, action = text.partition(":")
    if text == _EVERYTHING:
        return True
    return resource not in OPERATOR_RESOURCES and resource in RESOURCES and (action == "*" or is_permission(text))


def beyond(wished: Iterable[str], held: Iterable[str]) -> list[str]:
    """The grants among `wished` that are not within `held`, sorted; nobody gives what is here.

    Whoever holds each action of a resource by its name does not hold all of the resource: a later version may add actions.
    """
    have = frozenset(held)
    return sorted(one for one in frozenset(wished) if not _covers(have, one))


def both(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    """What is within `one` and within `other`."""
    return frozenset({grant for grant in one if _covers(other, grant)} | {it for it in other if _covers(one, it)})


def _covers(held: frozenset[str], grant: str) -> bool:
    resource, _, action = grant.partition(":")
    if _EVERYTHING in held and resource not in OPERATOR_RESOURCES:
        return True
    if grant == _EVERYTHING or action == "*":
        return grant in held
    return allows(held, grant)


def allows(grants: Iterable[str], permission: str) -> bool:
    """Whether `grants` hold `permission`. Raises ValueError for a permission that does not exist: a bug, not a refusal."""
    return _allows(frozenset(grants), permission)


@lru_cache(maxsize=1024)  # asked at every request, of a handful of roles and permissions
def _allows(grants: frozenset[str], permission: str) -> bool:
    if not is_permission(permission):
        raise ValueError(f"no such permission: {permission!r}")
    resource = permission.partition(":")[0]
    held = grants | EVERYBODY
    if permission in held or f"{resource}:*" in held:
        return True
    return "*" in held and resource not in OPERATOR_RESOURCES
