"""Tool calls of transcripts have the shape that results and events have, whoever recorded them in whichever form."""

import pytest

from amplifier_api_server.control_plane.sessions.called_tools import shown
from tests.control_plane.sessions.test_large_transcripts import filled
from tests.hostile_runtime import attacked

ASKED = {"call_id": "call_1", "tool": "bash", "input": {"command": "ls"}}
LOOPS = {"id": "call_1", "tool": "bash", "arguments": {"command": "ls"}}


@pytest.mark.parametrize(
    "call",
    [
        LOOPS,
        {"id": "call_1", "name": "bash", "input": {"command": "ls"}},
        {"id": "call_1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}},
        {"type": "tool_call", "id": "call_1", "name": "bash", "input": {"command": "ls"}},
    ],
)
def test_a_call_is_shown_in_one_shape(call):
    assert shown({"role": "assistant", "content": "", "tool_calls": [call]})["tool_calls"] == [ASKED]


def test_calls_that_are_blocks_of_the_content_are_shown_too():
    body = {
        "role": "assistant",
        "content": [{"type": "tool_call", "id": "call_1", "name": "bash", "input": {"command": "ls"}}],
    }
    assert shown(body)["tool_calls"] == [ASKED]


@pytest.mark.parametrize("kept", [None, "x", 1, {}, [None], [[]], [""]])
def test_what_is_no_call_is_none(kept):
    assert shown({"role": "assistant", "content": "x", "tool_calls": kept}) == {"role": "assistant", "content": "x"}


@pytest.mark.parametrize("call", [{}, {"id": 1, "tool": [], "arguments": "{"}, {"function": 5, "arguments": [1]}])
def test_a_call_that_is_half_a_one_can_be_read(call):
    assert shown({"role": "assistant", "tool_calls": [call]})["tool_calls"] == [
        {"call_id": "", "tool": "", "input": {}}
    ]


async def test_rest_and_graphql_show_a_transcripts_calls_alike(tmp_path):
    bodies = [
        {"role": "assistant", "content": "", "tool_calls": [LOOPS]},
        {"role": "tool", "name": "bash", "tool_call_id": "call_1", "content": "a.txt"},
        {"role": "assistant", "content": "which tool?"},
    ]
    async with attacked(tmp_path) as plane, plane.client() as client:
        session_id, _ = await filled(plane, bodies)
        asked, ran, said = (await client.get(f"/v1/sessions/{session_id}/messages")).json()["messages"]
        query = (
            f'{{ messages(sessionId: "{session_id}") {{ nodes {{ toolCalls {{ callId tool input }} callId tool }} }} }}'
        )
        nodes = (await client.post("/graphql", json={"query": query})).json()["data"]["messages"]["nodes"]
    assert asked["tool_calls"] == [ASKED]
    assert (ran["call_id"], ran["tool"], ran["content"]) == ("call_1", "bash", "a.txt")
    assert not {"tool_call_id", "name", "tool_calls"} & ran.keys()
    assert not {"tool_calls", "call_id", "tool"} & said.keys()
    assert nodes[0]["toolCalls"] == [{"callId": "call_1", "tool": "bash", "input": {"command": "ls"}}]
    assert (nodes[1]["callId"], nodes[1]["tool"], nodes[1]["toolCalls"]) == ("call_1", "bash", None)
