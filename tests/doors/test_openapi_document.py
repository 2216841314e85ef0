"""The OpenAPI document is whole: what clients are generated from has a name, a type and a media type for everything."""

import re

import pytest

from amplifier_api_server.control_plane import openapi_events
from amplifier_api_server.control_plane.framework import openapi_document
from amplifier_api_server.control_plane.openapi_schemas import SPARSE
from amplifier_api_server.control_plane.openapi_words import WORDS
from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.control_plane.sessions import shapes
from amplifier_api_server.control_plane.settings import Settings

EMPTY = {"204", "303"}  # answers without a body


@pytest.fixture(scope="module")
def document():
    return openapi_document(Settings())


@pytest.fixture(scope="module")
def operations(document):
    return {one["operationId"]: one for item in document["paths"].values() for one in item.values()}


def test_each_has_one_name_which_is_its_operations(document, operations):
    assert len(operations) == sum(len(item) for item in document["paths"].values())
    assert set(operations) <= set(OPERATIONS)
    assert not [name for name, one in operations.items() if not one.get("summary") or not one.get("tags")]


def test_every_answer_has_a_media_type_and_a_schema(operations):
    bare = []
    for name, one in operations.items():
        for status, answer in one["responses"].items():
            content = answer.get("content", {})
            if status in EMPTY:
                assert not content, (name, status)
            elif not content or not all(media.get("schema") for media in content.values()):
                bare.append((name, status))
    assert not bare


def test_every_refusal_is_a_problem(operations):
    """Or, beside it, a page for people and the shape that another standard asks for."""
    others = {("ready", "503")}  # what is not ready
    found = {
        (name, status)
        for name, one in operations.items()
        for status, answer in one["responses"].items()
        if int(status) >= 400 and "application/problem+json" not in answer["content"]
    }
    assert found == others


def test_what_knows_its_caller_says_that_it_may_refuse(operations):
    for name, one in operations.items():
        is_known = OPERATIONS[name].permission is not None
        assert bool(one["security"]) is is_known, name
        if is_known:
            assert {"401", "403", "503"} <= one["responses"].keys(), name


def test_what_can_be_repeated_takes_a_key(operations):
    for name, one in operations.items():
        named = {parameter["name"] for parameter in one.get("parameters", [])}
        assert ("Idempotency-Key" in named) is OPERATIONS[name].takes_key, name


def test_each_placeholder_of_a_path_is_a_parameter(document):
    for path, item in document["paths"].items():
        for one in item.values():
            placed = {parameter["name"] for parameter in one.get("parameters", []) if parameter["in"] == "path"}
            assert placed == set(re.findall(r"\{(\w+)\}", path)), path


def test_every_reference_leads_somewhere_and_every_component_is_used(document):
    found = set(re.findall(r"#/components/([A-Za-z]+/[A-Za-z0-9_-]+)", str(document)))
    there = {f"{kind}/{name}" for kind in ("schemas", "headers") for name in document["components"][kind]}
    assert found - there == set()
    assert there - found == set()


def test_every_answer_says_which_request_it_is_of(operations):
    for name, one in operations.items():
        for status, answer in one["responses"].items():
            assert "X-Request-Id" in answer["headers"], (name, status)


# Made for generators: what they need, beside what is true.


def parts(schema):
    """A schema and all that are within it, without what references lead to."""
    if isinstance(schema, dict):
        yield schema
        for one in schema.values():
            yield from parts(one)
    elif isinstance(schema, list):
        for one in schema:
            yield from parts(one)


def taken(document, operations):
    """The names of the schemas that bodies of requests are made of."""
    schemas, found = document["components"]["schemas"], set()
    waiting = [media for one in operations.values() for media in one.get("requestBody", {}).get("content", {}).values()]
    while waiting:
        names = set(re.findall(r"#/components/schemas/(\w+)", str(waiting.pop()))) - found
        found |= names
        waiting += [schemas[name] for name in names]
    return found


def test_no_member_of_a_request_has_a_default(document, operations):
    """A generator takes such a member for one that is always there, and asks for it."""
    schemas = document["components"]["schemas"]
    names = taken(document, operations)
    assert {"CreateSession", "Execute", "CallbackRequest", "FinishDevice"} <= names
    assert not [name for name in names if any("default" in one for one in parts(schemas[name].get("properties", {})))]
    assert schemas["CreateSession"]["required"] == ["profile"]


def test_no_parameter_is_nullable(operations):
    """A query has no null."""
    for name, one in operations.items():
        for parameter in one.get("parameters", []):
            assert {"type": "null"} not in list(parts(parameter["schema"])), (name, parameter["name"])
            assert parameter["schema"].get("default", 0) is not None, (name, parameter["name"])


def test_an_answer_has_all_of_its_members(document, operations):
    """Or leaves out those without a value, and then none of them is null."""
    schemas = document["components"]["schemas"]
    assert schemas["SessionView"]["required"] == list(schemas["SessionView"]["properties"])
    for name in schemas.keys() - taken(document, operations):
        schema = schemas[name]
        left_out = schema.get("properties", {}).keys() - schema.get("required", [])
        assert not left_out or name in SPARSE or name in openapi_events.COMPONENTS, (name, left_out)
    assert not [one for one in schemas["Problem"]["properties"].values() if "null" in str(one)]
    assert schemas.keys() >= SPARSE.keys()


def test_every_body_has_one_media_type_but_an_archive(operations):
    """Of two, generators make two bodies, and some of them no client that can be imported."""
    two = {name for name, one in operations.items() if len(one.get("requestBody", {}).get("content", {})) > 1}
    assert two == {"installCollection"}


def test_a_stream_is_text_and_says_what_its_events_are(document, operations):
    streams = {
        name: media["schema"]
        for name, one in operations.items()
        for answer in one["responses"].values()
        for kind, media in answer.get("content", {}).items()
        if kind == "text/event-stream"
    }
    assert {"execute", "streamExecution", "streamEvents", "graphql"} <= streams.keys()
    for schema in streams.values():
        assert schema["type"] == "string"
        whole = document["components"]["schemas"][schema["contentSchema"]["items"]["$ref"].rpartition("/")[2]]
        names = [one["$ref"].rpartition("/")[2] for one in whole["oneOf"]]
        events = [document["components"]["schemas"][name]["properties"]["event"]["enum"] for name in names]
        kinds = [kind for one in events for kind in one]
        assert len(kinds) == len(set(kinds))


def test_every_tag_is_explained_and_every_operation_described(document, operations):
    assert all(one["description"] for one in document["tags"])
    assert {tag for one in operations.values() for tag in one["tags"]} == {one["name"] for one in document["tags"]}
    assert not [name for name, one in operations.items() if not one.get("description")]


def test_what_ends_a_thing_has_one_verb_for_each_meaning(document):
    """`delete`: it is gone. `revoke`: it stays, and is good for nothing. `close` and `cancel`: what ran has ended."""
    verbs = {one["delete"]["operationId"]: path for path, one in document["paths"].items() if "delete" in one}
    assert not [name for name in verbs if not re.match(r"(delete|revoke|close|cancel)[A-Z]", name)]
    changed = {one["patch"]["operationId"] for one in document["paths"].values() if "patch" in one}
    assert not [name for name in changed if not name.startswith("update")]


def test_every_member_and_every_parameter_is_described(document, operations):
    bare = [
        f"{name}.{member}"
        for name, schema in document["components"]["schemas"].items()
        for member, of_member in schema.get("properties", {}).items()
        if not of_member.get("description")
    ]
    for name, one in operations.items():
        bare += [f"{name}.{found['name']}" for found in one.get("parameters", []) if not found.get("description")]
    assert not bare


def test_every_word_is_used(document, operations):
    """Of the members and parameters that don't describe themselves."""
    said = {found.get("description") for one in operations.values() for found in one.get("parameters", [])}
    for schema in document["components"]["schemas"].values():
        said |= {member.get("description") for member in schema.get("properties", {}).values()}
    assert not [name for name, word in WORDS.items() if word not in said]


def test_what_is_stored_as_json_has_a_type(document):
    for (name, member), schema in shapes.TYPED.items():
        assert document["components"]["schemas"][name]["properties"][member].items() >= schema.items()
