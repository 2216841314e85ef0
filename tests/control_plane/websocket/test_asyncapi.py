"""The AsyncAPI document: valid by its own parser, whole, and true of what the server sends."""

import json
import subprocess
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.websocket.answers import SERVER_MESSAGES, type_of
from amplifier_api_server.control_plane.websocket.asyncapi import REPLIES, document
from amplifier_api_server.control_plane.websocket.messages import CLIENT_MESSAGES, read
from amplifier_api_server.control_plane.websocket.table import CALLABLE, OPERATION_OF
from tests import installed


@pytest.fixture(scope="module")
def made():
    return document(Settings())


@pytest.fixture(scope="module")
def parser():
    """The folder of the parser that the authors of AsyncAPI publish."""
    return installed.npm(Path(__file__).parents[2] / "asyncapi", "AsyncAPI's own parser")


def test_the_document_is_valid(made, parser, tmp_path):
    path = tmp_path / "asyncapi.json"
    path.write_text(json.dumps(made))
    ran = subprocess.run(
        ["node", "check.mjs", str(path)], cwd=parser, capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(ran.stdout)
    assert found["messages"] == len(CLIENT_MESSAGES) + len(SERVER_MESSAGES)
    assert [one for one in found["diagnostics"] if one["code"] != "asyncapi-latest-version"] == []


def test_every_message_is_documented_and_nothing_else(made):
    names = [*CLIENT_MESSAGES, *map(type_of, SERVER_MESSAGES)]
    assert len(names) == len(set(names)), "no message of the client is called as one of the server"
    assert set(made["components"]["messages"]) == set(made["channels"]["ws"]["messages"]) == set(names)
    assert set(made["operations"]) == {f"on.{name}" for name in CLIENT_MESSAGES} | {"tell"}
    assert all(one["summary"] for one in made["components"]["messages"].values())
    assert set(REPLIES) == set(CLIENT_MESSAGES)


def test_operations_and_permissions_are_documented(made):
    for name, operation in OPERATION_OF.items():
        assert made["operations"][f"on.{name}"].get("x-operation") == operation
    assert set(made["operations"]["on.call"]["x-operations"]) == CALLABLE


def test_every_example_is_a_message(made):
    examples = [
        one["payload"] for message in made["components"]["messages"].values() for one in message.get("examples", ())
    ]
    assert len(examples) > 4
    for example in examples:
        read(json.dumps(example))


async def test_it_is_served_to_everybody(door):
    async with door.plane.client("") as client:
        answer = await client.get("/asyncapi.json", headers={"X-API-Key": ""})
    assert answer.status_code == 200
    assert answer.json()["asyncapi"] == "3.0.0"
