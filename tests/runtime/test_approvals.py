"""A person is asked: what waits is shown, an answer decides, and without one, or without the turn, it is a no."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from amplifier_core import HookResult

from amplifier_api_server.runtime import approvals, consent
from amplifier_api_server.runtime.failures import BadRequest, Conflicting, Missing
from amplifier_api_server.runtime.protocol import ApprovalAnswer, ApprovalEvent, TurnStatus
from amplifier_api_server.runtime.turns import RunningTurn
from tests.runtime.delegating import HELP, delegates
from tests.runtime.fake_gateway import calls, says
from tests.runtime.foreign import HOOK, LOOP, TOOLS
from tests.runtime.hosting import Hosted, brain, events, hosted, plan, results, text_of_message, tool_events

TODO = ("todo", {"action": "list"})
ASKS: dict[str, Any] = {"module": "hooks-approval", "config": {"tools": {"todo": {"require_approval": True}}}}


@pytest.fixture
async def session() -> AsyncIterator[Hosted]:
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        async with hosted(Path(folder)) as one:
            one.gateway.default = brain(lead=asks_once)
            yield one


def asks_once(body: dict[str, Any]) -> Any:
    return says(results(body)[-1]) if results(body) else calls(TODO)


def asking(**config: Any) -> dict[str, Any]:
    return plan(hooks=[{"module": "hooks-approval", "config": {**ASKS["config"], **config}}])


def shown(turn: RunningTurn) -> list[dict[str, Any]]:
    return [data for name, data in events(turn) if name == "approval"]


async def waiting(turn: RunningTurn, count: int = 1) -> list[ApprovalEvent]:
    """What waits, once there is as much."""
    async with asyncio.timeout(60):
        while len(turn.turn.approvals.waiting) < count:
            await asyncio.sleep(0.005)
    return turn.turn.approvals.waiting


async def answered(session: Hosted, prompt: str = "hi", **answer: Any) -> RunningTurn:
    """A turn whose one approval is answered so."""
    turn, task = session.start(prompt)
    (asked,) = await waiting(turn)
    turn.turn.approvals.answer(asked.approval_id, ApprovalAnswer(**answer))
    async with asyncio.timeout(60):
        await task
    return turn


async def told(session: Hosted, count: int) -> list[dict[str, Any]]:
    """What the control plane was told."""
    async with asyncio.timeout(60):
        while len(session.gateway.approvals) < count:
            await asyncio.sleep(0.005)
    return session.gateway.approvals


async def test_a_tool_that_needs_consent_waits_for_a_person_and_runs_when_allowed(session: Hosted):
    await session.open(asking())
    turn = await answered(session, choice="Allow once")
    requested, ended = shown(turn)
    assert (requested["status"], requested["tool"], requested["options"], requested["default"]) == (
        "requested",
        "todo",
        ["Allow once", "Allow always", "Deny"],
        "deny",
    )
    assert requested["prompt"].startswith("todo: ")
    assert ended == requested | {"status": "answered", "choice": "Allow once", "approved": True}
    assert [one["status"] for one in tool_events(turn)] == ["started", "completed"]
    assert tool_events(turn)[0]["call_id"] == requested["call_id"]
    names = [name for name, _ in events(turn)]
    assert names[:4] == ["tool_call", "approval", "approval", "tool_call"]
    assert [one["approval_id"] for one in await told(session, 1)] == [requested["approval_id"]]


async def test_a_denied_tool_fails_and_the_model_reads_that_a_person_said_no(session: Hosted):
    await session.open(asking())
    turn = await answered(session, approved=False)
    assert (shown(turn)[-1]["choice"], shown(turn)[-1]["approved"]) == ("Deny", False)
    assert tool_events(turn)[-1]["status"] == "failed"
    assert "denied" in results(session.gateway.requests[-1])[0]
    assert turn.result is not None
    assert turn.result.status is TurnStatus.COMPLETED


@pytest.mark.parametrize("default", ["deny", "allow"])
async def test_what_nobody_answers_is_denied_whatever_the_hook_would_do_then(session: Hosted, default: str):
    session.claim = session.claim.model_copy(update={"approval_timeout_seconds": 0.05})
    await session.open(asking(default_action=default))
    turn = await session.ask()
    assert [one["status"] for one in shown(turn)] == ["requested", "timed_out"]
    assert shown(turn)[-1]["approved"] is False
    assert tool_events(turn)[-1]["status"] == "failed"
    assert [one["status"] for one in await told(session, 2)] == ["requested", "timed_out"]


async def test_a_hooks_own_shorter_patience_holds(session: Hosted):
    await session.open(asking(approval_timeout=0.05))
    turn = await session.ask()
    assert (shown(turn)[0]["timeout_seconds"], shown(turn)[-1]["status"]) == (0.05, "timed_out")


async def test_a_cancelled_turn_waits_for_nobody_and_runs_nothing(session: Hosted):
    await session.open(asking())
    turn, task = session.start()
    (asked,) = await waiting(turn)
    turn.cancel()
    with pytest.raises(Conflicting, match="cancelled") as refused:
        turn.turn.approvals.answer(asked.approval_id, ApprovalAnswer(approved=True))
    assert refused.value.failure.code == "approval_closed"
    async with asyncio.timeout(60):
        await task
    assert [one["status"] for one in shown(turn)] == ["requested", "cancelled"]
    assert tool_events(turn)[-1]["status"] == "failed"
    assert turn.result is not None
    assert turn.result.status is TurnStatus.CANCELLED


async def test_a_turn_that_runs_out_of_time_while_it_waits_says_what_it_waited_for(session: Hosted):
    session.claim = session.claim.model_copy(update={"turn_timeout_seconds": 0.1})
    await session.open(asking())
    turn = await session.ask()
    failure = session.gateway.checkpoints[-1]["failure"]
    assert failure["code"] == "turn_timeout"
    assert shown(turn)[0]["approval_id"] in failure["detail"]
    assert [one["status"] for one in shown(turn)] == ["requested", "cancelled"]


async def test_of_two_answers_the_first_counts(session: Hosted):
    await session.open(asking())
    turn, task = session.start()
    (asked,) = await waiting(turn)
    turn.turn.approvals.answer(asked.approval_id, ApprovalAnswer(choice="Deny"))
    with pytest.raises(Conflicting, match="somebody answered it") as refused:
        turn.turn.approvals.answer(asked.approval_id, ApprovalAnswer(choice="Allow once"))
    assert refused.value.failure.code == "approval_closed"
    await task
    assert tool_events(turn)[-1]["status"] == "failed"


@pytest.mark.parametrize("answer", [{}, {"choice": "yes"}, {"choice": "Deny", "approved": True}])
async def test_an_answer_that_is_none_of_the_options_is_told_them_and_decides_nothing(session: Hosted, answer: Any):
    await session.open(asking())
    turn, task = session.start()
    (asked,) = await waiting(turn)
    with pytest.raises(BadRequest, match="'Allow once', 'Allow always', 'Deny'") as refused:
        turn.turn.approvals.answer(asked.approval_id, ApprovalAnswer(**answer))
    assert refused.value.failure.code == "invalid_choice"
    with pytest.raises(Missing):
        turn.turn.approvals.answer("apr_0", ApprovalAnswer(approved=True))
    turn.turn.approvals.answer(asked.approval_id, ApprovalAnswer(approved=True))
    await task
    assert shown(turn)[-1]["choice"] == "Allow once"


# What was allowed for good


async def test_what_was_allowed_for_good_is_not_asked_for_again_also_in_another_runtime(session: Hosted):
    await session.open(asking())
    await answered(session, choice="Allow always")
    turn = await session.ask()
    assert shown(turn) == []
    state = session.gateway.checkpoints[-1]["state"]
    await session.open(asking(), transcript=await session.host.transcript(), state=json.loads(json.dumps(state)))
    turn = await session.ask()
    assert (shown(turn), tool_events(turn)[-1]["status"]) == ([], "completed")


async def test_allowed_for_good_is_that_question_and_no_other(session: Hosted):
    def answer(body: dict[str, Any]) -> Any:
        asked = text_of_message(next(one for one in reversed(body["messages"]) if one["role"] == "user"))
        return says("done") if results(body) else calls(("todo", {"action": asked}))

    session.gateway.default = brain(lead=answer)
    await session.open(asking())
    await answered(session, "list", choice="Allow always")
    turn = await answered(session, "clear", choice="Deny")
    assert len(shown(turn)) == 2


async def test_a_long_question_is_cut_and_still_told_apart(session: Hosted):
    first, second = ("x" * 10_000 + end for end in "ab")
    assert len(consent.shown(first)) <= 4_000
    assert consent.shown(first) != consent.shown(second)


# Who else asks


async def test_a_childs_approval_is_in_its_parents_stream_with_its_agents_name(session: Hosted):
    session.gateway.default = brain(lead=delegates(HELP), helper=asks_once)
    made = asking()
    made["agents"]["helper"]["tools"] = [{"module": "tool-todo", "config": {}}]
    await session.open(made)
    turn = await answered(session, choice="Allow once")
    requested, ended = shown(turn)
    assert (requested["agent"], requested["tool"], ended["status"]) == ("helper", "todo", "answered")
    assert requested["agent_session_id"].endswith("_helper")
    started = next(one for one in tool_events(turn) if one.get("agent") == "helper")
    assert requested["call_id"] == started["call_id"]


async def test_a_childs_allow_always_holds_for_its_parent_too(session: Hosted):
    session.gateway.default = brain(
        lead=lambda body: calls(HELP_CALL) if not results(body) else asks_after(body), helper=asks_once
    )
    await session.open(asking())
    turn = await answered(session, choice="Allow always")
    assert len(shown(turn)) == 2
    own = [one for one in tool_events(turn) if one["tool"] == "todo" and "agent" not in one]
    assert own[-1]["status"] == "completed"


HELP_CALL = ("delegate", HELP)


def asks_after(body: dict[str, Any]) -> Any:
    return says("done") if len(results(body)) > 1 else calls(TODO)


async def test_a_tool_that_asks_by_itself_is_not_timed_out_meanwhile(session: Hosted):
    session.module(
        "tool-asks",
        """
        from amplifier_core import ToolResult

        async def mount(coordinator, config=None):
            await coordinator.mount("tools", Asks(coordinator), name="asks")

        class Asks:
            name, description, input_schema = "asks", "d", {"type": "object", "properties": {}}

            def __init__(self, coordinator):
                self.coordinator = coordinator

            async def execute(self, given):
                system = self.coordinator.approval_system
                return ToolResult(output=await system.request_approval("which?", ["left", "right"], 60, "deny"))
        """,
    )
    session.claim = session.claim.model_copy(update={"tool_timeout_seconds": 0.05})
    session.gateway.default = brain(lead=lambda body: says("ok") if results(body) else calls(("asks", {})))
    await session.open(plan(tools=[{"module": "tool-asks", "config": {}}]))
    turn, task = session.start()
    (asked,) = await waiting(turn)
    await asyncio.sleep(0.15)
    with pytest.raises(BadRequest, match="none of the options is a plain yes"):
        turn.turn.approvals.answer(asked.approval_id, ApprovalAnswer(approved=True))
    turn.turn.approvals.answer(asked.approval_id, ApprovalAnswer(choice="right"))
    await task
    assert (asked.tool, tool_events(turn)[-1]["output"]) == ("asks", "right")
    assert shown(turn)[-1]["approved"] is False  # core takes no such word for a yes


async def test_a_foreign_loops_hook_is_answered_by_a_person(session: Hosted):
    for module_id, code in (("loop-outside", LOOP), ("tool-outside", TOOLS), ("hooks-outside", HOOK)):
        session.module(module_id, code)
    session.gateway.default = brain(
        lead=lambda body: says(results(body)[0]) if results(body) else calls(("echo", {"say": "x"}))
    )
    made = plan(tools=[{"module": "tool-outside", "config": {}}], hooks=[])
    made["session"]["orchestrator"] = {"module": "loop-outside", "config": {}}
    made["hooks"] = [{"module": "hooks-outside", "config": {"action": "ask_user"}}]
    await session.open(made)
    turn = await answered(session, approved=True)
    assert turn.result is not None
    assert (turn.result.response, shown(turn)[0]["tool"]) == ("x", "echo")


async def test_a_foreign_approval_hook_gets_its_provider_and_a_silence_is_no_for_it(session: Hosted):
    session.module(
        "hooks-asking",
        """
        from amplifier_core import ApprovalRequest, HookResult

        async def mount(coordinator, config=None):
            held = []
            coordinator.register_capability("approval.register_provider", held.append)

            async def ask(event, data):
                request = ApprovalRequest(
                    tool_name=data["tool_name"], action="Execute it", details=data["tool_input"], risk_level="high",
                    timeout=(config or {}).get("timeout"),
                )
                response = await held[0].request_approval(request)
                return HookResult(action="continue" if response.approved else "deny", reason=response.reason)

            coordinator.hooks.register("tool:pre", ask, priority=-10, name="asking")
        """,
    )
    await session.open(plan(hooks=[{"module": "hooks-asking", "config": {}}]))
    turn = await answered(session, approved=True)
    assert shown(turn)[0]["prompt"] == 'todo: Execute it\n{"action":"list"}'
    assert tool_events(turn)[-1]["status"] == "completed"
    await session.open(plan(hooks=[{"module": "hooks-asking", "config": {"timeout": 0.05}}]))
    turn = await session.ask()
    assert tool_events(turn)[-1]["status"] == "failed"
    assert "nobody answered" in results(session.gateway.requests[-1])[0]


# Bounds


async def test_more_than_a_turn_may_ask_for_is_denied_without_asking(session: Hosted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(approvals, "MAX_WAITING_APPROVALS", 2)
    many = [("todo", {"action": "list", "n": number}) for number in range(4)]
    session.gateway.default = brain(lead=lambda body: says("ok") if results(body) else calls(*many))
    await session.open(asking())
    turn, task = session.start()
    asked = await waiting(turn, 2)
    async with asyncio.timeout(60):
        while [one["status"] for one in tool_events(turn)].count("failed") < 2:  # an answer makes room for one more
            await asyncio.sleep(0.005)
    for one in asked:
        turn.turn.approvals.answer(one.approval_id, ApprovalAnswer(approved=True))
    await task
    assert sorted(one["status"] for one in tool_events(turn) if one["status"] != "started") == [
        "completed",
        "completed",
        "failed",
        "failed",
    ]


async def test_options_that_can_not_be_shown_are_denied(session: Hosted):
    await session.open(plan())
    session.host.listen("tool:pre", _asks_with(["Allow", "x" * 1000]), 50)
    turn = await session.ask()
    assert (shown(turn), tool_events(turn)[-1]["status"]) == ([], "failed")


def _asks_with(options: list[str]) -> Any:
    async def handler(_: str, __: dict[str, Any]) -> HookResult:
        return HookResult(action="ask_user", approval_prompt="may it?", approval_options=options)

    return handler


async def test_a_control_plane_that_does_not_want_to_be_told_keeps_nobody_waiting(session: Hosted):
    session.gateway.approvals_status = 503
    await session.open(asking())
    turn = await answered(session, approved=True)
    assert turn.result is not None
    assert turn.result.status is TurnStatus.COMPLETED
