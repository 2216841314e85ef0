from __future__ import annotations

import json

from tests.runtime.conftest import Driver, text_of
from tests.runtime.fake_gateway import calls, says


async def test_a_turn_streams_each_delta_as_one_token_and_completes_after_its_checkpoint(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.append(says("Hel", "lo", " you"))
    events = await runtime.stream("greet me", request_id="req_a")
    assert [event.name for event in events] == ["token", "token", "token", "complete"]
    assert [event.number for event in events] == [1, 2, 3, 4]
    assert text_of(events) == "Hello you"
    assert events[-1].data["request_id"] == "req_a"
    (checkpoint,) = runtime.gateway.checkpoints
    assert checkpoint["messages"] == [
        {"role": "user", "content": "greet me"},
        {"role": "assistant", "content": "Hello you"},
    ]
    assert (checkpoint["base"], checkpoint["last_event"], checkpoint["status"]) == (0, 3, "completed")
    assert runtime.gateway.turn_headers == ["req_a"]


async def test_a_tool_runs_and_its_result_goes_back_to_the_model(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.extend([calls(("bash", {"command": "echo $((6*7)); exit 3"})), says("it said 42")])
    events = await runtime.stream()
    tool_calls = [event.data for event in events if event.name == "tool_call"]
    assert [call["status"] for call in tool_calls] == ["started", "completed"]
    assert tool_calls[0]["input"] == {"command": "echo $((6*7)); exit 3"}
    assert tool_calls[1]["output"] == {"exit_code": 3, "stdout": "42\n", "stderr": ""}
    asked = runtime.gateway.requests[1]["messages"]
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "tool"]
    assert json.loads(asked[-1]["content"])["exit_code"] == 3
    assert asked[-1]["tool_call_id"] == asked[-2]["tool_calls"][0]["id"] == "call_0"
