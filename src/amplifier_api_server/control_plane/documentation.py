"""What the server says about itself to anybody: its first page, the API's reference, its documentation, a page of each code.

Everything comes from this server, never from somebody else's: it works without the internet, and nobody learns who reads it.
All of it is made once and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html

from amplifier_api_server.control_plane.errors import NO_SUCH_PATH, encode
from amplifier_api_server.control_plane.html_page import HEADERS, page
from amplifier_api_server.control_plane.kept_answers import KeptAnswer, KeptAnswers
from amplifier_api_server.control_plane.logins.reading import wants_page
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.problem_codes import CODES
from amplifier_api_server.control_plane.written_docs import NAMES, code_page, docs_page
from amplifier_api_server.tenants.errors import NotFound

router = APIRouter(include_in_schema=False)

_ASSETS: Final = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
# The page starts Swagger UI by a script within itself, and Swagger UI styles by attributes: hence 'unsafe-inline'.
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_DAY_SECONDS: Final = 86_400
_HTML: Final = "text/html"
_LINKS: Final = {
    "documentation": ("/docs", "The API's reference, to read and to try"),
    "introduction": ("/docs/introduction", "How to call it: credentials, errors, pages, limits, streams, versions"),
    "errors": ("/errors", "What each error code means, and what to do"),
    "openapi": ("/openapi.json", "The REST API as an OpenAPI document, to generate clients from"),
    "asyncapi": ("/asyncapi.json", "The WebSocket door as an AsyncAPI document"),
    "graphql": ("/graphql", "GraphQL, with a page to try it in"),
    "health": ("/health", "Whether the process is alive"),
    "ready": ("/ready", "Whether it can serve"),
}


def kept_answers(request: Request) -> KeptAnswers:
    """This application's, as a FastAPI dependency."""
    state = request.app.state
    if not hasattr(state, "kept_answers"):
        state.kept_answers = KeptAnswers()
    found: KeptAnswers = state.kept_answers
    return found


Kept = Annotated[KeptAnswers, Depends(kept_answers)]


async def answer_of(kept: KeptAnswers, request: Request, make: Callable[[], KeptAnswer], *more: str) -> Response:
    """What `make` makes, which is one thing for each path and `more`."""
    found = await kept.get((request.scope["path"], *more), make)
    return found.answer(request.scope["headers"])


@router.get("/")
async def index(request: Request, kept: Kept) -> Response:
    """Where everything else is: a page for a browser, JSON for others."""
    if wants_page(request):
        return await answer_of(kept, request, _index_page, _HTML)
    return await answer_of(kept, request, _index_document)


def _index_page() -> KeptAnswer:
    rows = "".join(f'<dt><a href="{path}">{path}</a></dt><dd>{about}</dd>' for path, about in _LINKS.values())
    return _page(page("Amplifier API", f"<p>The hosted API for Amplifier agents.</p>\n<dl>{rows}</dl>"), vary="accept")


def _index_document() -> KeptAnswer:
    links = {f"{name}_url": path for name, (path, _) in _LINKS.items()}
    return json_answer({"name": "Amplifier API", "version": "v1", **links}, vary="accept")


@router.get("/openapi.json")
async def document(request: Request, kept: Kept) -> Response:
    """The API's description; to write it takes a quarter of a second."""
    return await answer_of(kept, request, lambda: json_answer(request.app.openapi()))


@router.get("/docs")
async def documentation(request: Request, kept: Kept) -> Response:
    """Swagger UI over /openapi.json, which begins with the introduction."""
    return await answer_of(kept, request, _reference)


def _reference() -> KeptAnswer:
    made = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Amplifier API",
        swagger_js_url="/docs/assets/swagger-ui-bundle.js",
        swagger_css_url="/docs/assets/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    return KeptAnswer(bytes(made.body), _HTML, {"content-security-policy": _POLICY})


@router.get("/docs/assets/{name}", responses=problems(404))
async def asset(name: str, request: Request, kept: Kept) -> Response:
    """One of the page's files."""
    if name not in _ASSETS:
        raise NotFound(NO_SUCH_PATH, code="no_such_path")
    return await answer_of(kept, request, lambda: _asset(name))


def _asset(name: str) -> KeptAnswer:
    body = resources.files("fastapi_offline").joinpath("static", name).read_bytes()
    return KeptAnswer(body, _ASSETS[name], cache_control=f"public, max-age={_DAY_SECONDS}")


@router.get("/docs/{name}", responses=problems(404))
async def written(name: str, request: Request, kept: Kept) -> Response:
    """A page of the documentation."""
    if name not in NAMES:
        raise NotFound(f"there is no page {name[:80]!r}; /docs/introduction lists them", code="no_such_path")
    return await answer_of(kept, request, lambda: _page(docs_page(name)))


@router.get("/errors")
async def all_codes(request: Request, kept: Kept) -> Response:
    """What errors look like, and all codes."""
    return await answer_of(kept, request, lambda: _page(docs_page("errors")))


@router.get("/errors/{code}", responses=problems(404))
async def one_code(code: str, request: Request, kept: Kept) -> Response:
    """The page about a code, which is the `type` of its problems."""
    if code not in CODES:
        raise NotFound(f"there is no code {code[:80]!r}; /errors lists them", code="no_such_path")
    return await answer_of(kept, request, lambda: _page(code_page(code)))


def _page(html: str, **headers: str) -> KeptAnswer:
    return KeptAnswer(html.encode("utf-8"), _HTML, {**HEADERS, **headers})


def json_answer(body: Any, **headers: str) -> KeptAnswer:
    """A JSON document."""
    return KeptAnswer(encode(body), "application/json", headers)
