"""Requests by HTTP, as GraphQL over HTTP has them: what is asked for, and in which form the answer is wanted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from amplifier_api_server.control_plane.errors import BadRequest
from amplifier_api_server.control_plane.graphql.engine import Asked
from amplifier_api_server.control_plane.media_types import preferred
from amplifier_api_server.control_plane.request_json import parsed
from amplifier_api_server.tenants.errors import Unauthenticated

JSON: Final = "application/json"
RESPONSE: Final = "application/graphql-response+json"
EVENTS: Final = "text/event-stream"
HTML: Final = "text/html"

_MAX_PARAMETERS: Final = 8
_MAX_NAME_CHARS: Final = 200


class Malformed(BadRequest):
    """No request of GraphQL's at all."""

    code = "invalid_graphql_request"


class Untaken(BadRequest):
    """A request of a kind that some clients send and this door does not take. It is answered with `errors`: what a client
    does about it, it does by those.
    """

    answered = 400  # the answer's status


class Batch(Untaken):
    """Several documents at once."""

    code = "batch_not_supported"


class PersistedQuery(Untaken):
    """A document that is sent as its hash. The message and the answer's status are those of Apollo's automatic persisted
    queries: by them a client sends the whole document instead.
    """

    code = "persisted_query_not_supported"
    answered = 200


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the Accept header asks for."""

    media_type: str = JSON  # of an answer as JSON
    events: bool = False  # one answer too is wanted as a stream of events
    streams: bool = False  # a stream of events is taken where there is no other way
    html: bool = False

    @property
    def response(self) -> bool:
        return self.media_type == RESPONSE


def wanted(headers: Iterable[tuple[bytes, bytes]]) -> Wanted:
    """By weights. A client that accepts nothing that we have is answered as JSON, by which it learns what went wrong."""
    found = preferred(headers, (JSON, RESPONSE, EVENTS, HTML))
    first = next((one for one in found if one != HTML), None)
    as_json = next((one for one in found if one in {JSON, RESPONSE}), JSON)
    return Wanted(as_json, events=first == EVENTS, streams=EVENTS in found, html=found[:1] == [HTML])


def of_body(raw: bytes) -> Asked:
    """Raises Malformed, Untaken. The edge lets in JSON alone: a page of somebody else's can't send that unasked (CSRF)."""
    return of_members(parsed(raw))


def of_query(query_string: bytes) -> Asked | None:
    """Of a GET; None where it asks for no document. Raises Malformed, Untaken."""
    try:
        given = dict(parse_qsl(query_string.decode("ascii"), max_num_fields=_MAX_PARAMETERS, errors="strict"))
        if "query" not in given and "extensions" not in given:
            return None
        members: dict[str, Any] = {"query": given.get("query"), "operationName": given.get("operationName") or None}
    except (ValueError, UnicodeError) as error:
        raise Malformed("the query string should hold query, and may hold variables, as JSON") from error
    for name in ("variables", "extensions"):
        if given.get(name):
            members[name] = parsed(given[name].encode(), whole=name)
    return of_members(members)


def of_members(found: object) -> Asked:
    """A request's members, however they came. Raises Malformed, Untaken."""
    if isinstance(found, list):
        raise Batch("the body is a batch, an array of requests, which is not taken; send each request by itself")
    if not isinstance(found, dict):
        raise Malformed("the request should be a JSON object with a query")
    query, variables, name = found.get("query"), found.get("variables"), found.get("operationName")
    extensions = found.get("extensions")
    if not query and isinstance(extensions, dict) and "persistedQuery" in extensions:
        raise PersistedQuery("PersistedQueryNotSupported")
    if not isinstance(query, str) or not query.strip():
        raise Malformed("query should be a GraphQL document, as text")
    if variables is not None and not isinstance(variables, dict):
        raise Malformed("variables should be a JSON object")
    if name is not None and (not isinstance(name, str) or len(name) > _MAX_NAME_CHARS):
        raise Malformed("operationName should be the name of one of the document's operations")
    if not isinstance(extensions, dict | None):
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
    found.discard("")  # a field that was left empty carries none
    if len(found) > 1:
        raise Unauthenticated("connection_init carries two different credentials; send one")
    return found.pop() if found else None
