"""The JSON of a request: one reading of it, whichever door it came by.

Owns what a request's JSON may be, and how what it may not be is refused. Refuses to know what its members mean. Invariant:
what `parsed` returns can be stored and sent on as it is: its numbers are finite, its whole numbers have at most 64 bits, and
its texts are Unicode.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from amplifier_api_server.control_plane import wrong_fields
from amplifier_api_server.control_plane.errors import NotJson
from amplifier_api_server.control_plane.json_bounds import REQUEST_VALUES, UnboundedJSON, loads, loads_unwritten
from amplifier_api_server.tenants.errors import Malformed

_BOM: Final = b"\xef\xbb\xbf"  # which a reader may pass over (RFC 8259, 8.1)
_LONG_NUMBER: Final = re.compile(rb"\d{19}")  # the shortest one that may have more than 64 bits
_LEAST, _MOST = -(2**63), 2**64 - 1
_MAX_PLACE_CHARS: Final = 200
B = TypeVar("B", bound=BaseModel)


def parsed(raw: bytes, *, max_values: int = REQUEST_VALUES, whole: str = "the body") -> Any:
    """The values in `raw`. Raises NotJson, or Malformed with the place of a number that is too long."""
    raw = raw.removeprefix(_BOM)
    found = _loaded(loads, raw, max_values, whole)
    if _LONG_NUMBER.search(raw):  # `loads` rounds them
        _demand_short_integers(raw, whole)
    return found


def parsed_unwritten(raw: bytes, *, max_values: int) -> Any:
    """The same of a large body, each part of which is written as JSON later; what is too long for 64 bits is rounded."""
    return _loaded(loads_unwritten, raw.removeprefix(_BOM), max_values, "the body")


def _loaded(load: Callable[..., Any], raw: bytes, max_values: int, whole: str) -> Any:
    try:
        return load(raw, max_values=max_values)
    except UnboundedJSON as error:
        raise NotJson(f"{whole} can't be read: {error}") from error


def validated(kind: type[B], given: Any, *, advice: str = "") -> B:
    """What was sent, as `kind` has it. Raises Malformed, which names every wrong field."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        refused = error.errors(include_url=False, include_input=False, include_context=False)
        found = wrong_fields.told(refused)
        raise Malformed(wrong_fields.detail(found, len(refused)) + advice, errors=found) from error


def _demand_short_integers(raw: bytes, whole: str) -> None:
    try:
        exact = from_json(raw)
    except ValueError as error:  # it takes fewer levels than `loads`
        raise NotJson(f"{whole} can't be read: it is nested too deeply") from error
    demand_plain_numbers(exact)


def demand_plain_numbers(value: Any) -> None:
    """Raises Malformed for a number that can't be stored, naming its place."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        place, one = waiting.pop()
        if isinstance(one, int) and not _LEAST <= one <= _MOST:
            raise _wrong(place, "is a whole number of more than 64 bits; send it as text")
        if isinstance(one, float) and not math.isfinite(one):
            raise _wrong(place, "is no finite number, which JSON does not have")
        if isinstance(one, dict):
            waiting += ((f"{place}.{name}"[:_MAX_PLACE_CHARS], each) for name, each in one.items())
        elif isinstance(one, list):
            waiting += ((f"{place}.{number}"[:_MAX_PLACE_CHARS], each) for number, each in enumerate(one))


def _wrong(place: str, message: str) -> Malformed:
    field = place.removeprefix(".") or "body"
    return Malformed(f"{field}: {message}", errors=[{"field": field, "message": message}])


class _JsonRequest(Request):
    async def json(self) -> Any:
        return parsed(await self.body())


class JsonRoute(APIRoute):
    """A route of the framework whose body is read by `parsed`."""

    request: type[Request] = _JsonRequest

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def reading(request: Request) -> Response:
            return await handler(self.request(request.scope, request.receive))

        return reading
