"""The loop with hooks of amplifier-core around it: what they hear, what they may change, and where a turn's limits are."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from amplifier_core import HookResult, ImageBlock, ToolResult

from amplifier_api_server.runtime.modules.loop_streaming import tool_calls
from tests.runtime.fake_gateway import Write, answers, calls, says
from tests.runtime.hosting import Hosted, hosted, plan, results, tokens, tool_events


@pytest.fixture
async def session() -> AsyncIterator[Hosted]:
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        async with hosted(Path(folder)) as one:
            yield one


def looped(module: str = "loop-streaming", providers: Any = None, **config: Any) -> dict[str, Any]:
    made = plan(tools=[{"module": "tool-todo", "config": {}}])
    made["session"]["orchestrator"] = {"module": module, "config": config}
    return made | ({"providers": providers} if providers else {})


def hook(session: Hosted, event: str, *given: HookResult | None) -> list[dict[str, Any]]:
    """Answer an event with each of `given`, then with nothing; what was heard."""
    heard: list[dict[str, Any]] = []
    waiting = list(given)

    async def handler(_: str, data: dict[str, Any]) -> HookResult:
        heard.append(data)
        answer = waiting.pop(0) if waiting else None
        if answer is not None and answer.action == "modify":
            return HookResult(action="modify", data={**data, **(answer.data or {})})
        return answer or HookResult(action="continue")

    session.host.listen(event, handler, 50)
    return heard


def tool(session: Hosted, name: str, result: Any) -> list[Any]:
    """A tool of the running session that answers `result`; what it was given."""
    seen: list[Any] = []

    class Tool:
        description = "d"

        async def execute(self, given: dict[str, Any]) -> Any:
            seen.append(given)
            return result

    made = Tool()
    made.name = name
    session.host._coordinator.mount_points["tools"][name] = made
    return seen


EVENTS = [
    "prompt:submit",
    "execution:start",
    "provider:request",
    "llm:request",
    "llm:response",
    "provider:response",
    "content_block:start",
    "content_block:end",
    "tool:pre",
    "tool:post",
    "execution:end",
    "prompt:complete",
    "orchestrator:complete",
]


@pytest.mark.parametrize("module", ["loop-streaming", "loop-basic"])
async def test_hooks_hear_of_a_turn_what_the_ecosystems_loops_tell(session: Hosted, module: str):
    await session.open(looped(module))
    order: list[str] = []
    heard: dict[str, Any] = {}

    async def handler(event: str, data: dict[str, Any]) -> None:
        order.append(event)
        heard[event] = data

    for event in EVENTS:
        session.host.listen(event, handler, 50)
    session.gateway.scripts.extend([calls(("todo", {"action": "list"}), text="well"), says("done")])
    await session.ask("go")
    asked = ["provider:request", "llm:request", "llm:response", "provider:response"]
    block = ["content_block:start", "content_block:end"]
    assert order == [
        *("prompt:submit", "execution:start"),
        *(*asked, *block, *block, "tool:pre", "tool:post"),
        *(*asked, *block),
        *("execution:end", "prompt:complete", "orchestrator:complete"),
    ]
    assert heard["prompt:complete"]["response"] == "done"
    assert heard["llm:response"]["usage"] == {"input_tokens": 5, "output_tokens": 7}
    assert heard["llm:request"]["model"] == "big"
    assert heard["provider:request"]["iteration"] == 2
    assert heard["tool:post"]["result"]["success"] is True
    told = heard["orchestrator:complete"]
    assert (told["orchestrator"], told["turn_count"], told["status"]) == (module, 2, "success")


async def test_a_hook_that_changes_a_tools_input_and_result_changes_what_the_tool_the_model_and_the_client_see(
    session: Hosted,
):
    await session.open(looped())
    seen = tool(session, "shout", ToolResult(output={"secret": "s3cret"}))
    hook(session, "tool:pre", HookResult(action="modify", data={"tool_input": {"safe": True}}))
    hook(session, "tool:post", HookResult(action="modify", data={"result": {"success": True, "output": "masked"}}))
    session.gateway.scripts.extend([calls(("shout", {"safe": False})), says("ok")])
    turn = await session.ask()
    assert seen == [{"safe": True}]
    assert results(session.gateway.requests[-1]) == ["masked"]
    assert tool_events(turn)[-1]["output"] == "masked"


async def test_a_denied_tool_is_not_run_and_the_model_reads_why(session: Hosted):
    await session.open(looped())
    seen = tool(session, "shout", "x")
    hook(session, "tool:pre", HookResult(action="deny", reason="not today"))
    session.gateway.scripts.extend([calls(("shout", {})), says("ok")])
    turn = await session.ask()
    assert seen == []
    assert "not today" in results(session.gateway.requests[-1])[0]
    assert tool_events(turn)[-1]["status"] == "failed"


async def test_a_person_who_is_asked_for_consent_has_more_time_than_the_tool(session: Hosted):
    session.claim = session.claim.model_copy(update={"tool_timeout_seconds": 0.05})
    await session.open(looped())
    seen = tool(session, "shout", "x")

    class Slow:
        async def request_approval(self, prompt: str, options: list[str], timeout: float, default: str) -> str:
            await asyncio.sleep(0.2)
            return "Allow"

    session.host._coordinator.approval_system = Slow()
    hook(session, "tool:pre", HookResult(action="ask_user", approval_prompt="may it?"))
    session.gateway.scripts.extend([calls(("shout", {})), says("ok")])
    await session.ask()
    assert seen == [{}]


@pytest.mark.parametrize("event", ["prompt:submit", "provider:request", "tool:post"])
async def test_an_ephemeral_injection_is_in_the_next_request_alone(session: Hosted, event: str):
    await session.open(looped())
    told = HookResult(action="inject_context", context_injection="think of the dog", ephemeral=True)
    hook(session, event, told)
    session.gateway.scripts.extend(
        [calls(("todo", {"action": "list"})), calls(("todo", {"action": "list"})), says("ok")]
    )
    await session.ask()
    holds = ["think of the dog" in str(one["messages"]) for one in session.gateway.requests]
    assert holds == ([False, True, False] if event == "tool:post" else [True, False, False])
    assert "think of the dog" not in str(session.gateway.checkpoints[-1]["messages"])


async def test_an_injection_may_stand_behind_the_last_tools_result(session: Hosted):
    await session.open(looped())
    told = HookResult(
        action="inject_context", context_injection="mind the dog", ephemeral=True, append_to_last_tool_result=True
    )
    hook(session, "tool:post", told)
    session.gateway.scripts.extend([calls(("todo", {"action": "list"})), says("ok")])
    await session.ask()
    last = session.gateway.requests[-1]["messages"][-1]
    assert last["role"] == "tool"
    assert last["content"].endswith("\n\nmind the dog")


async def test_a_lasting_injection_between_call_and_result_leaves_a_valid_request_and_transcript(session: Hosted):
    await session.open(looped())
    hook(
        session,
        "tool:pre",
        HookResult(action="inject_context", context_injection="remember me", context_injection_role="user"),
    )
    session.gateway.scripts.extend([calls(("todo", {"action": "list"})), says("ok")])
    await session.ask()
    roles = [one["role"] for one in session.gateway.requests[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "user"]
    kept = session.gateway.checkpoints[-1]["messages"]
    assert [one["role"] for one in kept].index("tool") == [one["role"] for one in kept].index("assistant") + 1


async def test_a_denied_prompt_fails_the_turn_by_name(session: Hosted):
    await session.open(looped())
    hook(session, "prompt:submit", HookResult(action="deny", reason="no"))
    turn = await session.ask()
    assert turn.result.problem["code"] == "prompt_denied"
    assert session.gateway.requests == []


async def test_a_denied_model_call_ends_the_turn_with_its_reason_and_keeps_what_was_done(session: Hosted):
    await session.open(looped())
    hook(session, "provider:request", None, HookResult(action="deny", reason="enough"))
    session.gateway.scripts.append(calls(("todo", {"action": "list"})))
    turn = await session.ask()
    assert (turn.result.status, turn.result.response) == ("completed", "Operation denied: enough")
    assert tokens(turn).endswith("Operation denied: enough")
    assert [one["role"] for one in session.gateway.checkpoints[-1]["messages"]] == [
        *("user", "assistant", "tool", "assistant")
    ]


async def test_at_the_step_limit_the_model_is_asked_for_an_answer_without_tools(session: Hosted):
    await session.open(looped(max_iterations=2))
    todo = calls(("todo", {"action": "list"}))
    session.gateway.scripts.extend([todo, todo, says("so far")])
    turn = await session.ask()
    assert (turn.result.status, turn.result.response) == ("completed", "so far")
    last = session.gateway.requests[-1]
    assert last["tool_choice"] == "none"
    assert "No more tools" in last["messages"][-1]["content"]
    assert "No more tools" not in str(session.gateway.checkpoints[-1]["messages"])


async def test_a_turn_over_its_own_time_wraps_up_at_its_next_step(session: Hosted):
    await session.open(looped(turn_timeout_seconds=0.001))
    session.gateway.scripts.extend([calls(("todo", {"action": "list"})), says("short")])
    turn = await session.ask()
    assert turn.result.response == "short"
    assert [one.get("tool_choice") for one in session.gateway.requests] == [None, "none"]


async def test_a_negative_step_limit_is_ours_and_not_none(session: Hosted):
    host = await session.open(looped(max_iterations=-1))
    assert host._coordinator.get("orchestrator")._max_iterations == 50


PROVIDERS = [
    {"module": "provider-openai", "config": {"default_model": "a", "priority": 20}},
    {"module": "provider-openai", "instance_id": "cheap", "config": {"default_model": "b", "priority": 30}},
    {"module": "provider-vllm", "config": {"default_model": "c", "priority": 10, "provider": "local"}},
]


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ({}, "local/c"),
        ({"default_provider": "openai"}, "a"),
        ({"default_provider": "provider-openai"}, "a"),
        ({"default_provider": "cheap"}, "b"),
        ({"default_provider": "missing"}, "local/c"),
        ({"provider_preferences": [{"provider": "missing", "model": "x"}, {"provider": "cheap", "model": "y"}]}, "y"),
    ],
)
async def test_a_turn_asks_the_provider_that_is_preferred(session: Hosted, config: dict[str, Any], model: str):
    await session.open(looped(providers=PROVIDERS, **config))
    await session.ask()
    assert session.gateway.requests[-1]["model"] == model


async def test_what_the_loop_says_of_thinking_reaches_the_provider(session: Hosted):
    await session.open(looped(reasoning_effort="low"))
    await session.ask()
    assert session.gateway.requests[-1]["reasoning_effort"] == "low"


async def test_a_request_that_a_provider_finds_too_long_is_made_again_from_a_smaller_view(session: Hosted):
    await session.open(looped())
    for number in range(6):
        session.gateway.scripts.append(says("x" * 2000))
        await session.ask(f"question {number}")
    too_long = "This model's maximum context length is 2000 tokens. However, you requested more."
    session.gateway.scripts.append(answers(400, {"error": {"message": too_long}}))

    async def model(body: dict[str, Any], write: Write) -> None:
        is_summary = "Below is the older part" in str(body["messages"][0])
        await says("a summary" if is_summary else "fits")(body, write)

    session.gateway.default = model
    turn = await session.ask("last")
    assert (turn.result.status, turn.result.response) == ("completed", "fits")
    refused, asked_for_summary, *_, sent = session.gateway.requests[6:]
    assert len(str(sent)) < len(str(refused))
    assert "Below is the older part" in str(asked_for_summary["messages"][0])
    assert "a summary" in str(sent["messages"][0])


async def test_cancelling_tells_hooks_and_runs_what_modules_asked_for(session: Hosted):
    await session.open(looped())
    asked = asyncio.Event()

    async def silent(body: dict[str, Any], write: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    session.gateway.scripts.append(silent)
    called = []

    async def callback() -> None:
        called.append(True)

    heard = [hook(session, event) for event in ("cancel:requested", "cancel:completed", "orchestrator:complete")]
    turn, task = session.start()
    await asked.wait()
    session.host._coordinator.cancellation.on_cancel(callback)
    turn.cancel()
    await task
    assert called
    assert [len(one) >= 1 for one in heard] == [True, True, True]
    assert heard[-1][-1]["status"] == "cancelled"


async def test_an_image_that_a_tool_shows_reaches_the_model_and_the_transcript(session: Hosted):
    await session.open(looped())
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}}
    tool(session, "look", ToolResult(output="a cat", content=[image]))
    session.gateway.scripts.extend([calls(("look", {})), says("a cat")])
    await session.ask()
    sent = session.gateway.requests[-1]["messages"]
    assert sent[-2] == {"role": "tool", "tool_call_id": "call_0", "content": "a cat"}
    assert sent[-1]["content"][0]["image_url"]["url"] == "data:image/png;base64,aGVsbG8="
    kept = next(one for one in session.gateway.checkpoints[-1]["messages"] if one["role"] == "tool")
    assert kept["content"][1]["source"]["data"] == "aGVsbG8="


def test_an_image_that_is_too_large_is_left_out_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tool_calls, "MAX_IMAGE_CHARS", 4)
    image = ImageBlock(source={"type": "base64", "media_type": "image/png", "data": "aGVsbG8="})
    content = tool_calls.content_of(ToolResult(output="x", content=[image.model_dump(exclude_none=True)]))
    assert [one["text"] for one in content] == ["x", tool_calls.IMAGE_LEFT_OUT]
