from __future__ import annotations

import asyncio
import json

import pytest

from tests.runtime.conftest import Driver, text_of
from tests.runtime.fake_gateway import DONE, USAGE, answers, calls, chunk, raw, says


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


async def test_a_token_is_told_when_it_comes_and_not_when_the_answer_is_whole(runtime: Driver):
    await runtime.open()
    seen = asyncio.Event()

    async def script(body, write):
        await write(chunk({"content": "first"}))
        await seen.wait()
        await write(chunk({"content": "second"}) + chunk(finish="stop") + DONE)

    runtime.gateway.scripts.append(script)
    async with runtime.streaming("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}) as events:
        assert (await anext(events)).data == {"content": "first"}
        seen.set()
        assert [event.name async for event in events] == ["token", "complete"]


async def test_complete_is_not_told_before_the_checkpoint_is_answered(runtime: Driver):
    await runtime.open()
    runtime.gateway.checkpoint_gate = asyncio.Event()
    async with runtime.streaming("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}) as events:
        assert [(await anext(events)).name for _ in range(2)] == ["token", "token"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await anext(events)
        assert (await runtime.call("GET", "/sessions/sess_1/turns/req_a"))[0] == 202
    runtime.gateway.checkpoint_gate.set()
    assert (await runtime.replay("req_a"))[-1].name == "complete"


async def test_a_turn_as_json_is_the_checkpoints_result(runtime: Driver):
    await runtime.open()
    result = await runtime.ask(request_id="req_a")
    assert (result["status"], result["response"]) == ("completed", "Hello world")
    assert result["usage"]["total_tokens"] == 12
    assert await runtime.call("GET", "/sessions/sess_1/turns/req_a") == (200, result)


async def test_the_prompt_and_the_earlier_turns_are_sent_to_the_model(runtime: Driver):
    await runtime.open()
    await runtime.ask("one")
    await runtime.ask("two")
    messages = runtime.gateway.requests[1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("You are a capable, careful assistant.")
    assert [message["content"] for message in messages[1:]] == ["one", "Hello world", "two"]
    assert runtime.gateway.requests[1]["stream_options"] == {"include_usage": True}
    assert runtime.gateway.requests[1]["model"] == "default"
    assert {tool["function"]["name"] for tool in runtime.gateway.requests[1]["tools"]} >= {"bash", "read_file", "todo"}
    assert runtime.gateway.checkpoints[1]["base"] == 2


async def test_a_tool_runs_and_its_result_goes_back_to_the_model(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.extend([calls(("bash", {"command": "echo $((6*7)); exit 3"})), says("it said 42")])
    events = await runtime.stream()
    tool_calls = [event.data for event in events if event.name == "tool_call"]
    assert [call["status"] for call in tool_calls] == ["started", "completed"]
    assert tool_calls[0]["input"] == {"command": "echo $((6*7)); exit 3"}
    assert tool_calls[1]["output"] == {"exit_code": 3, "stdout": "42\n", "stderr": ""}
    assert tool_calls[1]["duration_ms"] >= 0
    asked = runtime.gateway.requests[1]["messages"]
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "tool"]
    assert json.loads(asked[-1]["content"])["exit_code"] == 3
    assert asked[-1]["tool_call_id"] == asked[-2]["tool_calls"][0]["id"] == "call_0"
    (recorded,) = runtime.gateway.checkpoints[0]["tool_calls"]
    assert recorded == tool_calls[1] | {"input": tool_calls[0]["input"]}


@pytest.mark.parametrize(
    ("finish", "told"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("Odd", "odd"), ("no word", None)],
)
async def test_a_turn_says_why_its_last_answer_ended(runtime: Driver, finish: str, told: str | None):
    await runtime.open()
    runtime.gateway.scripts.extend(
        [calls(("todo", {"action": "list"})), raw(chunk({"content": "half an ans"}), chunk(finish=finish), DONE)]
    )
    assert (await runtime.ask())["response"] == "half an ans"
    assert runtime.gateway.checkpoints[0].get("finish_reason") == told


async def test_tool_calls_of_one_step_run_side_by_side_and_answer_in_order(runtime: Driver):
    await runtime.open()
    meet = "touch {0}; for i in $(seq 100); do [ -e {1} ] && echo met && exit; sleep 0.05; done; exit 1"
    both = [("bash", {"command": meet.format(*pair)}) for pair in (("a", "b"), ("b", "a"))]
    runtime.gateway.scripts.extend([calls(*both), says("done")])
    events = await runtime.stream()
    statuses = [event.data["status"] for event in events if event.name == "tool_call"]
    assert statuses == ["started", "started", "completed", "completed"]
    results = [message for message in runtime.gateway.checkpoints[0]["messages"] if message["role"] == "tool"]
    assert [json.loads(one["content"])["stdout"] for one in results] == ["met\n", "met\n"]
    assert [one["tool_call_id"] for one in results] == ["call_0", "call_1"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (("no_such", {}), "there is no tool 'no_such'"),
        (("bash", {"command": 7}), "command should be"),
        (("bash", "{not json"), "not JSON"),
        (("bash", "[1]"), "no JSON object"),
        (("read_file", {"file_path": "missing.txt"}), "No such file"),
        (("read_file", {"file_path": "../../etc/passwd"}), "outside"),
        (("todo", {"action": "create", "todos": [{"content": "x", "status": "maybe"}]}), "status"),
    ],
)
async def test_a_tool_that_fails_is_told_failed_and_the_model_reads_why(runtime: Driver, call, error: str):
    await runtime.open()
    runtime.gateway.scripts.extend([calls(call), says("sorry")])
    events = await runtime.stream()
    failed = [event.data for event in events if event.name == "tool_call"][-1]
    assert failed["status"] == "failed"
    assert error in failed["error"]
    assert events[-1].name == "complete"
    assert error in runtime.gateway.requests[1]["messages"][-1]["content"]


async def test_a_tool_that_takes_too_long_fails_and_the_turn_goes_on(unclaimed: Driver):
    await unclaimed.claim(tool_timeout_seconds=0.2)
    await unclaimed.open()
    unclaimed.gateway.scripts.extend([calls(("bash", {"command": "sleep 600"})), says("too slow")])
    events = await unclaimed.stream()
    assert [event.data["status"] for event in events if event.name == "tool_call"] == ["started", "failed"]
    assert events[-1].name == "complete"


async def test_a_long_output_is_cut_in_event_result_and_transcript(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.extend(
        [calls(("bash", {"command": "echo start; yes | head -c 3000000; echo end"})), says("long")]
    )
    events = await runtime.stream()
    output = [event.data for event in events if event.name == "tool_call"][-1]["output"]["stdout"]
    assert output.startswith("start\n")
    assert output.endswith("end\n")
    assert "bytes left out" in output
    tool_message = next(message for message in runtime.gateway.checkpoints[0]["messages"] if message["role"] == "tool")
    assert len(output) < 70_000
    assert len(tool_message["content"]) < 70_000


async def test_a_model_that_never_stops_calling_tools_hits_the_step_limit(runtime: Driver):
    plan = (await runtime.open("sess_0"))["plan"]
    plan["session"]["orchestrator"]["config"] = {"max_iterations": 3}
    await runtime.open(plan=plan)
    runtime.gateway.default = calls(("todo", {"action": "list"}))
    result = await runtime.ask()
    assert result["problem"]["code"] == "step_limit"
    assert [one.get("tool_choice") for one in runtime.gateway.requests] == [None, None, None, "none"]


async def test_a_second_turn_while_one_runs_is_refused_and_harms_nothing(runtime: Driver):
    await runtime.open()
    release = asyncio.Event()

    async def script(body, write):
        await write(chunk({"content": "a"}))
        await release.wait()
        await write(chunk({"content": "b"}, "stop") + DONE)

    runtime.gateway.scripts.append(script)
    async with runtime.streaming("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}) as events:
        await anext(events)
        status, failure = await runtime.call("POST", "/sessions/sess_1/turns/req_b", {"prompt": "y"})
        assert (status, failure["code"]) == (409, "turn_running")
        assert (await runtime.call("GET", "/health"))[1]["running_turns"] == ["req_a"]
        release.set()
        assert [event.name async for event in events] == ["token", "complete"]
    assert (await runtime.call("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}))[1]["code"] == "turn_exists"
    assert (await runtime.ask())["status"] == "completed"


async def test_the_next_turn_can_start_as_soon_as_complete_was_seen(runtime: Driver):
    await runtime.open()
    for _ in range(30):
        assert (await runtime.stream())[-1].name == "complete"


async def test_the_caller_hanging_up_does_not_end_the_turn(runtime: Driver):
    await runtime.open()
    release = asyncio.Event()

    async def script(body, write):
        await write(chunk({"content": "a"}))
        await release.wait()
        await write(chunk({"content": "b"}, "stop") + DONE)

    runtime.gateway.scripts.append(script)
    async with runtime.streaming("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}) as events:
        await anext(events)
    release.set()
    events = await runtime.replay("req_a")
    assert [event.name for event in events] == ["token", "token", "complete"]


async def test_events_can_be_read_from_any_number_on_while_the_turn_runs_and_after_it(runtime: Driver):
    await runtime.open()
    release = asyncio.Event()

    async def script(body, write):
        for n in range(5):
            await write(chunk({"content": str(n)}))
        await release.wait()
        await write(chunk({"content": "5"}, "stop") + DONE)

    runtime.gateway.scripts.append(script)
    async with (
        runtime.streaming("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}) as first,
        runtime.streaming("GET", "/sessions/sess_1/turns/req_a/events?after=3") as second,
    ):
        assert (await anext(second)).number == 4
        assert [(await anext(first)).number for _ in range(5)] == [1, 2, 3, 4, 5]
        release.set()
        assert [event.number async for event in first] == [6, 7]
        assert [event.number async for event in second] == [5, 6, 7]
    whole = await runtime.replay("req_a")
    assert [event.number for event in whole] == [1, 2, 3, 4, 5, 6, 7]
    assert await runtime.replay("req_a", after=5) == whole[5:]
    assert await runtime.replay("req_a", after=99) == []
    assert (await runtime.call("GET", "/sessions/sess_1/turns/req_a/events?after=-1"))[0] == 422
    assert (await runtime.call("GET", "/sessions/sess_1/turns/req_z/events"))[1]["code"] == "no_turn"


async def test_the_replay_is_what_the_checkpoint_kept_and_the_terminal_event(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.extend([calls(("todo", {"action": "list"}), text="well"), says("é😀 \u2028 line")])
    await runtime.stream(request_id="req_a")
    _, whole = await runtime.call_raw_stream("/sessions/sess_1/turns/req_a/events")
    kept = runtime.gateway.checkpoints[0]["events"].encode()
    assert whole.startswith(kept)
    assert whole[len(kept) :].startswith(
        b"id: req_a:%d\nevent: complete\n" % (runtime.gateway.checkpoints[0]["last_event"] + 1)
    )


async def test_usage_in_a_chunk_with_other_things_and_without_usage_is_fine(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.append(raw(chunk({"content": "x"}, "stop", usage={"prompt_tokens": 1}), DONE))
    assert (await runtime.ask())["status"] == "completed"
    runtime.gateway.scripts.append(raw(chunk({"content": "x"}), USAGE, chunk(finish="stop")))
    assert (await runtime.ask())["status"] == "completed"


async def test_a_turn_of_more_events_than_are_kept_fails(runtime: Driver, monkeypatch):
    monkeypatch.setattr("amplifier_api_server.runtime.events.TERMINAL_ROOM_BYTES", 8 * 1024 * 1024 - 20_000)
    await runtime.open()
    runtime.gateway.scripts.append(says(*["x" * 1000] * 50))
    result = await runtime.ask()
    assert (result["status"], result["problem"]["code"]) == ("failed", "turn_too_large")
    assert runtime.gateway.checkpoints[0]["messages"] == []
    assert (await runtime.ask())["status"] == "completed"


async def test_an_answer_that_is_not_streamed_is_taken_too(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.append(
        answers(200, {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]})
    )
    events = await runtime.stream()
    assert (text_of(events), events[-1].name) == ("whole", "complete")
