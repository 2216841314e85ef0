"""The limits endpoint. It translates, and is not limited itself: whoever was refused may ask why."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.limits.explanation import explain
from amplifier_api_server.control_plane.limits.schemas import LimitsExplained
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.services import Services, caller, services

router = APIRouter(prefix="/v1/limits", tags=["limits"])


@router.get("", operation_id="getLimits", responses=problems(401, 403))
async def get_limits(
    principal: Annotated[Principal, Depends(caller)], uses: Annotated[Services, Depends(services)]
) -> LimitsExplained:
    """Each of your limits, what is used and held of it, when it frees, and why you were refused last."""
    return await explain(uses.admission, principal)
