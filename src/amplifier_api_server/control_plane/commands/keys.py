"""`amplifier-api-server keys`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from amplifier_api_server.control_plane.accounts import bootstrap
from amplifier_api_server.control_plane.commands.output import console, show_json, show_rows
from amplifier_api_server.control_plane.commands.tenants import checked_name
from amplifier_api_server.control_plane.keys import operators as operator_keys
from amplifier_api_server.control_plane.keys import service
from amplifier_api_server.control_plane.keys.schemas import CreatedKey, KeyView
from amplifier_api_server.control_plane.keys.service import NewKey, Wish
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.ids import KeyId, TenantId
from amplifier_api_server.tenants.models import ApiKey
from amplifier_api_server.tenants.permissions import Role
from amplifier_api_server.tenants.repository.pages import Page

_COLUMNS = ("id", "name", "role", "member_id", "hint", "created_at", "expires_at", "last_used_at")
_ROWS = 200

_Place = tuple[datetime, str]


async def show(at: Management, tenant: str | None, *, operators: bool, as_json: bool) -> None:
    tenant_id = None if operators else tenant_of(at, tenant)
    found: list[ApiKey] = []
    before: _Place | None = None
    while page := await _page(at, tenant_id, before):
        found += page
        before = (page[-1].created_at, page[-1].id)
    show_rows(_COLUMNS, [KeyView.of(one).model_dump(mode="json") for one in found], as_json=as_json)


async def _page(at: Management, tenant_id: TenantId | None, before: _Place | None) -> Sequence[ApiKey]:
    if tenant_id is None:
        return await operator_keys.page(at, Page(_ROWS, before))
    return await service.page(at, tenant_id, Page(_ROWS, before))


async def create(
    at: Management,
    tenant: str | None,
    name: str,
    role: str,
    expires: datetime | None,
    limits: Mapping[str, Any] | None,
    *,
    as_json: bool,
) -> None:
    wish = Wish(checked_name(name), role, expires.replace(tzinfo=UTC) if expires else None, None, limits)
    if role == Role.OPERATOR.value:
        made = await operator_keys.create(at, wish, "cli")
    else:
        made = await service.create(at, tenant_of(at, tenant), wish, "cli")
    _show_new(made, as_json=as_json)


async def revoke(at: Management, tenant: str | None, key_id: str) -> None:
    if not await operator_keys.revoke(at, KeyId(key_id), "cli"):
        await service.revoke(at, tenant_of(at, tenant), KeyId(key_id), "cli")
    console().print(f"{key_id} is revoked")


async def rotate(at: Management, tenant: str | None, key_id: str, overlap_seconds: int, *, as_json: bool) -> None:
    if overlap_seconds > service.MAX_OVERLAP_SECONDS:
        raise Invalid(f"--overlap should be at most {service.MAX_OVERLAP_SECONDS} seconds")
    tenant_id = tenant_of(at, tenant)
    made = await service.rotate(at, tenant_id, KeyId(key_id), "cli", overlap_seconds=overlap_seconds)
    _show_new(made, as_json=as_json)


def _show_new(made: NewKey, *, as_json: bool) -> None:
    answer = CreatedKey.of_new(made)
    if as_json:
        show_json(answer.model_dump(mode="json"))
        return
    console().print(f"key {answer.id} ({answer.role}) was made\nshown once: {answer.key}")


def tenant_of(at: Management, tenant: str | None) -> TenantId:
    """The tenant that is meant. Raises Invalid where none is named and there is no first one."""
    if tenant is not None:
        return TenantId(tenant)
    first = bootstrap.read(at.settings.server.data_dir)
    if first is None:
        raise Invalid("no first tenant is known here; name one with --tenant")
    return TenantId(first.tenant_id)
