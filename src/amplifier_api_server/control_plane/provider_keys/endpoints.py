"""The provider keys' endpoints. They translate; `service` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.listing import OldestFirst
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import BY_PROVIDER, shown
from amplifier_api_server.control_plane.provider_keys.schemas import (
    ProviderKeyPage,
    ProviderKeyView,
    SetProviderKey,
    TakingProvider,
)
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.services import Services, caller, services

router = APIRouter(prefix="/v1/provider-keys", tags=["provider keys"], route_class=JsonRoute)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.post("", status_code=201, operation_id="setProviderKey", responses=problems(401, 403, 409, 422, 429))
async def set_provider_key(body: SetProviderKey, principal: Caller, uses: Uses, response: Response) -> ProviderKeyView:
    """Set your tenant's own key for a model provider, in the place of the one that it has. Holds from the next call on."""
    row = await uses.provider_keys.put(principal, body.provider, body.api_key)
    response.headers["Location"] = f"/v1/provider-keys/{row.provider}"
    return ProviderKeyView.of(row)


@router.get("", operation_id="listProviderKeys", responses=problems(401, 403, 422, 429))
async def list_provider_keys(principal: Caller, uses: Uses, asked: OldestFirst) -> ProviderKeyPage:
    """Your tenant's own keys, by provider: that they are there, not what they are."""
    found = BY_PROVIDER.part_of(await uses.provider_keys.all_of(principal.tenant_id), asked.page(BY_PROVIDER))
    taking = [
        TakingProvider(provider=one.name, is_required=one.tenant_keys == "required")
        for one in uses.provider_keys.taking()
    ]
    views = shown(
        found[: asked.size], lambda one: ProviderKeyView.of(one, is_readable=uses.provider_keys.is_readable(one))
    )
    following = asked.following(found, BY_PROVIDER)
    return ProviderKeyPage(provider_keys=views, providers=taking, next_cursor=following)


@router.get("/{provider}", operation_id="getProviderKey", responses=problems(401, 403, 404, 429))
async def get_provider_key(provider: str, principal: Caller, uses: Uses) -> ProviderKeyView:
    """Your tenant's own key for a provider: that it is there, not what it is."""
    row = await uses.provider_keys.find(principal.tenant_id, provider)
    return ProviderKeyView.of(row, is_readable=uses.provider_keys.is_readable(row))


@router.delete("/{provider}", status_code=204, operation_id="deleteProviderKey", responses=problems(401, 403, 404, 429))
async def delete_provider_key(provider: str, principal: Caller, uses: Uses) -> Response:
    """Forget a key. Calls go out with the operator's from then on, where the operator allows that."""
    await uses.provider_keys.remove(principal, provider)
    return Response(status_code=204)
