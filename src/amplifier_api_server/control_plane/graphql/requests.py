"""Requests by HTTP, as GraphQL over HTTP has them: what is asked for, and in which form the answer is wanted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from amplifier_api_server.control_plane import json_bounds
from amplifier_api_server.control_plane.graphql.engine import Asked
from amplifier_api_server.tenants.errors import DomainError, Unauthenticated

JSON: Final = "application/json"
RESPONSE: Final = "application/graphql-response+json"
EVENTS: Final = "text/event-stream"
HTML: Final = "text/html"

_MAX_PARAMETERS: Final = 8
_MAX_NAME_CHARS: Final = 200


class WrongMediaType(DomainError):
    """A body of another type: a page of somebody else's can send those without asking (CSRF)."""

    code = "unsupported_media_type"
    status = 415


class Malformed(DomainError):
    """No request of GraphQL's at all."""

    code = "invalid_graphql_request"
    status = 400


class OnlyByPost(DomainError):
    """A mutation by GET."""

    code = "method_not_allowed"
    status = 405


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the Accept header asks for."""

    events: bool = False
    html: bool = False
    response: bool = False  # application/graphql-response+json

    @property
    def media_type(self) -> str:
        return RESPONSE if self.response else JSON


def wanted(headers: Iterable[tuple[bytes, bytes]]) -> Wanted:
    """By the types that are named; weights are left aside, since no client asks for two of these."""
    text = ",".join(value.decode("latin-1") for name, value in headers if name == b"accept").lower()
    types = {one.partition(";")[0].strip() for one in text.split(",")}
    return Wanted(events=EVENTS in types, html=HTML in types, response=RESPONSE in types)


def loads(raw: bytes) -> Any:
    """A request's JSON. Raises UnboundedJSON."""
    return json_bounds.loads(raw, max_values=json_bounds.REQUEST_VALUES)


def content_type(headers: Iterable[tuple[bytes, bytes]]) -> str:
    found = next((value for name, value in headers if name == b"content-type"), b"")
    return found.decode("latin-1").partition(";")[0].strip().lower()


def of_body(headers: Iterable[tuple[bytes, bytes]], raw: bytes) -> Asked:
    """Raises WrongMediaType, Malformed."""
    kind = content_type(headers)
    if kind != JSON:
        raise WrongMediaType(f"the body's type is {kind[:60] or 'not said'}; send JSON as {JSON}")
    try:
        found = loads(raw)
    except json_bounds.UnboundedJSON as error:
        raise Malformed(f"the body should be JSON: {error}") from error
    return of_members(found)


def of_query(query_string: bytes) -> Asked | None:
    """Of a GET; None where it asks for no document. Raises Malformed."""
    try:
        given = dict(parse_qsl(query_string.decode("ascii"), max_num_fields=_MAX_PARAMETERS, errors="strict"))
        if "query" not in given:
            return None
        members: dict[str, Any] = {"query": given["query"], "operationName": given.get("operationName") or None}
        for name in ("variables", "extensions"):
            if given.get(name):
                members[name] = loads(given[name].encode())
    except (ValueError, UnicodeError) as error:
        raise Malformed("the query string should hold query, and may hold variables, as JSON") from error
    return of_members(members)


def of_members(found: object) -> Asked:
    """A request's members, however they came. Raises Malformed."""
    if not isinstance(found, dict):
        raise Malformed("the request should be a JSON object with a query; several at once are not taken")
    query, variables, name = found.get("query"), found.get("variables"), found.get("operationName")
    if not isinstance(query, str) or not query.strip():
        raise Malformed("query should be a GraphQL document, as text")
    if variables is not None and not isinstance(variables, dict):
        raise Malformed("variables should be a JSON object")
    if name is not None and (not isinstance(name, str) or len(name) > _MAX_NAME_CHARS):
        raise Malformed("operationName should be the name of one of the document's operations")
    if not isinstance(found.get("extensions"), dict | None):
        raise Malformed("extensions should be a JSON object")
    return Asked(query, variables or {}, name or None)


def credential_in(payload: Mapping[str, Any], key_headers: Iterable[str]) -> str | None:
    """The credential of a `connection_init`; None where it has none.

    `{"token": ...}`, `{"Authorization": "Bearer ..."}`, `{"X-API-Key": ...}`. Raises Unauthenticated for two different ones,
    and for one that is no text.
    """
    names = {"token", "authorization", *(one.lower() for one in key_headers)}
    found = set()
    for name, value in payload.items():
        if name.lower() not in names:
            continue
        if not isinstance(value, str):
            raise Unauthenticated("a credential should be text")
        scheme, _, rest = value.strip().partition(" ")
        found.add(rest.strip() if scheme.lower() == "bearer" else value.strip())
    if len(found) > 1:
        raise Unauthenticated("connection_init carries two different credentials; send one")
    return found.pop() if found else None
