"""The web policy's endpoints. They translate; `service` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.control_plane.web import service
from amplifier_api_server.control_plane.web.policy import policy_of
from amplifier_api_server.control_plane.web.schemas import SetWebPolicy, WebPolicyView

router = APIRouter(prefix="/v1/web-policy", tags=["web"], route_class=JsonRoute)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.get("", operation_id="getWebPolicy", responses=problems(401, 403, 429))
async def get_web_policy(principal: Caller, uses: Uses) -> WebPolicyView:
    """Which hosts your tenant's tools may fetch pages from, of those that the operator allows."""
    found = await service.find(uses, principal.tenant_id)
    return WebPolicyView.of(found, is_enabled=uses.settings.web.enabled)


@router.put("", operation_id="setWebPolicy", responses=problems(401, 403, 422, 429))
async def set_web_policy(body: SetWebPolicy, principal: Caller, uses: Uses) -> WebPolicyView:
    """Replace both lists. They narrow what the operator allows, and hold from the next fetch on."""
    changed = await service.replace(uses, principal.tenant_id, policy_of(body.allow, body.deny), principal)
    return WebPolicyView.of(changed, is_enabled=uses.settings.web.enabled)
