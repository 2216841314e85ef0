from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path

import pytest

from amplifier_api_server.runtime import memory
from tests.runtime.conftest import Driver
from tests.runtime.fake_gateway import calls, says

TODOS = [{"content": "feed the heron", "activeForm": "feeding", "status": "in_progress"}]


async def test_opening_is_idempotent_and_single_flight(runtime: Driver):
    body = {"profile": "foundation:base"}
    answers = await asyncio.gather(*(runtime.call("PUT", "/sessions/sess_1", body) for _ in range(5)))
    assert {status for status, _ in answers} == {201}
    assert len({json.dumps(opened) for _, opened in answers}) == 1
    assert (await runtime.call("PUT", "/sessions/sess_1", body))[0] == 200
    assert (await runtime.call("GET", "/health"))[1]["open_sessions"] == ["sess_1"]


async def test_a_session_opened_again_elsewhere_goes_on_with_transcript_plan_and_todo_list(runtime: Driver):
    opened = await runtime.open(context={"project": "heron"})
    runtime.gateway.scripts.extend([calls(("todo", {"action": "create", "todos": TODOS})), says("noted")])
    await runtime.ask("remember")
    checkpoint = runtime.gateway.checkpoints[0]
    assert checkpoint["state"] == {"todo_state": TODOS}
    await runtime.call_raw("DELETE", "/sessions/sess_1")
    again = await runtime.open(
        plan=opened["plan"], transcript=checkpoint["messages"], state=checkpoint["state"], turn_number=1
    )
    assert again == opened
    runtime.gateway.scripts.extend([calls(("todo", {"action": "list"})), says("it is there")])
    result = await runtime.ask("and?")
    assert result["tool_calls"][0]["output"]["todos"] == TODOS
    sent = runtime.gateway.requests[-1]["messages"]
    assert [one["role"] for one in sent] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
        "tool",
    ]
    assert '{"project":"heron"}' in sent[0]["content"]
    assert runtime.gateway.checkpoints[-1]["base"] == 4


async def test_the_callers_context_is_a_part_of_the_prompt_and_of_the_plan(runtime: Driver):
    opened = await runtime.open(context={"branch": "feature/auth", "n": [1, {"a": None}]})
    assert (
        '<session_context>\n{"branch":"feature/auth","n":[1,{"a":null}]}\n</session_context>'
        in opened["plan"]["system_prompt"]
    )
    status, failure = await runtime.call(
        "PUT", "/sessions/sess_2", {"profile": "foundation:base", "context": {"x": "y" * 100_001}}
    )
    assert (status, failure["code"]) == (422, "context_too_large")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"profile": "foundation:nope"}, 404, "profile_not_found"),
        ({"profile": "no:such"}, 404, "profile_not_found"),
        ({"profile": "../../etc/passwd"}, 404, "profile_not_found"),
        ({"profile": ""}, 404, "profile_not_found"),
        ({}, 422, "invalid_request"),
        ({"profile": "foundation:base", "plan": {}}, 422, "invalid_request"),
        ({"plan": {}}, 422, "plan_invalid"),
        ({"plan": {"version": 99}}, 422, "plan_invalid"),
        (
            {"profile": "foundation:base", "images": [{"name": "x", "root": {"uri": "u", "tree": "nope"}}]},
            404,
            "collection_not_found",
        ),
        (
            {"profile": "foundation:base", "images": [{"name": "x", "root": {"uri": "u", "tree": "../x"}}]},
            404,
            "collection_not_found",
        ),
        ({"profile": "foundation:base", "bogus": 1}, 422, "invalid_request"),
        ({"profile": 7}, 422, "invalid_request"),
        (b"{", 422, "invalid_request"),
        (b"[]", 422, "invalid_request"),
    ],
)
async def test_what_can_not_be_opened_says_why(runtime: Driver, body, status: int, code: str):
    answered, failure = await runtime.call("PUT", "/sessions/sess_1", body)
    assert (answered, failure["code"]) == (status, code)
    assert (await runtime.call("GET", "/health"))[1]["open_sessions"] == []


async def test_a_plan_with_a_module_that_is_not_there_says_which(runtime: Driver):
    plan = (await runtime.open())["plan"]
    plan["tools"] = [{"module": "tool-gone", "config": {}}]
    status, failure = await runtime.call("PUT", "/sessions/sess_2", {"plan": plan})
    assert (status, failure["code"]) == (422, "module_failed")
    assert "tool-gone" in failure["detail"]


async def test_each_session_works_in_a_folder_of_its_own(runtime: Driver):
    await runtime.open("sess_1")
    await runtime.open("sess_2")
    runtime.gateway.scripts.extend([calls(("write_file", {"file_path": "a.txt", "content": "one"})), says("x")])
    await runtime.ask(session_id="sess_1")
    runtime.gateway.scripts.extend([calls(("bash", {"command": "ls; pwd"})), says("x")])
    result = await runtime.ask(session_id="sess_2")
    assert result["tool_calls"][0]["output"]["stdout"] == f"{runtime.workspace}/sess_2\n"
    assert (runtime.workspace / "sess_1" / "a.txt").read_text() == "one"


async def test_the_state_of_a_failed_turn_is_rolled_back_with_its_transcript(runtime: Driver):
    await runtime.open(state={"todo_state": TODOS})
    from tests.runtime.fake_gateway import answers

    runtime.gateway.scripts.extend([calls(("todo", {"action": "create", "todos": []})), answers(500, b"")])
    assert (await runtime.ask())["status"] == "failed"
    assert runtime.gateway.checkpoints[0]["state"] == {"todo_state": TODOS}
    runtime.gateway.scripts.extend([calls(("todo", {"action": "list"})), says("x")])
    assert (await runtime.ask())["tool_calls"][0]["output"]["todos"] == TODOS


def resident_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


async def test_closing_500_sessions_gives_the_memory_back(runtime: Driver):
    plan = (await runtime.open())["plan"]
    transcript = [{"role": "user", "content": "x" * 100_000}, {"role": "assistant", "content": "y" * 100_000}]

    async def round_of(count: int) -> None:
        for number in range(count):
            session_id = f"sess_m{number}"
            await runtime.open(session_id, plan=plan, transcript=transcript)
            if number % 10 == 0:
                await runtime.ask(session_id=session_id)
            assert (await runtime.call_raw("DELETE", f"/sessions/{session_id}"))[0] == 204
        runtime.gateway.requests.clear()
        runtime.gateway.checkpoints.clear()
        gc.collect()
        memory.give_back()

    await round_of(50)
    before = resident_kb()
    await round_of(500)
    growth_kb = (resident_kb() - before) / 500
    assert growth_kb < 8, f"{growth_kb:.1f} KB a session stay"
