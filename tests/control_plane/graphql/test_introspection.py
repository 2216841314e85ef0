"""Introspection is measured like everything else, and the documents of real tools are answered."""

import json
import math

import pytest
from graphql import execute_sync, get_introspection_query, parse

from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.graphql import measure
from amplifier_api_server.control_plane.graphql.engine import Asked, Engine
from amplifier_api_server.control_plane.graphql.schema import CORE
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Invalid

_ALL = {
    "specified_by_url": True,
    "directive_is_repeatable": True,
    "schema_description": True,
    "input_value_deprecation": True,
}
TOOLS = {
    "GraphiQL": get_introspection_query(**_ALL),
    "Apollo": get_introspection_query(),
    "gql": get_introspection_query(input_value_deprecation=True, type_depth=9),
    "a code generator": get_introspection_query(descriptions=False, type_depth=7),
    "the explorer's page": "{ __schema { queryType { fields { name args { name type { kind name ofType { name } } } } } } }",
}


@pytest.mark.parametrize("tool", TOOLS)
async def test_the_documents_of_tools_are_answered_as_they_would_be_without_bounds(door, tool):
    wanted = execute_sync(CORE, parse(TOOLS[tool])).data
    assert await door.ask(TOOLS[tool]) == json.loads(json.dumps(wanted))


def nested(field, depth):
    return field * depth + "name" + "}" * (field.count("{") * depth)


HOSTILE = {
    "types of fields of types": "{ __schema { types { " + nested("fields { type { ", 4) + " } } }",
    "types of one field after another": '{ __type(name: "Query") { ' + nested("fields { type { ", 4) + " } }",
    "aliases of all types": "{ __schema { "
    + " ".join(f"a{n}: types {{ fields {{ args {{ name type {{ name kind description }} }} }} }}" for n in range(49))
    + " } }",
    "aliases of one type": "{ "
    + " ".join(
        f'a{n}: __type(name: "Query") {{ fields {{ args {{ type {{ fields {{ name }} }} }} }} }}' for n in range(49)
    )
    + " }",
    "fragments on its types": "{ __schema { types { ...a } } } "
    + " ".join(
        f"fragment {one} on __Type {{ fields {{ type {{ ...{next_} }} }} }}"
        for one, next_ in zip("abcd", "bcde", strict=True)
    )
    + " fragment e on __Type { name }",
    "a fragment that holds itself": "{ __schema { types { ...a } } } fragment a on __Type { ofType { ...a } fields { name } }",
    "arguments": "{ __schema { types { fields { args { type { fields { args { type { fields { name } } } } } } } } } }",
    "directives": "{ __schema { directives { args { type { fields { type { fields { type { fields { name } } } } } } } } } }",
    "over and over": "{ " + "__schema { types { name } } " * 100 + "}",
    "__typename": "{ __schema { types { " + "__typename " * 100 + "} } }",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_introspection_that_would_take_long_is_refused(name):
    with pytest.raises(Invalid) as caught:
        Engine(Settings(), FairQueue()).prepared(Asked(HOSTILE[name]))
    assert caught.value.stable_code == "document_too_complex"


def fields_in(found):
    if isinstance(found, dict):
        return len(found) + sum(map(fields_in, found.values()))
    return sum(map(fields_in, found)) if isinstance(found, list) else 0


SMALL = [
    *TOOLS.values(),
    "{ __schema { types { fields { type { fields { name } } } } } }",
    '{ a: __type(name: "Mutation") { fields { name args { name description } } } }',
    "{ __schema { directives { name args { name } } types { enumValues { name } interfaces { name } inputFields { name } } } }",
    "{ __schema { types { possibleTypes { name } fields { args { type { ofType { ofType { name } } } } } } } }",
    "{ __schema { queryType { fields { args { type { inputFields { name type { name } } } } } } } }",
]


@pytest.mark.parametrize("query", SMALL)
def test_introspection_costs_at_least_the_fields_that_it_is_answered_with(query, monkeypatch):
    walks = []
    monkeypatch.setattr(measure, "_INTROSPECTION_COST", math.inf)
    made = measure._Walk.__init__
    monkeypatch.setattr(measure._Walk, "__init__", lambda self, *given: (made(self, *given), walks.append(self))[0])
    measure.measure(CORE, parse(query), {}, measure.Bounds(16, 50, 25_000, 50, 200))
    answer = execute_sync(CORE, parse(query)).data
    assert math.ceil(walks[0].cost + walks[0]._introspection_cost) >= fields_in(answer)
