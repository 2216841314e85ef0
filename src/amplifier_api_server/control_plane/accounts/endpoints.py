"""The tenants' endpoints, for the operator. They translate; `service` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from amplifier_api_server.control_plane.accounts import service
from amplifier_api_server.control_plane.accounts.schemas import (
    CreatedTenant,
    CreateTenant,
    TenantPage,
    TenantView,
    UpdateTenant,
)
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.listing import NewestFirst
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import BY_CREATION, shown
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.lifecycle import TenantStatus

router = APIRouter(prefix="/v1/tenants", tags=["tenants"], route_class=JsonRoute)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.post("", status_code=201, operation_id="createTenant", responses=problems(401, 403, 422, 429))
async def create_tenant(body: CreateTenant, principal: Caller, uses: Uses, response: Response) -> CreatedTenant:
    """Create a tenant. The answer holds its first admin key, once."""
    made = await service.create(uses, principal, name=body.name, tier=body.tier, limits=body.limits)
    response.headers["Location"] = f"/v1/tenants/{made.row.id}"
    return CreatedTenant.of_new(made)


@router.get("", operation_id="listTenants", responses=problems(401, 403, 422, 429))
async def list_tenants(
    uses: Uses,
    asked: NewestFirst,
) -> TenantPage:
    """Tenants that are not deleted, newest first."""
    found = await service.page(uses, asked.page(BY_CREATION))
    views = shown(found[: asked.size], TenantView.of)
    return TenantPage(tenants=views, next_cursor=asked.following(found, BY_CREATION))


@router.get("/{tenant_id}", operation_id="getTenant", responses=problems(401, 403, 404, 429))
async def get_tenant(tenant_id: str, uses: Uses) -> TenantView:
    """One tenant."""
    return TenantView.of(await service.find(uses, TenantId(tenant_id)))


@router.patch("/{tenant_id}", operation_id="updateTenant", responses=problems(401, 403, 404, 422, 429))
async def update_tenant(tenant_id: str, body: UpdateTenant, principal: Caller, uses: Uses) -> TenantView:
    """Rename, move to another tier, suspend, restore, or set limits. A suspended tenant's keys answer 403."""
    changed = await service.change(
        uses,
        TenantId(tenant_id),
        principal,
        name=body.name,
        tier=body.tier,
        status=TenantStatus(body.status) if body.status is not None else None,
        limits=body.limits,
    )
    return TenantView.of(changed)


@router.delete("/{tenant_id}", status_code=204, operation_id="deleteTenant", responses=problems(401, 403, 404, 429))
async def delete_tenant(tenant_id: str, principal: Caller, uses: Uses) -> Response:
    """Delete a tenant: its keys are revoked for good, and what it runs ends."""
    await service.delete(uses, TenantId(tenant_id), principal)
    return Response(status_code=204)
