"""Orchestrators, providers and contexts from outside: what they tell by hooks reaches the turn, what they leave out is
made up, and what they forget is recorded all the same.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.runtime import turns
from amplifier_api_server.runtime.bridge import failure_of
from amplifier_api_server.runtime.protocol import TurnStatus
from tests.runtime.fake_gateway import calls, says
from tests.runtime.foreign import CONTEXT, HOOK, LOOP, PROVIDER, TOOLS
from tests.runtime.hosting import Hosted, brain, events, hosted, plan, results, tokens, tool_events


@pytest.fixture
async def session() -> AsyncIterator[Hosted]:
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        async with hosted(Path(folder)) as one:
            for module_id, code in (
                ("loop-outside", LOOP),
                ("provider-outside", PROVIDER),
                ("tool-outside", TOOLS),
                ("context-outside", CONTEXT),
                ("hooks-outside", HOOK),
            ):
                one.module(module_id, code)
            yield one


def with_parts(**parts: Any) -> dict[str, Any]:
    """A plan with a loop, a context, providers or hooks from outside; each is its configuration."""
    made = plan(tools=[{"module": "tool-outside", "config": {}}])
    if "loop" in parts:
        made["session"]["orchestrator"] = {"module": "loop-outside", "config": parts["loop"]}
    if "context" in parts:
        made["session"]["context"] = {"module": "context-outside", "config": parts["context"]}
    if "provider" in parts:
        made["providers"] = [{"module": "provider-outside", "config": parts["provider"]}]
    if "hook" in parts:
        made["hooks"] = [{"module": "hooks-outside", "config": parts["hook"]}]
    return made


def status(turn: Any) -> TurnStatus:
    assert turn.result is not None
    found: TurnStatus = turn.result.status
    return found


# Tokens


@pytest.mark.parametrize("loop", [None, {}])
@pytest.mark.parametrize("streams", [True, False])
async def test_a_foreign_providers_text_is_shown_once_and_its_thinking_is_not(
    session: Hosted, loop: dict[str, Any] | None, streams: bool
):
    parts: dict[str, Any] = {"provider": {"streams": streams}} | ({} if loop is None else {"loop": loop})
    await session.open(with_parts(**parts))
    turn = await session.ask()
    assert status(turn) is TurnStatus.COMPLETED
    assert tokens(turn) == "from outside"
    assert turn.result is not None
    assert turn.result.response == "from outside"


async def test_a_text_that_nobody_told_is_shown_at_the_end(session: Hosted):
    await session.open(with_parts(loop={"emits_blocks": False}, provider={}))
    assert [name for name, _ in events(await session.ask())] == ["token", "complete"]


async def test_our_provider_under_a_foreign_loop_shows_its_tokens_once(session: Hosted):
    session.gateway.default = says("one ", "two")
    await session.open(with_parts(loop={}))
    assert [data["content"] for name, data in events(await session.ask()) if name == "token"] == ["one ", "two"]


@pytest.mark.parametrize("loop", [None, {}])
async def test_a_turn_says_why_its_answer_ended_whosever_its_modules_are(session: Hosted, loop: dict[str, Any] | None):
    parts: dict[str, Any] = {"provider": {"finish_reason": "max_tokens"}} | ({} if loop is None else {"loop": loop})
    await session.open(with_parts(**parts))
    await session.ask()
    assert session.gateway.checkpoints[0]["finish_reason"] == "length"


async def test_our_provider_beside_a_foreign_one_shows_its_tokens_once(session: Hosted):
    session.gateway.default = says("one ", "two")
    made = with_parts()
    made["providers"].append({"module": "provider-outside", "config": {"streams": True}})
    await session.open(made)
    assert tokens(await session.ask()) == "one two"


@pytest.mark.parametrize("loop", [None, {}])
async def test_what_a_hook_asks_a_model_for_after_the_answer_is_not_shown(session: Hosted, loop: dict[str, Any] | None):
    session.gateway.default = brain(lead=says("answer"), namer=says("A name"))
    hook = {"asks": True, "events": ["orchestrator:complete"]}
    await session.open(with_parts(hook=hook) if loop is None else with_parts(loop=loop, hook=hook))
    turn = await session.ask()
    assert len(session.gateway.requests) == 2
    assert tokens(turn) == "answer"


# Tool calls


@pytest.mark.parametrize("with_ids", [True, False])
async def test_a_foreign_loops_tool_calls_are_events_of_the_turn(session: Hosted, with_ids: bool):
    def answer(body: dict[str, Any]) -> Any:
        if results(body):
            return says("done")
        return calls(
            ("echo", {"say": "slow", "wait": 0.1}),
            ("echo", {"say": "fast"}),
            ("break", {}),
            ("echo", {"refuse": {"message": "no"}}),
        )

    session.gateway.default = brain(lead=answer)
    await session.open(with_parts(loop={"with_ids": with_ids}))
    turn = await session.ask()
    ended = {one.call_id: one for one in turn.turn.tool_calls}
    assert len(ended) == 4
    assert sorted((one.tool, one.status, one.output or one.error) for one in ended.values()) == [
        ("break", "failed", "broken"),
        ("echo", "completed", "fast"),
        ("echo", "completed", "slow"),
        ("echo", "failed", "no"),
    ]
    for one in tool_events(turn):
        if one["status"] == "started" and one["input"].get("say"):
            assert ended[one["call_id"]].output == one["input"]["say"]
    assert tokens(turn) == "done"


async def test_a_call_that_a_hook_denies_did_not_run_and_is_not_shown(session: Hosted):
    def answer(body: dict[str, Any]) -> Any:
        return says("done") if results(body) else calls(("echo", {"say": "x"}))

    session.gateway.default = brain(lead=answer)
    await session.open(with_parts(loop={}, hook={"action": "deny"}))
    turn = await session.ask()
    assert tool_events(turn) == []
    assert status(turn) is TurnStatus.COMPLETED


async def test_an_approval_that_nobody_answers_is_denied(session: Hosted):
    session.claim = session.claim.model_copy(update={"approval_timeout_seconds": 0.05})

    def answer(body: dict[str, Any]) -> Any:
        return says(results(body)[0]) if results(body) else calls(("echo", {"say": "x"}))

    session.gateway.default = brain(lead=answer)
    await session.open(with_parts(loop={}, hook={"action": "ask_user"}))
    turn = await session.ask()
    assert tokens(turn) == "denied"
    assert [one["status"] for one in tool_events(turn)] in ([], ["started", "failed"])


# Failures


async def test_a_foreign_loops_failed_model_call_says_why(session: Hosted):
    words = "Error code: 402 - {'code': 'quota_exceeded', 'detail': 'spent'}"
    await session.open(with_parts(loop={}, provider={"fails": [words]}))
    turn = await session.ask()
    assert status(turn) is TurnStatus.FAILED
    failure = session.gateway.checkpoints[-1]["failure"]
    assert (failure["code"], failure["detail"]) == ("quota_exceeded", words)
    assert session.gateway.checkpoints[-1]["messages"] == []
    assert await session.host.transcript() == []


async def test_an_error_that_a_foreign_loop_got_over_is_not_why_the_turn_fails(session: Hosted):
    await session.open(with_parts(loop={"tries": 2}, provider={"fails": ["first", "second"]}))
    await session.ask()
    assert session.gateway.checkpoints[-1]["failure"]["detail"] == "second"


@pytest.mark.parametrize(
    ("data", "code", "detail", "delay"),
    [
        (
            {"error": {"type": "RateLimitError", "msg": "slow down"}, "status_code": 429},
            "model_failed",
            "slow down",
            None,
        ),
        ({"error": {"type": "X", "msg": "no"}, "status_code": 402}, "quota_exceeded", "no", None),
        ({"error_message": "gone", "code": "model_not_found", "retry_after": 3}, "model_not_found", "gone", 3.0),
        ({"error": "plain words"}, "model_failed", "plain words", None),
        ({"error": {"type": "Odd"}}, "model_failed", "Odd", None),
        ({}, "model_failed", "the model call failed", None),
    ],
)
def test_every_shape_of_a_provider_error_is_read(data: dict[str, Any], code: str, detail: str, delay: float | None):
    failure = failure_of(data)
    assert (failure.code, failure.detail, failure.retry_after_seconds) == (code, detail, delay)


async def test_a_hook_that_raises_stops_nothing(session: Hosted):
    def answer(body: dict[str, Any]) -> Any:
        return says("done") if results(body) else calls(("echo", {"say": "x"}))

    session.gateway.default = brain(lead=answer)
    await session.open(with_parts(hook={"raises": True, "events": ["tool:pre", "tool:post", "orchestrator:complete"]}))
    turn = await session.ask()
    assert (status(turn), tokens(turn)) == (TurnStatus.COMPLETED, "done")


# Cancelling


@pytest.fixture
def patient(monkeypatch):
    """A loop that comes back is waited for, however slow the machine is."""
    monkeypatch.setattr(turns, "CUT_SECONDS", 60.0)


async def test_a_foreign_loop_that_does_not_come_back_is_left_behind(session: Hosted):
    session.gateway.default = brain(lead=calls(("echo", {"wait": 600})))
    await session.open(with_parts(loop={}))
    turn, task = session.start("wait")
    async with asyncio.timeout(60):
        while not tool_events(turn):
            await asyncio.sleep(0.01)
    turn.cancel()
    async with asyncio.timeout(50):
        await task
    assert (status(turn), turn.host_is_lost) == (TurnStatus.CANCELLED, True)
    assert [one.status for one in turn.turn.tool_calls] == ["failed"]
    assert [message["role"] for message in turn.after] == ["user", "assistant"]


async def test_a_transcript_that_a_foreign_loop_left_open_is_closed(session: Hosted):
    release = asyncio.Event()

    async def answer(body: dict[str, Any], write: Any) -> None:
        if results(body):
            release.set()
            await asyncio.sleep(0.2)
        await calls(("echo", {"say": "x"}))(body, write)

    session.gateway.default = answer
    await session.open(with_parts(loop={}))
    turn, task = session.start("work")
    await asyncio.wait_for(release.wait(), 60)
    turn.cancel()  # the loop sees it after its model call and returns without a word
    await task
    assert status(turn) is TurnStatus.CANCELLED
    assert [message["role"] for message in turn.after] == ["user", "assistant", "tool", "assistant"]


async def test_a_child_of_a_foreign_loop_ends_with_its_turn(session: Hosted, patient):
    asked = asyncio.Event()

    async def helper(body: dict[str, Any], write: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    given = {"agent": "helper", "instruction": "Go."}
    session.gateway.default = brain(lead=calls(("delegate", given)), helper=helper)
    made = with_parts(loop={})
    made["tools"] = [{"module": "tool-delegate", "config": {}}]
    await session.open(made)
    turn, task = session.start()
    await asyncio.wait_for(asked.wait(), 60)
    turn.cancel()
    async with asyncio.timeout(50):  # less than one that does not come back is waited for
        await task
    assert status(turn) is TurnStatus.CANCELLED
    assert [one.status for one in turn.turn.tool_calls] == ["failed"]
    assert session.host.state() == {}
    await asyncio.wait_for(session.gateway.stream_closed.wait(), 60)


async def test_cancelling_a_foreign_loop_in_its_model_call_ends_that_call(session: Hosted, patient):
    asked = asyncio.Event()

    async def lead(body: dict[str, Any], write: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    session.gateway.default = lead
    await session.open(with_parts(loop={}))
    turn, task = session.start()
    await asyncio.wait_for(asked.wait(), 60)
    turn.cancel()
    async with asyncio.timeout(50):  # less than one that does not come back is waited for
        await task
    assert status(turn) is TurnStatus.CANCELLED
    await asyncio.wait_for(session.gateway.stream_closed.wait(), 60)


# Contexts


async def test_what_a_foreign_context_forgets_is_recorded_all_the_same(session: Hosted):
    session.gateway.default = says("ok")
    await session.open(with_parts(context={"keep": 2}))
    for number in range(4):
        turn = await session.ask(f"question {number}")
        assert status(turn) is TurnStatus.COMPLETED
        assert not turn.host_is_lost
    told = [(one["base"], [message["content"] for message in one["messages"]]) for one in session.gateway.checkpoints]
    assert told == [(2 * number, [f"question {number}", "ok"]) for number in range(4)]
    assert len(turn.after) == 8
    assert len(await session.host.messages()) == 3


async def test_a_failed_turn_gives_a_foreign_context_its_whole_transcript_back(session: Hosted):
    session.gateway.default = says("ok")
    await session.open(with_parts(context={"keep": 2}))
    turns = [await session.ask(str(number)) for number in range(3)]
    session.gateway.checkpoint_answers.append(409)
    assert status(await session.ask("lost")) is TurnStatus.FAILED
    assert await session.host.messages() == turns[-1].after
    again = await session.ask("more")
    assert session.gateway.checkpoints[-1]["base"] == 6
    assert len(again.after) == 8


async def test_messages_that_are_objects_become_json(session: Hosted):
    session.gateway.default = says("ok")
    await session.open(with_parts(context={"objects": True}))
    turn = await session.ask("first")
    assert [(one["role"], one["content"]) for one in turn.after] == [("user", "first"), ("assistant", "ok")]
    await session.open(with_parts(context={"objects": True}), transcript=turn.after)
    assert len((await session.ask("second")).after) == 4


async def test_a_context_that_takes_no_attribute_still_works(session: Hosted):
    session.gateway.default = says("ok")
    await session.open(with_parts(context={"slots": True}))
    await session.ask("first")
    assert len((await session.ask("second")).after) == 4
