"""How many values a request's JSON may hold: what is wrong with each of them would have to be told."""

import json

import pytest

from amplifier_api_server.control_plane.json_bounds import REQUEST_VALUES
from amplifier_api_server.control_plane.websocket.messages import Unreadable, read
from tests.hostile_runtime import attacked

MANY = REQUEST_VALUES + 1
KEYS = {f"a{number}": 1 for number in range(MANY)}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/sessions", KEYS),
        ("/v1/sessions", {"profile": "foundation:base", "context": {"a": [[]] * MANY}}),
        ("/v1/collections", KEYS),
        ("/v1/roles", {"name": "x", "permissions": [1] * MANY}),
        ("/v1/sessions/sess_x/execute", KEYS),
        ("/v1/sessions/sess_x/execute", {"prompt": "x", "callback": KEYS}),
        ("/graphql", {"query": "{ me { role } }", "variables": KEYS}),
    ],
)
async def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(tmp_path, path, body):
    async with attacked(tmp_path) as plane, plane.client() as client:
        for headers in ({}, {"Idempotency-Key": "0123456789abcdef"}):
            answer = await client.post(path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json"), answer.text
            assert f"more than {REQUEST_VALUES} values" in answer.json()["detail"]


async def test_what_is_within_a_text_is_no_value(tmp_path):
    async with attacked(tmp_path) as plane, plane.client() as client:
        session = await plane.session()
        text = json.dumps({"title": "x"}) + " " + ",[{" * MANY + '\\ \\"' * MANY
        answer = await client.patch(f"/v1/sessions/{session}", json={"title": text})
        assert answer.status_code == 422
        assert [one["field"] for one in answer.json()["errors"]] == ["title"], "it was parsed, and is too long"


async def test_json_that_installs_is_no_larger_than_other_json(tmp_path):
    async with attacked(tmp_path) as plane, plane.client() as client:
        answer = await client.post("/v1/collections", json={"source": "x" * 3_000_000})
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize("more", [KEYS, {"status": [1] * MANY}])
def test_a_message_of_very_many_values_is_none(more):
    with pytest.raises(Unreadable) as caught:
        read(json.dumps({"type": "session.list"} | more))
    assert caught.value.stable_code == "invalid_json"
