"""Profiles, tools and collections. They translate; `service` decides."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import ValidationError

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.catalog.schemas import (
    CollectionPage,
    CollectionView,
    ExecuteTool,
    InstallCollection,
    ProfileList,
    ProfileView,
    ToolList,
    ToolResult,
)
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import decode_cursor, encode_cursor
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.tenants.errors import Invalid

router = APIRouter(prefix="/v1", tags=["catalog"])

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]

_ZIP_TYPES = ("application/zip", "application/x-zip-compressed")
_INSTALL_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": InstallCollection.model_json_schema()},
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.get("/profiles", operation_id="listProfiles", responses=problems(401, 403, 429, 503))
async def list_profiles(principal: Caller, uses: Uses) -> ProfileList:
    """What a session can be made of: the bundled profiles and those of the tenant's collections."""
    found = await uses.catalogue.profiles(principal.tenant_id)
    return ProfileList(
        profiles=[
            ProfileView(name=one.name, source=one.source, description=one.description, version=one.version)
            for one in found
        ]
    )


@router.get("/tools", operation_id="listTools", responses=problems(401, 403, 429, 503))
async def list_tools(uses: Uses) -> ToolList:
    """Tools that can be run without a session."""
    return ToolList(tools=list(await uses.catalogue.tools()))


@router.post("/tools/{name}/execute", operation_id="executeTool", responses=problems(401, 403, 404, 422, 429, 503))
async def execute_tool(name: str, body: ExecuteTool, principal: Caller, uses: Uses) -> ToolResult:
    """Run a tool in a sandbox of the tenant, without a session; its files are gone afterwards."""
    return ToolResult.model_validate((await uses.catalogue.execute_tool(principal, name, body.input)).model_dump())


@router.get("/collections", operation_id="listCollections", responses=problems(401, 403, 422, 429))
async def list_collections(
    principal: Caller,
    uses: Uses,
    limit: Annotated[int | None, Query(ge=1)] = None,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
) -> CollectionPage:
    """The tenant's installed collections, by name."""
    size = uses.settings.api.page_limit(limit)
    after = decode_cursor(cursor, 1)[0] if cursor else ""
    found = await uses.catalogue.collections(principal.tenant_id, limit=size + 1, after=after)
    following = encode_cursor(found[size - 1].name) if len(found) > size else None
    return CollectionPage(collections=[CollectionView.of(one) for one in found[:size]], next_cursor=following)


@router.post(
    "/collections",
    status_code=201,
    operation_id="installCollection",
    openapi_extra=_INSTALL_BODY,
    responses=problems(401, 403, 409, 413, 415, 422, 429, 503),
)
async def install_collection(request: Request, principal: Caller, uses: Uses) -> CollectionView:
    """Install a collection from a zip (`application/zip`); one of the same name is replaced. Running sessions keep theirs."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if kind in _ZIP_TYPES:
        return CollectionView.of(await uses.catalogue.install(principal, body))
    try:
        source = InstallCollection.model_validate_json(body).source
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        found = [{"field": field, "message": first["msg"]}]
        raise Invalid(
            f"{field}: {first['msg']}; send JSON with a source, or a zip as application/zip", errors=found
        ) from error
    raise Invalid(
        f"collections can't be installed from {source[:200]!r}: this server takes archives as application/zip",
        code="source_not_supported",
        errors=[{"field": "source", "message": "send the collection as a zip"}],
    )


@router.delete(
    "/collections/{name}", status_code=204, operation_id="removeCollection", responses=problems(401, 403, 404, 429)
)
async def remove_collection(name: str, principal: Caller, uses: Uses) -> Response:
    """Remove a collection; sessions that were made with it keep it."""
    await uses.catalogue.remove(principal, name)
    return Response(status_code=204)
