"""The models' endpoint. It translates; `model_gateway.providers` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.models.schemas import ModelList, ModelView
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.services import Services, caller, services

router = APIRouter(prefix="/v1/models", tags=["models"])

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.get("", operation_id="listModels", responses=problems(401, 403, 429))
async def list_models(principal: Caller, uses: Uses) -> ModelList:
    """The models that your tenant's tier may ask for, what is known of them, and what they cost."""
    found = await uses.gateway.providers.models(tenant_id=principal.tenant_id, tier=principal.tier)
    return ModelList(data=[ModelView.of(one) for one in found])
