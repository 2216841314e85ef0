"""Inputs of tools, as anybody may send them."""

import asyncio
import json

import pytest
from pydantic import ValidationError

from amplifier_api_server.control_plane.catalog.schemas import ExecuteTool
from amplifier_api_server.control_plane.catalog.tool_inputs import demand
from amplifier_api_server.tenants.errors import Malformed
from tests.control_plane.catalog.workbench import says
from tests.hostile_runtime import attacked


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "\\ud800"}',
        '{"\\ud800": 1}',
        '{"a": %s}' % ("[" * 400 + "]" * 400),
        '{"a": 123456789012345678901234567890}',
    ],
)
def test_what_could_not_be_sent_on_is_refused(text):
    with pytest.raises(ValidationError, match="plain JSON"):
        ExecuteTool.model_validate({"input": json.loads(text)})


SCHEMA = {
    "type": "object",
    "properties": {
        "command": {"type": "string"},
        "limit": {"type": "integer", "minimum": 1},
        "timeout": {"type": "number"},
        "all": {"type": "boolean"},
        "mode": {"type": "string", "enum": ["a", "b"]},
        "todos": {
            "type": "array",
            "maxItems": 2,
            "items": {"type": "object", "properties": {"content": {"type": "string"}}, "required": ["content"]},
        },
        "anything": {},
    },
    "required": ["command"],
}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"cmd": "ls"}, {"input.command": "is missing", "input.cmd": "is not a known field"}),
        ({"command": None}, {"input.command": "is missing"}),
        ({"command": 1}, {"input.command": "should be a text"}),
        ({"command": "x", "limit": 0}, {"input.limit": "should be at least 1"}),
        ({"command": "x", "limit": True}, {"input.limit": "should be a whole number"}),
        ({"command": "x", "limit": 1.5}, {"input.limit": "should be a whole number"}),
        ({"command": "x", "timeout": "1"}, {"input.timeout": "should be a number"}),
        ({"command": "x", "all": "yes"}, {"input.all": "should be true or false"}),
        ({"command": "x", "mode": "c"}, {"input.mode": "is 'c'; it should be one of a, b"}),
        ({"command": "x", "todos": {}}, {"input.todos": "should be a list"}),
        (
            {"command": "x", "todos": [{}, {"content": 1}]},
            {"input.todos.0.content": "is missing", "input.todos.1.content": "should be a text"},
        ),
        ({"command": "x", "todos": [{"content": "x"}] * 3}, {"input.todos": "should have at most 2 items"}),
    ],
)
def test_a_wrong_input_names_every_field(given, told):
    with pytest.raises(Malformed) as refusal:
        demand(given, SCHEMA)
    assert {one["field"]: one["message"] for one in refusal.value.extra["errors"]} == told
    assert all(field in refusal.value.detail for field in told)


def test_what_the_schema_takes_is_taken_and_null_is_left_out():
    demand({"command": "x", "limit": 1, "timeout": 1, "all": True, "mode": "a", "todos": [{"content": "x"}]}, SCHEMA)
    demand({"command": "", "limit": None, "anything": [1, {}], "timeout": 0.5}, SCHEMA)
    demand({"whatever": 1}, {})


async def test_a_tool_with_a_wrong_input_is_not_asked(tmp_path):
    async with attacked(tmp_path) as plane, plane.client() as client:
        plane.fleet.answers["GET", "catalog"] = says(
            {"profiles": [], "tools": [{"name": "bash", "description": "", "input_schema": SCHEMA}]}
        )
        async with asyncio.timeout(10):
            while not await plane.app.services.catalogue.is_known():
                await asyncio.sleep(0.01)
        answer = await client.post("/v1/tools/bash/execute", json={"input": {"cmd": "ls"}})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
        assert not [one for runtime in plane.fleet.runtimes.values() for one in runtime.seen if "tool" in one]
