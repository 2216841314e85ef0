"""Reading what browsers and devices send to the logins' endpoints: queries, forms, and which of two shapes they want back."""

from __future__ import annotations

from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel

from amplifier_api_server.control_plane.body_types import FORM, media_type_of
from amplifier_api_server.control_plane.request_json import parsed, validated
from amplifier_api_server.tenants.errors import Malformed, TooLarge

_MAX_FIELDS: Final = 30
_MAX_BODY_BYTES: Final = 16 * 1024
B = TypeVar("B", bound=BaseModel)


def wants_page(request: Request) -> bool:
    """Whether a person's browser asks: it names HTML, and names it before JSON."""
    accept = request.headers.get("accept", "")
    at = accept.find("text/html")
    json_at = accept.find("json")
    return at >= 0 and (json_at < 0 or at < json_at)


def query_of(request: Request) -> dict[str, str]:
    """The query, each name once. Raises Malformed: of two states, which was checked could not be told."""
    return _once(request.scope.get("query_string", b"").decode("latin-1"))


async def body_of(request: Request, kind: type[B]) -> B:
    """A small body: a form, or JSON where the route takes that. Raises Malformed, TooLarge."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MAX_BODY_BYTES:
            raise TooLarge(f"the body is longer than {_MAX_BODY_BYTES} bytes", limit_bytes=_MAX_BODY_BYTES)
    given: Any
    if media_type_of(request.scope["headers"]) == FORM:
        given = _once(raw.decode("utf-8", "replace"))
    else:
        given = parsed(bytes(raw) or b"{}")
    return validated(kind, given)


def body_docs(kind: type[BaseModel], *, json: bool = True) -> dict[str, Any]:
    """The `requestBody` of an endpoint that reads its body by `body_of`.

    JSON alone where it is taken: of two media types, generators of clients make two bodies, and some of them no client.
    """
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    is_required = any(field.is_required() for field in kind.model_fields.values())
    content = {"application/json" if json else FORM: {"schema": schema}}
    return {"requestBody": {"required": is_required, "content": content}}


def _once(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise Malformed(f"more than {_MAX_FIELDS} fields") from error
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("a field is there twice")
    return found
