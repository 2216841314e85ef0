"""Roles of a tenant: those that are built in, and its own.

Invariants: a role holds what exists and belongs to tenants; nobody makes, widens or narrows one that holds more than they do
(`rights`); one that somebody has is not removed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.audit.recording import differences, record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.pages import Place
from amplifier_api_server.control_plane.roles.rights import grants_of, require_held
from amplifier_api_server.tenants import permissions
from amplifier_api_server.tenants.errors import Conflict, Invalid, NotFound
from amplifier_api_server.tenants.ids import TenantId, new_role_id
from amplifier_api_server.tenants.json_columns import spoiled_in
from amplifier_api_server.tenants.models import Role
from amplifier_api_server.tenants.permissions import GRANTS, TENANT_ROLES, beyond
from amplifier_api_server.tenants.repository import roles

MAX_ROLES = 100  # of one tenant
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

__all__ = ["RoleInfo", "all_of", "change", "create", "find", "grants_of", "remove"]


@dataclass(frozen=True, slots=True)
class RoleInfo:
    """A role as it can be given."""

    name: str
    description: str
    permissions: tuple[str, ...]
    is_built_in: bool
    created_at: datetime | None = None
    updated_at: datetime | None = None
    created_by: str | None = None
    broken: tuple[str, ...] = ()


_DESCRIPTIONS = {
    permissions.Role.ADMIN: "Everything of its tenant",
    permissions.Role.DEVELOPER: "Works with sessions and tools",
    permissions.Role.READONLY: "Reads sessions and profiles",
}
_BUILT_IN = tuple(
    RoleInfo(role.value, _DESCRIPTIONS[role], tuple(sorted(GRANTS[role])), is_built_in=True) for role in TENANT_ROLES
)


PLACE: Final = Place(lambda role: (int(not role.is_built_in), role.name), (int, str))  # the built-in ones come first


async def all_of(services: Management, tenant_id: TenantId) -> list[RoleInfo]:
    """The built-in ones, then the tenant's own by name."""
    async with services.database.read() as db:
        own = await roles.all_of(db, tenant_id)
    return [*_BUILT_IN, *(_info(row) for row in own)]


async def find(services: Management, tenant_id: TenantId, name: str) -> RoleInfo:
    """Raises NotFound."""
    built_in = next((one for one in _BUILT_IN if one.name == name), None)
    if built_in is not None:
        return built_in
    async with services.database.read() as db:
        return _info(_there(await roles.find(db, tenant_id, name), name))


async def create(
    services: Management, principal: Principal, name: str, grants: Sequence[str], description: str = ""
) -> RoleInfo:
    """A new role of the caller's tenant. Commits. Raises Invalid, Forbidden, Conflict (`role_exists`, `too_many_roles`)."""
    if not _NAME.fullmatch(name):
        raise _invalid("name", "should be at most 63 of a-z, 0-9, _ and -, beginning with a letter or digit")
    if name in [role.value for role in permissions.Role]:
        raise _taken(name)
    checked, now, tenant_id = _checked(grants), services.clock.now(), principal.tenant_id
    row = Role(
        id=new_role_id(),
        tenant_id=tenant_id,
        name=name,
        description=description,
        permissions=checked,
        created_at=now,
        updated_at=now,
        created_by=principal.member_id,
    )
    try:
        async with services.database.write() as db:
            await require_held(db, principal, checked, "the role")
            if await roles.count(db, tenant_id) >= MAX_ROLES:
                raise Conflict(f"a tenant has at most {MAX_ROLES} roles of its own", code="too_many_roles")
            await roles.add(db, tenant_id, row)
            changes = differences({}, {"permissions": checked, "description": description})
            await record(db, services.clock, principal, "createRole", target=name, changes=changes)
    except IntegrityError as error:
        raise _taken(name) from error
    return _info(row)


async def change(
    services: Management,
    principal: Principal,
    name: str,
    *,
    grants: Sequence[str] | None = None,
    description: str | None = None,
) -> RoleInfo:
    """Set what is not None: whoever has the role may do that from now on. Commits.

    Raises Invalid, NotFound, Forbidden, Conflict (`built_in_role`).
    """
    _require_own(name)
    wished = {"permissions": _checked(grants) if grants is not None else None, "description": description}
    values: dict[str, Any] = {field: value for field, value in wished.items() if value is not None}
    tenant_id = principal.tenant_id
    async with services.database.write() as db:
        row = _there(await roles.find(db, tenant_id, name), name)
        before = {"permissions": list(row.permissions), "description": row.description}
        await _require_mine(db, principal, row, values.get("permissions", ()))
        changes = differences(before, values)
        if changes:
            row = _there(await roles.change(db, tenant_id, name, services.clock.now(), **values), name)
            await record(db, services.clock, principal, "updateRole", target=name, changes=changes)
    if "permissions" in changes:
        is_narrowed = bool(beyond(before["permissions"], row.permissions))
        await services.on_role_changed(tenant_id, is_narrowed=is_narrowed)
    return _info(row)


async def remove(services: Management, principal: Principal, name: str) -> None:
    """Commits. Raises NotFound, Forbidden, Conflict (`built_in_role`, `role_in_use`)."""
    _require_own(name)
    tenant_id = principal.tenant_id
    async with services.database.write() as db:
        row = _there(await roles.find(db, tenant_id, name), name)
        await _require_mine(db, principal, row)
        uses = {what: n for what, n in (await roles.uses(db, tenant_id, name, services.clock.now())).items() if n}
        if uses:
            told = ", ".join(f"{count} {what}" for what, count in uses.items())
            raise Conflict(
                f"the role {name} is in use: {told}; give these another role, or remove them, before",
                code="role_in_use",
                **uses,
            )
        await roles.remove(db, tenant_id, name)
        changes = {"permissions": (list(row.permissions), None)}
        await record(db, services.clock, principal, "deleteRole", target=name, changes=changes)


async def _require_mine(db: AsyncSession, principal: Principal, row: Role, wished: Sequence[str] = ()) -> None:
    """What it holds, and what it shall hold: taking from those who hold more is not the caller's either."""
    known = [one for one in row.permissions if permissions.is_grant(one)]
    await require_held(db, principal, [*known, *wished], f"the role {row.name}")


def _checked(grants: Sequence[str]) -> list[str]:
    """Sorted, each once. Raises Invalid that names what is none."""
    wrong = [one for one in grants if not permissions.is_grant(one)]
    if wrong:
        message = 'should be "resource:action", "resource:*" or "*"; docs/tenancy.md lists the resources'
        errors = [{"field": f"permissions.{grants.index(one)}", "message": message} for one in wrong]
        raise Invalid(f"permissions: {wrong[0][:80]!r} is none; it {message}", errors=errors)
    return sorted(set(grants))


def _require_own(name: str) -> None:
    if name in TENANT_ROLES:
        raise Conflict(f"the role {name} is built in and stays as it is; make one of your own", code="built_in_role")


def _there(row: Role | None, name: str) -> Role:
    if row is None:
        raise NotFound(f"there is no role {name[:80]!r}; GET /v1/roles lists them", code="role_not_found")
    return row


def _info(row: Role) -> RoleInfo:
    return RoleInfo(
        row.name,
        row.description,
        tuple(row.permissions),
        is_built_in=False,
        created_at=row.created_at,
        updated_at=row.updated_at,
        created_by=row.created_by,
        broken=tuple(spoiled_in(row)),
    )


def _taken(name: str) -> Conflict:
    return Conflict(f"there is a role {name} already; choose another name, or change it", code="role_exists")


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(f"{field} {message}", errors=[{"field": field, "message": message}])
