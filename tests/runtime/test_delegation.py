"""Delegating: an agent works on a task in a session of its own and answers once, whoever the caller is."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.runtime.host import Host
from amplifier_api_server.runtime.protocol import TurnStatus
from tests.runtime.delegating import HELP, delegates, outcome, running, spawn
from tests.runtime.fake_gateway import Script, answers, calls, says
from tests.runtime.hosting import (
    Hosted,
    brain,
    hosted,
    plan,
    results,
    text_of_message,
    tokens,
    tool_events,
    tool_names,
    who,
)


@pytest.fixture
async def session() -> AsyncIterator[Hosted]:
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        async with hosted(Path(folder)) as one:
            yield one


async def test_an_agent_works_in_a_session_of_its_own_and_answers_once(session: Hosted):
    session.gateway.default = brain(lead=delegates(HELP), helper=says("There ", "are three."))
    await session.open(plan())
    turn = await session.ask("How many files?")
    assert turn.result is not None
    assert turn.result.status is TurnStatus.COMPLETED
    told = outcome(turn)
    assert (told["response"], told["agent"], told["status"]) == ("There are three.", "helper", "success")
    child = next(body for body in session.gateway.requests if who(body) == "helper")
    assert [text_of_message(one) for one in child["messages"][1:]] == ["Count the files."]
    assert tokens(turn) == "done"


async def test_a_childs_model_calls_are_its_parents_turns(session: Hosted):
    session.gateway.default = brain(lead=delegates(HELP))
    await session.open(plan())
    await session.ask()
    assert session.gateway.turn_headers == ["req_1"] * 3


async def test_delegate_lists_the_agents_and_a_child_can_delegate_only_when_it_says_so(session: Hosted):
    planner = {**HELP, "agent": "planner"}
    session.gateway.default = brain(lead=delegates(HELP, planner))
    await session.open(plan())
    await session.ask()
    bodies = {who(body): body for body in session.gateway.requests}
    spec = next(tool["function"] for tool in bodies["lead"]["tools"] if tool["function"]["name"] == "delegate")
    assert "- helper: Helps." in spec["description"]
    assert "- planner: Plans." in spec["description"]
    assert tool_names(bodies["helper"]) == {"todo"}
    assert tool_names(bodies["planner"]) == {"todo", "delegate"}


async def test_what_the_plan_withholds_from_children_is_never_inherited(session: Hosted):
    session.gateway.default = brain(lead=delegates(HELP))
    await session.open(plan(spawn={"exclude_tools": ["tool-todo"]}))
    await session.ask()
    child = next(body for body in session.gateway.requests if who(body) == "helper")
    assert tool_names(child) == set()


async def test_a_childs_tool_calls_are_shown_as_its_own_and_are_in_no_result(session: Hosted):
    def helper(body: dict[str, Any]) -> Script:
        return says("ok") if results(body) else calls(("todo", {"action": "list"}))

    session.gateway.default = brain(lead=delegates(HELP), helper=helper)
    await session.open(plan())
    turn = await session.ask()
    shown = [(one["tool"], one["status"], one.get("agent")) for one in tool_events(turn)]
    assert shown == [
        ("delegate", "started", None),
        ("todo", "started", "helper"),
        ("todo", "completed", "helper"),
        ("delegate", "completed", None),
    ]
    started, ended = (one for one in tool_events(turn) if one["tool"] == "todo")
    assert started["call_id"] == ended["call_id"] != "call_0"
    assert started["agent_session_id"] == outcome(turn)["session_id"]
    assert [one.tool for one in turn.turn.tool_calls] == ["delegate"]


async def test_delegations_of_one_step_run_side_by_side(session: Hosted):
    both = asyncio.Barrier(2)

    async def helper(body: dict[str, Any], write: Any) -> None:
        async with asyncio.timeout(60):
            await both.wait()
        await says("ok")(body, write)

    session.gateway.default = brain(lead=delegates(HELP, HELP), helper=helper)
    await session.open(plan())
    turn = await session.ask()
    assert [one.status for one in turn.turn.tool_calls] == ["completed", "completed"]


async def test_an_agent_that_is_not_there_is_an_error_that_names_those_that_are(session: Hosted):
    session.gateway.default = brain(lead=delegates({**HELP, "agent": "nobody"}))
    await session.open(plan())
    turn = await session.ask()
    assert turn.turn.tool_calls[0].error == "there is no agent 'nobody'; there are: helper, planner, or 'self'"
    assert turn.result is not None
    assert turn.result.status is TurnStatus.COMPLETED


async def test_a_child_whose_model_call_fails_is_an_error_of_the_tool_and_not_of_the_turn(session: Hosted):
    session.gateway.default = brain(
        lead=delegates(HELP), helper=answers(400, {"code": "context_length_exceeded", "detail": "too long"})
    )
    await session.open(plan())
    turn = await session.ask()
    assert turn.result is not None
    assert turn.result.status is TurnStatus.COMPLETED
    assert "too long (context_length_exceeded)" in str(turn.turn.tool_calls[0].error)
    assert session.host.state() == {}


async def test_self_is_a_copy_with_the_same_prompt_as_deep_as_is_allowed(session: Hosted):
    config = {"features": {"self_delegation": {"max_depth": 1}}, "settings": {"exclude_tools": []}}

    def lead(body: dict[str, Any]) -> Script:
        return says(results(body)[0]) if results(body) else calls(("delegate", {**HELP, "agent": "self"}))

    session.gateway.default = brain(lead=lead)
    await session.open(plan(tools=[{"module": "tool-delegate", "config": config}]))
    turn = await session.ask()
    assert "'self' may delegate to 'self' 1 deep" in outcome(turn)["response"]


async def test_a_child_is_told_as_much_of_the_conversation_as_was_asked_for(session: Hosted):
    def lead(body: dict[str, Any]) -> Script:
        if results(body) or "first" in text_of_message(body["messages"][-1]):
            return says("noted")
        return calls(("delegate", {"agent": "helper", "instruction": "Go.", "context_depth": "all"}))

    session.gateway.default = brain(lead=lead)
    await session.open(plan())
    await session.ask("the first thing")
    await session.ask("the second thing")
    child = next(body for body in session.gateway.requests if who(body) == "helper")
    told = text_of_message(child["messages"][1])
    assert "USER: the first thing\n\nASSISTANT: noted\n\nUSER: the second thing" in told
    assert told.endswith("[YOUR TASK]\nGo.")


async def test_an_agents_prompt_and_task_hold_what_they_mention_of_the_folder(session: Hosted):
    agents = {"helper": {"description": "", "instruction": "You are the helper. Follow @RULES.md"}}
    session.gateway.default = brain(lead=delegates({**HELP, "instruction": "Read @notes.txt."}))
    await session.open(plan(agents=agents))
    (session.folder / "sess_1" / "RULES.md").write_text("Be brief.")
    (session.folder / "sess_1" / "notes.txt").write_text("Buy milk.")
    await session.ask()
    child = next(body for body in session.gateway.requests if who(body) == "helper")
    prompt, task = (text_of_message(one) for one in child["messages"][:2])
    assert '<context_file paths="@RULES.md">\nBe brief.\n</context_file>' in prompt
    assert "Buy milk." in task
    assert task.endswith("Read @notes.txt.")


# Callers as the ecosystem has them


async def test_a_caller_that_passes_everything_and_one_that_passes_next_to_nothing_are_served(session: Hosted):
    host = await session.open(plan())
    session.gateway.default = brain()
    async with running(session):
        whole = await host.capability("session.spawn")(
            agent_name="helper",
            instruction="x",
            parent_session=object(),
            agent_configs=host.agents,
            sub_session_id="0000000000000000-0123456789abcdef_helper",
            tool_inheritance={"inherit_tools": ["tool-todo"]},
            hook_inheritance={"exclude_hooks": []},
            orchestrator_config={"max_iterations": -1},
            parent_messages=[{"role": "user", "content": "before"}, {"role": "assistant", "content": "yes"}],
            provider_preferences=[{"provider": "openai", "model": "small"}],
            self_delegation_depth=0,
            session_metadata={"agent_name": "helper"},
            use_subprocess=False,
            something_new=1,
        )
        little = await host.capability("session.spawn")(agent_name="helper", instruction="y")
    assert whole["session_id"] == "0000000000000000-0123456789abcdef_helper"
    assert set(whole) >= {"output", "session_id", "status", "turn_count", "metadata"}
    assert little["session_id"].endswith("_helper")
    first, second = session.gateway.requests
    assert (first["model"], second["model"]) == ("small", "big")
    assert [text_of_message(one) for one in first["messages"][1:]] == ["before", "yes", "x"]
    assert tool_names(first) == {"todo"}


async def test_preferences_that_cannot_be_served_leave_the_parents_model(session: Hosted):
    host = await session.open(plan())
    session.gateway.default = brain()
    async with running(session):
        await spawn(host, provider_preferences=[{"provider": "nobody", "model": "x"}])
    assert session.gateway.requests[0]["model"] == "big"


async def test_task_is_the_older_name(session: Hosted):
    def lead(body: dict[str, Any]) -> Script:
        return says("done") if results(body) else calls(("task", {"agent": "helper", "instruction": "Go."}))

    session.gateway.default = brain(lead=lead)
    await session.open(plan(tools=[{"module": "tool-task", "config": {}}]))
    turn = await session.ask()
    child = next(body for body in session.gateway.requests if who(body) == "helper")
    assert [text_of_message(one) for one in child["messages"][1:]] == ["Go."]
    assert tool_names(child) == set()
    assert turn.turn.tool_calls[0].status == "completed"


# Memory


async def test_a_child_is_freed_after_its_turn(session: Hosted, monkeypatch: pytest.MonkeyPatch):
    held: list[weakref.ref[Any]] = []
    start = Host.start

    async def noted(self: Host, **more: Any) -> None:
        await start(self, **more)
        held.extend(weakref.ref(one) for one in (self, self.port, self._coordinator.get("context")))

    monkeypatch.setattr(Host, "start", noted)
    session.gateway.default = brain(lead=delegates(HELP, HELP))
    await session.open(plan())
    await session.ask()
    await session.host.children.close()
    gc.collect()
    assert len(held) == 9
    assert [ref() for ref in held[3:]] == [None] * 6
