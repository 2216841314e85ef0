from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from tests.runtime.conftest import Driver
from tests.runtime.fake_gateway import calls, chunk, says


async def silent_after_a_token(body, write):
    await write(chunk({"content": "partial"}))
    await asyncio.Event().wait()


async def cancelled(runtime: Driver, request_id: str = "req_a", wait_for: int = 1):
    """Start a turn that would never end, wait for so many events, cancel it: all its events."""
    async with runtime.streaming("POST", f"/sessions/sess_1/turns/{request_id}", {"prompt": "x"}) as events:
        seen = [await anext(events) for _ in range(wait_for)]
        await runtime.cancel(request_id)
        seen += [event async for event in events]
        return seen


async def test_cancel_in_the_model_stream_ends_it_and_keeps_what_was_said(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.append(silent_after_a_token)
    events = await cancelled(runtime)
    assert events[-1].name == "error"
    async with asyncio.timeout(60):
        await runtime.gateway.stream_closed.wait()
    assert runtime.gateway.open_streams == 0
    (checkpoint,) = runtime.gateway.checkpoints
    assert checkpoint["status"] == "cancelled"
    assert checkpoint["messages"] == [{"role": "user", "content": "x"}, {"role": "assistant", "content": "partial"}]


async def test_a_session_goes_on_after_a_cancel_with_the_partial_answer_in_its_history(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.append(silent_after_a_token)
    await cancelled(runtime)
    result = await runtime.ask("and now?")
    assert (result["status"], result["response"]) == ("completed", "Hello world")
    assert [one["content"] for one in runtime.gateway.requests[-1]["messages"][1:]] == ["x", "partial", "and now?"]
    assert runtime.gateway.checkpoints[-1]["base"] == 2


async def test_cancel_before_the_first_token_leaves_a_closing_message(runtime: Driver):
    await runtime.open()
    asked = asyncio.Event()

    async def silent(body, write):
        asked.set()
        await asyncio.Event().wait()

    runtime.gateway.scripts.append(silent)
    turn = asyncio.create_task(runtime.ask(request_id="req_a"))
    await asked.wait()
    await runtime.cancel("req_a")
    await runtime.cancel("req_a")
    assert (await turn)["status"] == "cancelled"
    assert [one["role"] for one in runtime.gateway.checkpoints[0]["messages"]] == ["user", "assistant"]


async def test_cancel_in_bash_kills_what_it_started_and_pairs_the_call(runtime: Driver):
    await runtime.open()
    marker = f"{runtime.workspace}/pid"
    command = f"(setsid bash -c 'echo $$ > {marker}; exec sleep 300' &) ; while [ ! -s {marker} ]; do sleep 0.01; done; sleep 300"
    runtime.gateway.scripts.append(calls(("bash", {"command": command}), ("todo", {"action": "list"}), text="working"))
    async with runtime.streaming("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}) as events:
        await anext(events)
        while not Path(marker).exists() or not Path(marker).read_text():
            await asyncio.sleep(0.01)
        await runtime.cancel("req_a")
        rest = [event async for event in events]
    assert not _is_alive(int(Path(marker).read_text()))
    tool_calls = {(event.data["tool"], event.data["status"]) for event in rest if event.name == "tool_call"}
    assert ("bash", "failed") in tool_calls
    assert ("todo", "completed") in tool_calls
    messages = runtime.gateway.checkpoints[0]["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert messages[2]["content"] == "Error: cancelled"
    assert (await runtime.ask())["status"] == "completed"


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def stubborn_module(folder: Path, body: str, module: str = "tool_stubborn") -> None:
    """A collection `birds` with one tool `stubborn`, whose execute is `body`."""
    package = folder / "modules" / "stubborn" / f"amplifier_module_{module}"
    package.mkdir(parents=True)
    (folder / "profiles").mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "birds"\nversion = "1"\n[tool.amplifier.collection]\n')
    module_id = module.replace("_", "-")
    (folder / "profiles" / "watch.md").write_text(
        f"---\nprofile:\n  name: watch\n  extends: foundation:base\ntools:\n  - module: {module_id}\n---\nWatch.\n"
    )
    source = f"""
import asyncio
from amplifier_core import ToolResult
class Stubborn:
    name = "stubborn"
    description = "does not end"
    input_schema = {{"type": "object", "properties": {{}}}}
    async def execute(self, input):
{body}
async def mount(coordinator, config=None):
    await coordinator.mount("tools", Stubborn(), name="stubborn")
"""
    (package / "__init__.py").write_text(source)


async def test_a_tool_that_ignores_its_cancellation_is_abandoned(runtime: Driver):
    body = """
        deadline = asyncio.get_running_loop().time() + 300
        while asyncio.get_running_loop().time() < deadline:
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                pass
        return ToolResult(output="late")
"""
    stubborn_module(runtime.installed / "aaaa", body, "tool_stubborn_cancel")
    await runtime.open(profile="birds:watch", images=[{"name": "birds", "root": {"uri": "upload", "tree": "aaaa"}}])
    runtime.gateway.scripts.append(calls(("stubborn", {})))
    events = await cancelled(runtime)
    assert [event.data.get("status") for event in events[:2]] == ["started", "failed"]
    runtime.gateway.scripts.append(says("next"))
    assert (await runtime.ask())["response"] == "next"


async def test_a_tool_that_exits_the_process_only_fails(runtime: Driver):
    stubborn_module(runtime.installed / "aaaa", "        raise SystemExit(3)\n", "tool_stubborn_exit")
    await runtime.open(profile="birds:watch", images=[{"name": "birds", "root": {"uri": "upload", "tree": "aaaa"}}])
    runtime.gateway.scripts.extend([calls(("stubborn", {})), says("survived")])
    result = await runtime.ask()
    assert result["response"] == "survived"
    assert "exit" in result["tool_calls"][0]["error"]


async def test_an_orchestrator_that_ignores_the_cancel_costs_its_session_object_but_not_the_session(runtime: Driver):
    await runtime.open()
    await runtime.ask("first")
    assert runtime.app is not None
    session = runtime.app._sessions.get("sess_1")
    host = session._host
    assert host is not None
    release = asyncio.Event()

    async def stuck(*_, **__):
        await release.wait()
        return "late"

    host._coordinator.get("orchestrator").execute = stuck
    turn = asyncio.create_task(runtime.ask("stuck", request_id="req_a"))
    while session.running is None:
        await asyncio.sleep(0.01)
    await runtime.cancel("req_a")
    assert (await turn)["status"] == "cancelled"
    assert (await runtime.ask("again"))["status"] == "completed"
    assert session._host is not host
    contents = [one["content"] for one in runtime.gateway.requests[-1]["messages"][1:]]
    assert contents == ["first", "Hello world", "stuck", "(This turn was cancelled.)", "again"]
    release.set()
    await asyncio.sleep(0.05)


async def test_a_turn_that_takes_too_long_fails_and_is_rolled_back(unclaimed: Driver):
    await unclaimed.claim(turn_timeout_seconds=0.3)
    await unclaimed.open()
    unclaimed.gateway.scripts.append(silent_after_a_token)
    result = await unclaimed.ask()
    assert (result["status"], result["problem"]["code"]) == ("failed", "turn_timeout")
    assert unclaimed.gateway.checkpoints[0]["messages"] == []
    await unclaimed.ask("next")
    assert [one["content"] for one in unclaimed.gateway.requests[-1]["messages"][1:]] == ["next"]


async def test_closing_a_session_ends_its_turn(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.append(silent_after_a_token)
    async with runtime.streaming("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}) as events:
        await anext(events)
        assert (await runtime.call_raw("DELETE", "/sessions/sess_1"))[0] == 204
        assert [event.name async for event in events] == ["error"]
    assert (await runtime.call("POST", "/sessions/sess_1/turns/req_b", {"prompt": "x"}))[1]["code"] == "no_session"
    assert runtime.gateway.open_streams == 0


async def test_stopping_the_runtime_fails_running_turns_by_name_and_takes_no_more(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.append(silent_after_a_token)
    assert runtime.app is not None
    async with runtime.streaming("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}) as events:
        await anext(events)
        await runtime.app.stop()
        (last,) = [event async for event in events]
    assert (last.name, last.data["code"]) == ("error", "runtime_stopping")
    assert runtime.gateway.checkpoints[0]["failure"]["code"] == "runtime_stopping"
    status, failure = await runtime.call("PUT", "/sessions/sess_2", {"profile": "foundation:base"})
    assert (status, failure["code"]) == (503, "runtime_stopping")


@pytest.mark.parametrize("moment", range(6))
async def test_a_cancel_at_any_moment_leaves_a_valid_transcript(runtime: Driver, moment: int):
    await runtime.open()
    runtime.gateway.default = says("late")
    runtime.gateway.scripts.extend([calls(("bash", {"command": "sleep 0.02"})), says("a", "b")])
    turn = asyncio.create_task(runtime.ask(request_id="req_a"))
    await asyncio.sleep(moment * 0.012)
    status, _ = await runtime.call("POST", "/sessions/sess_1/turns/req_a/cancel")
    result = await turn
    assert status in (202, 404)
    assert result["status"] in ("cancelled", "completed")
    messages = runtime.gateway.checkpoints[0]["messages"]
    assert messages[-1]["role"] == "assistant"
    called = [call["id"] for one in messages for call in one.get("tool_calls", [])]
    assert called == [one["tool_call_id"] for one in messages if one["role"] == "tool"]
    assert (await runtime.ask())["status"] == "completed"
    assert json.dumps(runtime.gateway.checkpoints[-1]["messages"])
    assert os.path.isdir(runtime.workspace / "sess_1")


async def test_closing_a_session_whose_checkpoint_hangs_still_ends_every_reader(runtime: Driver, monkeypatch):
    monkeypatch.setattr("amplifier_api_server.runtime.sessions.CLOSE_TURN_SECONDS", 0.1)
    await runtime.open()
    runtime.gateway.checkpoint_gate = asyncio.Event()
    async with runtime.streaming("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}) as events:
        assert [(await anext(events)).name for _ in range(2)] == ["token", "token"]
        while not runtime.gateway.open_checkpoints:
            await asyncio.sleep(0.01)
        assert (await runtime.call_raw("DELETE", "/sessions/sess_1"))[0] == 204
        (last,) = [event async for event in events]
    assert (last.name, last.data["code"]) == ("error", "not_durable")
