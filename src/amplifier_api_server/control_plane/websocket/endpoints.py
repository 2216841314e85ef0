"""`GET /asyncapi.json`: what `/ws` takes and says, as a document that generators read."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from amplifier_api_server.control_plane.documentation import Kept, answer_of, json_answer
from amplifier_api_server.control_plane.services import Services, services
from amplifier_api_server.control_plane.websocket.asyncapi import document

router = APIRouter(tags=["operations"])


@router.get("/asyncapi.json", operation_id="asyncapi", response_model=dict[str, Any])
async def asyncapi(request: Request, kept: Kept, uses: Annotated[Services, Depends(services)]) -> Response:
    """The AsyncAPI 3.0 document of the WebSocket door."""
    return await answer_of(kept, request, lambda: json_answer(document(uses.settings)))
