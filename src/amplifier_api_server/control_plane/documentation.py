"""The API's documentation as a page. Its script and style come from this server, never from somebody else's: it works without
the internet, and nobody learns who reads it.
"""

from __future__ import annotations

import asyncio
from functools import cache
from importlib import resources
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html

from amplifier_api_server.control_plane.errors import NO_SUCH_PATH, encode
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.tenants.errors import NotFound

router = APIRouter(include_in_schema=False)

_ASSETS: Final = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
# The page starts Swagger UI by a script within itself, and Swagger UI styles by attributes: hence 'unsafe-inline'.
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_DAY_SECONDS: Final = 86_400


@router.get("/openapi.json")
async def document(request: Request) -> Response:
    """The API's description, written down once, in a thread: it takes a quarter of a second, in which others go on."""
    state = request.app.state
    if not hasattr(state, "written_document"):
        state.written_document = asyncio.create_task(asyncio.to_thread(lambda: encode(request.app.openapi())))
    return Response(await asyncio.shield(state.written_document), media_type="application/json")


@router.get("/docs")
async def documentation() -> Response:
    """Swagger UI over /openapi.json."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Amplifier API",
        swagger_js_url="/docs/assets/swagger-ui-bundle.js",
        swagger_css_url="/docs/assets/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    page.headers["content-security-policy"] = _POLICY
    return page


@router.get("/docs/assets/{name}", responses=problems(404))
async def asset(name: str) -> Response:
    """One of the page's files."""
    if name not in _ASSETS:
        raise NotFound(NO_SUCH_PATH, code="no_such_path")
    return Response(
        _content(name), media_type=_ASSETS[name], headers={"cache-control": f"public, max-age={_DAY_SECONDS}"}
    )


@cache
def _content(name: str) -> bytes:
    return resources.files("fastapi_offline").joinpath("static", name).read_bytes()
