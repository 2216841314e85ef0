"""Who am I. It translates; and it is not limited, so that whoever was refused may ask as whom."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.me import service
from amplifier_api_server.control_plane.me.schemas import MeView
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.services import Services, caller, services

router = APIRouter(prefix="/v1/me", tags=["members"])


@router.get("", operation_id="getMe", responses=problems(401, 403))
async def get_me(
    principal: Annotated[Principal, Depends(caller)], uses: Annotated[Services, Depends(services)]
) -> MeView:
    """Who you are here: your tenant, your member, what your credential holds and until when."""
    return MeView.of(await service.who(uses, principal))
