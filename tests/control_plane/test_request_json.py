"""The JSON of requests: one reading of it on every door, which refuses what JSON does not have and what can't be stored."""

import json

import pytest
from fastapi.routing import APIRoute

from amplifier_api_server.control_plane.framework import framework
from amplifier_api_server.control_plane.graphql import requests
from amplifier_api_server.control_plane.graphql.scalars import JSON as JSON_SCALAR
from amplifier_api_server.control_plane.graphql.scalars import SCALARS
from amplifier_api_server.control_plane.request_json import JsonRoute, parsed
from amplifier_api_server.control_plane.routing import route_table
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.websocket.messages import read
from amplifier_api_server.tenants.errors import Malformed
from tests.hostile_runtime import attacked

NO_JSON = ["NaN", "-NaN", "Infinity", "-Infinity", "1e999", "-1e400", "1" * 400, '"\\ud83d"', "[" * 300 + "]" * 300]
TOO_LONG = ["18446744073709551616", "-9223372036854775809", "1" * 300]


def of_graphql(text: str) -> object:
    return requests.of_body(b'{"query":"{me{role}}","variables":%b}' % text.encode())


DOORS = {
    "REST": lambda text: parsed(text.encode()),
    "GraphQL": of_graphql,
    "WebSocket": lambda text: read(f'{{"type":"session.create","profile":"a:b","context":{text}}}'),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("number", NO_JSON)
def test_what_is_no_json_is_refused_by_every_door(door, number):
    with pytest.raises(Malformed) as refusal:
        DOORS[door](f'{{"a": [{number}]}}')
    assert refusal.value.stable_code == "invalid_json"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("number", TOO_LONG)
def test_a_whole_number_that_would_be_rounded_is_refused_with_its_place(door, number):
    with pytest.raises(Malformed, match="more than 64 bits") as refusal:
        DOORS[door](f'{{"a": ["{"9" * 30}", {number}]}}')
    assert refusal.value.stable_code == "invalid_request"
    assert refusal.value.extra["errors"][0]["field"].endswith("a.1")


@pytest.mark.parametrize(
    "number", ["18446744073709551615", "-9223372036854775808", "0.1234567890123456789012", "1e300"]
)
def test_numbers_that_can_be_kept_are_taken(number):
    assert parsed(f'{{"a": {number}}}'.encode()) == {"a": json.loads(number)}


def test_a_byte_order_mark_is_no_part_of_a_body():
    assert parsed(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(("value", "words"), [(float("inf"), "no finite number"), (2**70, "more than 64 bits")])
def test_a_literal_of_a_graphql_document_is_held_to_the_same(value, words):
    parse = SCALARS[JSON_SCALAR].parse_value
    assert parse is not None
    with pytest.raises(ValueError, match=rf"a\.0: is .*{words}"):
        parse({"a": [value]})


def test_every_body_of_the_framework_is_read_so():
    settings = Settings()
    routes = framework(settings, route_table(settings, None)).routes
    others = [
        one.path for one in routes if isinstance(one, APIRoute) and one.body_field and not isinstance(one, JsonRoute)
    ]
    assert others == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/sessions",
        "/v1/sessions/sess_x/execute",
        "/v1/sessions/import",
        "/v1/collections",
        "/v1/keys",
        "/v1/tools/bash/execute",
        "/auth/device/code",
        "/graphql",
    ],
)
async def test_no_endpoint_takes_a_number_that_json_does_not_have(tmp_path, path):
    async with attacked(tmp_path) as plane, plane.client() as client:
        for body in (b'{"a": NaN}', b'{"a": 1e999}', b'{"a": -Infinity}'):
            answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.json()["code"] == "invalid_json", answer.text
