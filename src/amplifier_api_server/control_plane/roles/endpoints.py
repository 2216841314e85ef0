"""The roles' endpoints. They translate; `service` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.listing import OldestFirst
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import shown
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.roles import service
from amplifier_api_server.control_plane.roles.schemas import CreateRole, RolePage, RoleView, UpdateRole
from amplifier_api_server.control_plane.services import Services, caller, services

router = APIRouter(prefix="/v1/roles", tags=["roles"], route_class=JsonRoute)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.post("", status_code=201, operation_id="createRole", responses=problems(401, 403, 409, 422, 429))
async def create_role(body: CreateRole, principal: Caller, uses: Uses, response: Response) -> RoleView:
    """Create a role of your tenant's own. It can hold no more than you do."""
    made = await service.create(uses, principal, body.name, body.permissions, body.description)
    response.headers["Location"] = f"/v1/roles/{made.name}"
    return RoleView.of(made)


@router.get("", operation_id="listRoles", responses=problems(401, 403, 422, 429))
async def list_roles(principal: Caller, uses: Uses, asked: OldestFirst) -> RolePage:
    """The roles that can be given: the built-in ones, then your tenant's own."""
    found = service.PLACE.part_of(await service.all_of(uses, principal.tenant_id), asked.page(service.PLACE))
    views = shown(found[: asked.size], RoleView.of)
    return RolePage(roles=views, next_cursor=asked.following(found, service.PLACE))


@router.get("/{name}", operation_id="getRole", responses=problems(401, 403, 404, 429))
async def get_role(name: str, principal: Caller, uses: Uses) -> RoleView:
    """One role."""
    return RoleView.of(await service.find(uses, principal.tenant_id, name))


@router.patch("/{name}", operation_id="updateRole", responses=problems(401, 403, 404, 409, 422, 429))
async def update_role(name: str, body: UpdateRole, principal: Caller, uses: Uses) -> RoleView:
    """Change what a role holds: that is so for everybody who has it, from their next request on."""
    return RoleView.of(
        await service.change(uses, principal, name, grants=body.permissions, description=body.description)
    )


@router.delete("/{name}", status_code=204, operation_id="deleteRole", responses=problems(401, 403, 404, 409, 429))
async def delete_role(name: str, principal: Caller, uses: Uses) -> Response:
    """Remove a role that nobody has any more."""
    await service.remove(uses, principal, name)
    return Response(status_code=204)
