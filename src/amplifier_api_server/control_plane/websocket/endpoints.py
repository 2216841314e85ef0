"""`GET /asyncapi.json`: what `/ws` takes and says, as a document that generators read."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from amplifier_api_server.control_plane.services import Services, services
from amplifier_api_server.control_plane.websocket.asyncapi import document

router = APIRouter(tags=["operations"])


@router.get("/asyncapi.json", operation_id="asyncapi")
async def asyncapi(uses: Annotated[Services, Depends(services)]) -> dict[str, Any]:
    """The AsyncAPI 3.0 document of the WebSocket door."""
    return document(uses.settings)
