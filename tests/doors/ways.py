"""Every way there is to ask for an operation: a route, a root field, a message. Requests are made of the doors' own schemas.

A way's `ask` sends one; it names nothing that exists but what it is given, by the names of the route's parameters and of
its body's members. Who is let in gets any answer but a refusal of who they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from amplifier_api_server.control_plane.framework import openapi_document
from amplifier_api_server.control_plane.graphql.schema import BOUND, CORE
from amplifier_api_server.control_plane.operations import OPERATIONS, Operation
from amplifier_api_server.control_plane.routes import Route
from amplifier_api_server.control_plane.routing import route_table
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.websocket.messages import CLIENT_MESSAGES
from amplifier_api_server.control_plane.websocket.table import ANY, CALLABLE, OPERATION_OF
from tests.control_plane.graphql.documents import document_of
from tests.doors.clients import Callers, Outcome


class Asks(Protocol):
    def __call__(self, callers: Callers, /, **given: str) -> Awaitable[Outcome]: ...


@dataclass(frozen=True)
class Way:
    door: str
    name: str  # a route, a field, a message
    operation: Operation
    ask: Asks
    takes: tuple[str, ...] = ()  # of what it can be given: names in the route's path

    def __str__(self) -> str:
        return f"{self.door} {self.name}"


@cache
def all_ways() -> tuple[Way, ...]:
    return (*_rest(), *_graphql(), *_socket())


def ways_of(permission: str) -> list[Way]:
    """Those that take it."""
    return [one for one in all_ways() if permission in one.operation.permissions]


# REST.


def _rest() -> list[Way]:
    document = openapi_document(Settings())
    found = []
    for route in route_table(Settings(), None).routes:
        described = document["paths"].get(route.template, {}).get(route.method.lower())
        if route.operation.permission is None or described is None or route.operation.name == "graphql":
            continue
        ask = _rest_ask(route, _body(described, document))
        found.append(Way("rest", f"{route.method} {route.template}", route.operation, ask, named_in(route)))
    return found


def named_in(route: Route) -> tuple[str, ...]:
    return tuple(re.findall(r"\{(\w+)\}", route.template))


def _rest_ask(route: Route, body: Any) -> Asks:
    def ask(callers: Callers, /, **given: str) -> Awaitable[Outcome]:
        path = re.sub(r"\{(\w+)\}", lambda found: given.get(found[1], "x"), route.template)
        query = {"from": "start"} if route.operation.name == "streamEvents" else {}
        left = {name: value for name, value in given.items() if name not in named_in(route)}
        if body is None:
            query |= left
        return callers.rest.ask(route.method, path, body if body is None else body | left, query)

    return ask


def _body(described: Mapping[str, Any], document: Mapping[str, Any]) -> Any:
    content = described.get("requestBody", {}).get("content", {})
    media = content.get("application/json")
    return sample(media["schema"], document) if media else None


def sample(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Any:
    """A value that a JSON schema allows: its example, or the least there is."""
    if "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return sample(found, document)
    for name in ("example", "const", "default"):
        if schema.get(name) is not None:
            return schema[name]
    if schema.get("examples"):
        return schema["examples"][0]
    if "enum" in schema:
        return schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return sample(schema[name][0], document)
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: sample(properties[name], document) for name in schema.get("required", [])}
        case "array":
            return []
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return "x" * max(1, schema.get("minLength", 1))


# GraphQL.


def _graphql() -> list[Way]:
    routes = {one.operation.name: one for one in route_table(Settings(), None).routes}
    found = []
    for (kind, name), operation in BOUND.items():
        takes = named_in(routes[operation.name])
        found.append(Way("graphql", f"{kind}.{name}", operation, _graphql_ask(kind, name, takes), takes))
    return found


def _graphql_ask(kind: str, name: str, takes: tuple[str, ...]) -> Asks:
    arguments = CORE.type_map[kind].fields[name].args  # type: ignore[attr-defined]

    def ask(callers: Callers, /, **given: str) -> Awaitable[Outcome]:
        more: dict[str, str] = {"events": {"fromStart": "true"}, "answerApproval": {"approved": "true"}}.get(name, {})
        for one, value in given.items():
            argument = "id" if one not in arguments and camel(one) not in arguments and one in takes else camel(one)
            more[argument] = json.dumps(value)
        return callers.graphql.ask(document_of(kind, name, **more))

    return ask


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


# WebSocket.


def _socket() -> list[Way]:
    routes = {one.operation.name: one for one in route_table(Settings(), None).routes}
    document = openapi_document(Settings())
    found = []
    for kind, name in OPERATION_OF.items():
        if name is None:
            continue
        schema = CLIENT_MESSAGES[kind].model_json_schema()
        members = {one: value for one, value in sample_object(schema).items() if one not in ("type", "id")}
        takes = named_in(routes[name])
        found.append(Way("websocket", kind, OPERATIONS[name], _message_ask(kind, members), takes))
    for name in sorted(CALLABLE):
        route = routes[name]
        described = document["paths"][route.template][route.method.lower()]
        ask = _call_ask(route, _body(described, document))
        found.append(Way("websocket", f"{ANY} {name}", route.operation, ask, named_in(route)))
    return found


def _message_ask(kind: str, members: Mapping[str, Any]) -> Asks:
    async def ask(callers: Callers, /, **given: str) -> Outcome:
        outcome = await callers.socket.ask(kind, **{**members, **given})
        if kind == "events.subscribe" and outcome.problem is None:
            await callers.socket.ask("events.unsubscribe")
        return outcome

    return ask


def _call_ask(route: Route, body: Any) -> Asks:
    def ask(callers: Callers, /, **given: str) -> Awaitable[Outcome]:
        left = {name: value for name, value in given.items() if name not in named_in(route)}
        params = {one: given.get(one, "x") for one in named_in(route)} | ({} if body is not None else left)
        sent = body if body is None else body | left
        return callers.socket.ask(ANY, operation=route.operation.name, params=params, body=sent)

    return ask


def sample_object(schema: dict[str, Any]) -> dict[str, Any]:
    """What is required of an object, and what its example has besides."""
    properties = schema["properties"]
    needed = {name: sample(properties[name], schema) for name in schema.get("required", [])}
    example = schema.get("example", {})
    return {**needed, **{name: value for name, value in example.items() if name in properties}}
