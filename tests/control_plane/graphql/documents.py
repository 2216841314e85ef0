"""The smallest document for each root field: its required arguments made up, nothing of its answer asked for."""

from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    get_named_type,
    is_composite_type,
    is_required_argument,
)

from amplifier_api_server.control_plane.graphql.schema import CORE

ROOTS = {"Query": "query", "Mutation": "mutation", "Subscription": "subscription"}


def document_of(kind: str, name: str, /, **values: str) -> str:
    """`values` are literals, by argument."""
    root = CORE.type_map[kind]
    assert isinstance(root, GraphQLObjectType)
    field = root.fields[name]
    given = {one: _literal(argument.type) for one, argument in field.args.items() if is_required_argument(argument)}
    if name == "updateSession":
        given["title"] = '"x"'
    arguments = ", ".join(f"{one}: {value}" for one, value in (given | values).items())
    inner = " { __typename }" if is_composite_type(get_named_type(field.type)) else ""
    return f"{ROOTS[kind]} {{ {name}{f'({arguments})' if arguments else ''}{inner} }}"


def _literal(kind: Any) -> str:
    if isinstance(kind, GraphQLNonNull):
        return _literal(kind.of_type)
    if isinstance(kind, GraphQLList):
        return f"[{_literal(kind.of_type)}]"
    if isinstance(kind, GraphQLEnumType):
        return next(iter(kind.values))
    return {"JSON": "{}", "Int": "1", "Boolean": "true", "DateTime": '"2026-01-01T00:00:00Z"'}.get(kind.name, '"x"')
