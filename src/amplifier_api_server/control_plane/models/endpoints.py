"""The models' endpoint. It translates; `model_gateway.providers` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.listing import OldestFirst
from amplifier_api_server.control_plane.models.schemas import ModelPage, ModelView
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import BY_NAME
from amplifier_api_server.control_plane.services import Services, caller, services

router = APIRouter(prefix="/v1/models", tags=["models"])

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.get("", operation_id="listModels", responses=problems(401, 403, 422, 429))
async def list_models(principal: Caller, uses: Uses, asked: OldestFirst) -> ModelPage:
    """The models that your tenant's tier may ask for, what is known of them, and what they cost."""
    known = await uses.gateway.providers.models(tenant_id=principal.tenant_id, tier=principal.tier)
    found = BY_NAME.part_of(known, asked.page(BY_NAME))
    views = [ModelView.of(one) for one in found[: asked.size]]
    return ModelPage(models=views, next_cursor=asked.following(found, BY_NAME))
