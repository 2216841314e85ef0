"""Schemas as generators of clients and checkers of traffic read them: one pass over the whole document.

Owns what pydantic's schemas leave open: which members a body must have, which an answer always has, and that a query has no
null. It changes nothing but the document. Invariant (a test holds it): no schema of a request has a `default`, because
generators take such a member for one that is always there; no parameter is nullable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from amplifier_api_server.control_plane.openapi_words import WORDS
from amplifier_api_server.control_plane.sessions.shapes import TYPED

Schema = dict[str, Any]

# Answers whose members are left out where they have no value, with those that may be null all the same. In all others every
# member is there.
SPARSE: Final[Mapping[str, frozenset[str]]] = {
    "Problem": frozenset(),
    "ToolCall": frozenset(),
    "MessageView": frozenset(),
    "GraphqlResponse": frozenset({"data"}),
    "GraphqlError": frozenset({"path", "locations"}),
}

_REFERENCE: Final = re.compile(r"#/components/schemas/(\w+)")


def complete(document: dict[str, Any]) -> None:
    """Say of every parameter, body and answer what is true of it."""
    schemas = document["components"]["schemas"]
    bodies: list[Any] = []
    for operation in operations(document):
        for parameter in operation.get("parameters", []):
            parameter["schema"] = _without_null(parameter["schema"])
            _describe(parameter, operation["operationId"], parameter["name"])
        for media in operation.get("requestBody", {}).get("content", {}).values():
            media["schema"] = _without_null(media["schema"])
            bodies.append(media["schema"])
    for (name, member), schema in TYPED.items():
        schemas[name]["properties"][member] = dict(schema)
    taken = _reached(bodies, schemas)
    for name, schema in schemas.items():
        _settle(schema, is_taken=name in taken, nullable=SPARSE.get(name))
        for member, of_member in schema.get("properties", {}).items():
            _describe(of_member, name, member)


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every operation of the document."""
    for item in document["paths"].values():
        yield from item.values()


def _describe(found: Schema, owner: str, name: str) -> None:
    """Say what a member or a parameter is, where it does not say so itself."""
    word = WORDS.get(f"{owner}.{name}") or WORDS.get(name)
    if word is not None:
        found.setdefault("description", word)


def _without_null(schema: Schema) -> Schema:
    """The same, less the null that pydantic writes for what may be left out."""
    kinds = [one for one in schema.get("anyOf", []) if one != {"type": "null"}]
    if len(kinds) == len(schema.get("anyOf", [])):
        return schema
    rest = {name: value for name, value in schema.items() if name != "anyOf" and (name, value) != ("default", None)}
    return {**kinds[0], **rest} if len(kinds) == 1 else {**rest, "anyOf": kinds}


def _settle(schema: Schema, *, is_taken: bool, nullable: frozenset[str] | None) -> None:
    members: dict[str, Schema] = schema.get("properties", {})
    if members and schema.get("additionalProperties") is True:
        del schema["additionalProperties"]  # it says nothing, and some generators take the whole for a map
    if not is_taken and nullable is None and members:
        schema["required"] = list(members)
    for name, member in members.items():
        member.pop("default", None)
        if nullable is not None and name not in nullable and name not in schema.get("required", []):
            members[name] = _without_null(member)


def _reached(starts: Iterable[Any], schemas: dict[str, Schema]) -> set[str]:
    """The names of the schemas that these refer to, directly or through others."""
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        more = set(_REFERENCE.findall(str(waiting.pop()))) - found
        found |= more
        waiting += [schemas[name] for name in more]
    return found
