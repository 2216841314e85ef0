"""`amplifier-api-server tenants`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from amplifier_api_server.control_plane.accounts import service
from amplifier_api_server.control_plane.accounts.schemas import CreatedTenant, TenantView
from amplifier_api_server.control_plane.commands.output import console, show_json, show_rows
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.schemas import Name
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.lifecycle import TenantStatus
from amplifier_api_server.tenants.models import Tenant
from amplifier_api_server.tenants.repository.pages import Page

_COLUMNS = ("id", "name", "tier", "status", "limits", "created_at")
_ROWS = 200


async def show(at: Management, *, as_json: bool) -> None:
    found: list[Tenant] = []
    before: tuple[datetime, str] | None = None
    while page := await service.page(at, Page(_ROWS, before)):
        found += page
        before = (page[-1].created_at, page[-1].id)
    show_rows(_COLUMNS, [TenantView.of(one).model_dump(mode="json") for one in found], as_json=as_json)


async def create(at: Management, name: str, tier: str, limits: Mapping[str, Any] | None, *, as_json: bool) -> None:
    made = await service.create(at, "cli", name=checked_name(name), tier=tier, limits=limits)
    answer = CreatedTenant.of_new(made)
    if as_json:
        show_json(answer.model_dump(mode="json"))
        return
    console().print(f"tenant {answer.id} ({answer.tier}) was made\nadmin key, shown once: {answer.admin_key}")


async def set_status(at: Management, tenant_id: str, status: str) -> None:
    changed = await service.change(at, TenantId(tenant_id), "cli", status=TenantStatus(status))
    console().print(f"{changed.id} is {changed.status}")


async def delete(at: Management, tenant_id: str) -> None:
    await service.delete(at, TenantId(tenant_id), "cli")
    console().print(f"{tenant_id} is deleted")


def checked_name(name: str) -> str:
    """As the API would take it. Raises Invalid."""
    try:
        return TypeAdapter[str](Name).validate_python(name)
    except ValidationError as error:
        raise Invalid(f"the name {name!r} can't be taken: {error.errors()[0]['msg']}") from error
