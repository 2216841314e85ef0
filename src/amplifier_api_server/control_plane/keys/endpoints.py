"""The keys' endpoints. They translate; `service` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Response

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.keys import service
from amplifier_api_server.control_plane.keys.schemas import CreatedKey, CreateKey, KeyPage, KeyView, RotateKey
from amplifier_api_server.control_plane.listing import NewestFirst
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import BY_CREATION, shown
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.tenants.ids import KeyId

router = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=JsonRoute)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.post("", status_code=201, operation_id="createKey", responses=problems(401, 403, 422, 429))
async def create_key(body: CreateKey, principal: Caller, uses: Uses, response: Response) -> CreatedKey:
    """Create a key of your tenant. The answer holds it, once."""
    made = await service.create(uses, principal.tenant_id, body.wish(), principal)
    response.headers["Location"] = f"/v1/keys/{made.row.id}"
    return CreatedKey.of_new(made)


@router.get("", operation_id="listKeys", responses=problems(401, 403, 422, 429))
async def list_keys(
    principal: Caller,
    uses: Uses,
    asked: NewestFirst,
) -> KeyPage:
    """Your tenant's keys that are not revoked, newest first."""
    found = await service.page(uses, principal.tenant_id, asked.page(BY_CREATION))
    views = shown(found[: asked.size], KeyView.of)
    return KeyPage(keys=views, next_cursor=asked.following(found, BY_CREATION))


@router.get("/{key_id}", operation_id="getKey", responses=problems(401, 403, 404, 429))
async def get_key(key_id: str, principal: Caller, uses: Uses) -> KeyView:
    """One key."""
    return KeyView.of(await service.find(uses, principal.tenant_id, KeyId(key_id)))


@router.delete("/{key_id}", status_code=204, operation_id="revokeKey", responses=problems(401, 403, 404, 409, 429))
async def revoke_key(key_id: str, principal: Caller, uses: Uses) -> Response:
    """Revoke a key: it is refused from now on, and streams that were opened with it end."""
    await service.revoke(uses, principal.tenant_id, KeyId(key_id), principal)
    return Response(status_code=204)


@router.post(
    "/{key_id}/rotate", status_code=201, operation_id="rotateKey", responses=problems(401, 403, 404, 409, 422, 429)
)
async def rotate_key(
    key_id: str, principal: Caller, uses: Uses, response: Response, body: Annotated[RotateKey | None, Body()] = None
) -> CreatedKey:
    """Replace a key by a new one of the same member; the old one works on for `overlap` seconds."""
    overlap_seconds = (body or RotateKey()).overlap
    made = await service.rotate(uses, principal.tenant_id, KeyId(key_id), principal, overlap_seconds=overlap_seconds)
    response.headers["Location"] = f"/v1/keys/{made.row.id}"
    return CreatedKey.of_new(made)
