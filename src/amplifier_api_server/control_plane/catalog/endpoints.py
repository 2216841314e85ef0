"""Profiles, tools and collections. They translate; the services decide."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.body_types import ZIPS, media_type_of
from amplifier_api_server.control_plane.catalog.installations import UPLOAD, Order
from amplifier_api_server.control_plane.catalog.schemas import (
    NAME_PATTERN,
    CollectionPage,
    CollectionView,
    ExecuteTool,
    InstallationPage,
    InstallationView,
    InstallCollection,
    ProfilePage,
    ProfilePlan,
    ProfileView,
    SetProfile,
    StoredProfile,
    ToolPage,
    ToolResult,
)
from amplifier_api_server.control_plane.listing import NewestFirst
from amplifier_api_server.control_plane.listing import OldestFirst as ByName
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import BY_CREATION, BY_NAME, shown
from amplifier_api_server.control_plane.request_json import JsonRoute, parsed, validated
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.tenants.errors import Invalid, TooLarge
from amplifier_api_server.tenants.ids import InstallationId

router = APIRouter(prefix="/v1", tags=["catalog"], route_class=JsonRoute)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]

_INSTALLATION = "/v1/collections/installations/"
_INSTALL_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": InstallCollection.model_json_schema()},
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.get("/profiles", operation_id="listProfiles", responses=problems(401, 403, 422, 429, 503))
async def list_profiles(principal: Caller, uses: Uses, asked: ByName) -> ProfilePage:
    """What a session can be made of: the bundled profiles, those of the tenant's collections, and its own."""
    found = BY_NAME.part_of(await uses.catalogue.profiles(principal.tenant_id), asked.page(BY_NAME))
    views = [ProfileView.model_validate(one, from_attributes=True) for one in found[: asked.size]]
    return ProfilePage(profiles=views, next_cursor=asked.following(found, BY_NAME))


@router.post(
    "/profiles",
    status_code=201,
    operation_id="setProfile",
    responses={200: {"model": StoredProfile}, **problems(401, 403, 409, 413, 422, 429, 503)},
)
async def set_profile(body: SetProfile, response: Response, principal: Caller, uses: Uses) -> StoredProfile:
    """Write a profile of your own: a new version (201), or the current one where it has this content (200)."""
    written = await uses.profiles.write(principal, body.name, body.content)
    response.status_code = 201 if written.is_new else 200
    response.headers["Location"] = f"/v1/profiles/{written.row.name}"
    return StoredProfile.of_row(written.row, written.warnings)


@router.get("/profiles/{name}", operation_id="getProfile", responses=problems(401, 403, 404, 422, 429, 503))
async def get_profile(
    name: str, principal: Caller, uses: Uses, version: Annotated[int | None, Query(ge=1, lt=2**31)] = None
) -> ProfilePlan:
    """A profile, compiled as a session of it would be made now; of your own also an earlier `version`."""
    if ":" not in name:
        row = await uses.profiles.get(principal.tenant_id, name, version)
        return ProfilePlan.of_own(row, await uses.profiles.compiled(principal, row))
    if version is not None:
        raise Invalid(
            "version: only profiles of your own have versions here",
            errors=[{"field": "version", "message": "leave it out"}],
        )
    choice = await uses.catalogue.choose(principal.tenant_id, name)
    return ProfilePlan.of("collection" if choice.images else "bundled", await uses.catalogue.compiled(principal, name))


@router.delete(
    "/profiles/{name}", status_code=204, operation_id="deleteProfile", responses=problems(401, 403, 404, 409, 429)
)
async def delete_profile(name: str, principal: Caller, uses: Uses) -> Response:
    """Remove a profile of your own; sessions that were made with it keep it."""
    await uses.profiles.remove(principal, name)
    return Response(status_code=204)


@router.get("/tools", operation_id="listTools", responses=problems(401, 403, 422, 429, 503))
async def list_tools(uses: Uses, asked: ByName) -> ToolPage:
    """Tools that can be run without a session."""
    found = BY_NAME.part_of(await uses.catalogue.tools(), asked.page(BY_NAME))
    return ToolPage(tools=found[: asked.size], next_cursor=asked.following(found, BY_NAME))


@router.post("/tools/{name}/execute", operation_id="executeTool", responses=problems(401, 403, 404, 422, 429, 503))
async def execute_tool(name: str, body: ExecuteTool, principal: Caller, uses: Uses) -> ToolResult:
    """Run a tool in a sandbox of the tenant, without a session; its files are gone afterwards."""
    return ToolResult.model_validate((await uses.catalogue.execute_tool(principal, name, body.input)).model_dump())


@router.get("/collections", operation_id="listCollections", responses=problems(401, 403, 422, 429))
async def list_collections(
    principal: Caller,
    uses: Uses,
    asked: ByName,
) -> CollectionPage:
    """The tenant's installed collections, by name."""
    found = await uses.catalogue.collections(principal.tenant_id, asked.page(BY_NAME))
    views = shown(found[: asked.size], CollectionView.of)
    return CollectionPage(collections=views, next_cursor=asked.following(found, BY_NAME))


@router.post(
    "/collections",
    status_code=201,
    operation_id="installCollection",
    openapi_extra=_INSTALL_BODY,
    responses={202: {"model": InstallationView}, **problems(401, 403, 409, 413, 415, 422, 429, 503)},
)
async def install_collection(
    request: Request,
    response: Response,
    principal: Caller,
    uses: Uses,
    modules: Annotated[Literal["own", "source"] | None, Query(description="of a zip; in JSON it is a field")] = None,
    name: Annotated[str | None, Query(pattern=NAME_PATTERN, description="of a zip; in JSON it is a field")] = None,
    skip_missing: Annotated[bool, Query(description="of a zip; in JSON it is a field")] = False,
) -> CollectionView | InstallationView:
    """Install a collection from its address (JSON) or a zip (`application/zip`); one of the same name is replaced.

    201 with the collection where that was quick; else 202 with the job that goes on, to be asked for at `Location`. Sessions
    that are there keep what they were made with.
    """
    body = await request.body()
    chosen = uses.settings.collections.modules
    if media_type_of(request.scope["headers"]) in ZIPS:
        order = Order(UPLOAD, modules=modules or chosen, name=name, skip_missing=skip_missing)
        job = await uses.installations.begin(principal, order, body)
    else:
        asked = _asked(body, uses.settings.api.max_body)
        order = Order.of_address(
            asked.source, modules=asked.modules or chosen, name=asked.name, skip_missing=asked.skip_missing
        )
        job = await uses.installations.begin(principal, order)
    installed = await uses.installations.wait(job)
    if installed is not None:
        response.headers["Location"] = f"/v1/collections/{installed.name}"
        return CollectionView.of(installed, job=job.id, warnings=job.warnings)
    response.status_code = 202
    response.headers["Location"] = _INSTALLATION + job.id
    return InstallationView.of(await uses.installations.get(principal.tenant_id, job.id))


def _asked(body: bytes, limit: int) -> InstallCollection:
    if len(body) > limit:
        raise TooLarge(f"the body has {len(body)} bytes; at most {limit} are taken of JSON", limit_bytes=limit)
    advice = "; send JSON with a source, or a zip as application/zip"
    return validated(InstallCollection, parsed(body), advice=advice)


@router.get("/collections/installations", operation_id="listInstallations", responses=problems(401, 403, 422, 429))
async def list_installations(principal: Caller, uses: Uses, asked: NewestFirst) -> InstallationPage:
    """The tenant's installations, newest first: those that go on, and how the last ones ended."""
    found = await uses.installations.page(principal.tenant_id, asked.page(BY_CREATION))
    views = shown(found[: asked.size], InstallationView.of)
    return InstallationPage(installations=views, next_cursor=asked.following(found, BY_CREATION))


@router.get(
    "/collections/installations/{installation_id}",
    operation_id="getInstallation",
    responses=problems(401, 403, 404, 429),
)
async def get_installation(installation_id: str, principal: Caller, uses: Uses) -> InstallationView:
    """How far an installation is, or how it ended."""
    return InstallationView.of(await uses.installations.get(principal.tenant_id, InstallationId(installation_id)))


@router.delete(
    "/collections/installations/{installation_id}",
    status_code=204,
    operation_id="cancelInstallation",
    responses=problems(401, 403, 404, 429),
)
async def cancel_installation(installation_id: str, principal: Caller, uses: Uses) -> Response:
    """End an installation; nothing of it is left. Nothing happens to one that has ended."""
    await uses.installations.cancel(principal, InstallationId(installation_id))
    return Response(status_code=204)


@router.get("/collections/{name}", operation_id="getCollection", responses=problems(401, 403, 404, 429))
async def get_collection(name: str, principal: Caller, uses: Uses) -> CollectionView:
    """An installed collection, with all that it is made of."""
    return CollectionView.of(await uses.catalogue.collection(principal.tenant_id, name))


@router.delete(
    "/collections/{name}", status_code=204, operation_id="deleteCollection", responses=problems(401, 403, 404, 429)
)
async def delete_collection(name: str, principal: Caller, uses: Uses) -> Response:
    """Remove a collection; sessions that were made with it keep it."""
    await uses.catalogue.remove(principal, name)
    return Response(status_code=204)
