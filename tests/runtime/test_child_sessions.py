"""Child sessions over time: resumed later and elsewhere, taken back with their turn, ended with it, and bounded."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.runtime import child_records, children, turns
from amplifier_api_server.runtime.children import ChildFailedError, ChildRefusedError, UnknownChildError
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
    tool_names,
    who,
)


@pytest.fixture
async def session() -> AsyncIterator[Hosted]:
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        async with hosted(Path(folder)) as one:
            yield one


# Resuming


def resumes(answer: str = "done") -> Any:
    """In the first turn delegate, in the next ones resume what was delegated."""

    def script(body: dict[str, Any]) -> Script:
        if results(body):
            return says(answer)
        asked = text_of_message(body["messages"][-1])
        if asked.startswith("resume "):
            return calls(("delegate", {"session_id": asked.removeprefix("resume "), "instruction": "And now?"}))
        return calls(("delegate", HELP))

    return script


def helper_counts(body: dict[str, Any]) -> Script:
    return says(f"I was asked {sum(one['role'] == 'user' for one in body['messages'])} times.")


async def test_a_child_goes_on_where_it_was(session: Hosted):
    session.gateway.default = brain(lead=resumes(), helper=helper_counts)
    await session.open(plan())
    first = outcome(await session.ask())
    again = outcome(await session.ask(f"resume {first['session_id']}"))
    assert again["response"] == "I was asked 2 times."
    assert (again["session_id"], again["agent"], again["turn_count"]) == (first["session_id"], "helper", 2)


async def test_a_child_goes_on_in_another_runtime(session: Hosted):
    def helper(body: dict[str, Any]) -> Script:
        if len(results(body)) == 0 and text_of_message(body["messages"][-1]) == "Count the files.":
            todos = [{"content": "count", "status": "pending"}]
            return calls(("todo", {"action": "create", "todos": todos}))
        if results(body):
            return says(results(body)[-1])
        return calls(("todo", {"action": "list"}))

    session.gateway.default = brain(lead=resumes(), helper=helper)
    await session.open(plan())
    turn = await session.ask()
    state = session.gateway.checkpoints[-1]["state"]
    assert list(state["children"]) == [outcome(turn)["session_id"]]
    assert len(json.dumps(state)) < 2000
    await session.open(plan(), transcript=turn.after, state=state)
    again = outcome(await session.ask(f"resume {outcome(turn)['session_id']}"))
    assert "count" in again["response"]


async def test_an_agent_that_the_plan_does_not_know_is_kept_whole(session: Hosted):
    agents = {"guest": {"instruction": "You are the guest.", "tools": [{"module": "tool-todo"}]}}
    session.gateway.default = brain(guest=helper_counts)
    host = await session.open(plan(tools=[]))
    async with running(session):
        made = await spawn(host, agent_name="guest", instruction="x", agent_configs=agents)
    state = host.state()
    host = await session.open(plan(tools=[]), state=state)
    async with running(session):
        again = await host.capability("session.resume")(sub_session_id=made["session_id"], instruction="y")
    assert again["output"] == "I was asked 2 times."
    assert tool_names(session.gateway.requests[-1]) == {"todo"}


async def test_resuming_what_is_not_there_says_what_to_do(session: Hosted):
    session.gateway.default = brain(lead=resumes())
    await session.open(plan())
    turn = await session.ask("resume nothing")
    assert "delegate anew" in str(turn.turn.tool_calls[0].error)


async def test_children_are_dropped_from_the_oldest_on(session: Hosted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child_records, "MAX_CHILDREN", 2)
    host = await session.open(plan())
    session.gateway.default = brain()
    async with running(session):
        made = [(await spawn(host))["session_id"] for _ in range(3)]
        assert list(host.state()["children"]) == made[1:]
        with pytest.raises(UnknownChildError, match="delegate anew"):
            await host.capability("session.resume")(sub_session_id=made[0], instruction="x")


async def test_a_child_that_has_grown_too_large_is_not_kept(session: Hosted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child_records, "MAX_CHILD_BYTES", 200)
    host = await session.open(plan())
    session.gateway.default = brain(helper=says("x" * 300))
    async with running(session):
        assert (await spawn(host))["status"] == "success"
    assert host.state() == {}


# Rollback and cancel


async def test_a_failed_turn_takes_its_childrens_turns_back(session: Hosted):
    failing = answers(400, {"code": "bad", "detail": "no"})

    def lead(body: dict[str, Any]) -> Script:
        if results(body) and "fail" in str(body["messages"][-1]):
            return failing
        return resumes()(body)

    session.gateway.default = brain(lead=lead, helper=helper_counts)
    await session.open(plan())
    first = outcome(await session.ask())
    kept = session.host.state()

    def fails_after(body: dict[str, Any]) -> Script:
        return failing if results(body) else resumes()(body)

    session.gateway.default = brain(lead=fails_after, helper=helper_counts)
    turn = await session.ask(f"resume {first['session_id']}")
    assert turn.result is not None
    assert turn.result.status is TurnStatus.FAILED
    assert session.host.state() == kept
    session.gateway.default = brain(lead=resumes(), helper=helper_counts)
    assert outcome(await session.ask(f"resume {first['session_id']}"))["response"] == "I was asked 2 times."


async def test_cancelling_a_turn_ends_its_children_at_once_and_leaves_them_as_they_were(session: Hosted, monkeypatch):
    monkeypatch.setattr(turns, "CUT_SECONDS", 60.0)  # however slow the machine is
    asked = asyncio.Event()

    async def helper(body: dict[str, Any], write: Any) -> None:
        await write(b": thinking\n\n")
        asked.set()
        await asyncio.Event().wait()

    session.gateway.default = brain(lead=delegates(HELP), helper=helper)
    await session.open(plan())
    turn, task = session.start()
    await asyncio.wait_for(asked.wait(), 60)
    turn.cancel()
    async with asyncio.timeout(60):
        await task
    assert turn.result is not None
    assert turn.result.status is TurnStatus.CANCELLED
    assert not turn.host_is_lost
    assert session.host.state() == {}
    await asyncio.wait_for(session.host.children.close(), 60)
    assert session.gateway.open_streams == 0
    session.gateway.default = brain(lead=delegates(HELP))
    assert outcome(await session.ask())["response"] == "ok"


async def test_a_child_ends_with_the_tool_call_that_it_is_for(session: Hosted):
    asked, gone = asyncio.Event(), asyncio.Event()

    async def helper(body: dict[str, Any], write: Any) -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()

    host = await session.open(plan())
    session.gateway.default = brain(helper=helper)
    async with running(session):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(spawn(host), 0.3)  # as a recipe's step does it
        assert asked.is_set()
        await asyncio.wait_for(gone.wait(), 60)


# Limits


async def test_delegation_goes_so_deep_and_no_deeper(session: Hosted):
    def planner(body: dict[str, Any]) -> Script:
        return says(results(body)[0]) if results(body) else calls(("delegate", {**HELP, "agent": "planner"}))

    session.gateway.default = brain(lead=delegates({**HELP, "agent": "planner"}), planner=planner)
    await session.open(plan())
    turn = await session.ask()
    assert "agents may delegate 3 deep" in outcome(turn)["response"]
    assert sum(who(body) == "planner" for body in session.gateway.requests) == 2 * children.MAX_DEPTH
    ids = list(session.host.state()["children"])
    assert (
        sorted(one["parent_id"] in (*ids, "sess_1") for one in session.host.state()["children"].values()) == [True] * 3
    )


async def test_only_so_many_children_are_alive_at_once(session: Hosted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(children, "MAX_AT_ONCE", 2)
    alive = most = 0

    async def helper(body: dict[str, Any], write: Any) -> None:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        await asyncio.sleep(0.02)
        alive -= 1
        await says("ok")(body, write)

    session.gateway.default = brain(lead=delegates(*[HELP] * 6), helper=helper)
    await session.open(plan())
    turn = await session.ask()
    assert [one.status for one in turn.turn.tool_calls] == ["completed"] * 6
    assert most <= 2


async def test_a_turn_delegates_only_so_often(session: Hosted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(children, "MAX_A_TURN", 1)
    host = await session.open(plan())
    session.gateway.default = brain()
    async with running(session):
        await spawn(host)
        with pytest.raises(ChildRefusedError, match="go on in the next one"):
            await spawn(host)
    async with running(session):
        await spawn(host)


async def test_a_child_is_ended_when_its_time_is_over(session: Hosted):
    async def helper(body: dict[str, Any], write: Any) -> None:
        await asyncio.Event().wait()

    host = await session.open(plan())
    session.gateway.default = brain(helper=helper)
    async with running(session):
        with pytest.raises(ChildFailedError, match=r"longer than 0\.2 s"):
            await spawn(host, limits={"max_seconds": 0.2})


async def test_a_child_is_ended_when_its_tokens_are_used_up(session: Hosted):
    host = await session.open(plan())
    session.gateway.default = brain(helper=calls(("todo", {"action": "list"})))
    async with running(session):
        with pytest.raises(ChildFailedError, match="used its 30 tokens up"):
            await spawn(host, limits={"max_tokens": 30})
    assert len(session.gateway.requests) == 3  # of 12 tokens each


async def test_a_child_takes_only_so_many_steps(session: Hosted):
    host = await session.open(plan())
    session.gateway.default = brain(helper=calls(("todo", {"action": "list"})))
    async with running(session):
        with pytest.raises(ChildFailedError, match="step_limit"):
            await spawn(host, limits={"max_steps": 2})
    assert len(session.gateway.requests) <= 3


async def test_a_tools_timeout_does_not_run_while_it_waits_for_a_child(session: Hosted):
    session.claim = session.claim.model_copy(update={"tool_timeout_seconds": 0.2})

    async def helper(body: dict[str, Any], write: Any) -> None:
        await asyncio.sleep(0.5)
        await says("late")(body, write)

    session.gateway.default = brain(lead=delegates(HELP), helper=helper)
    await session.open(plan())
    assert outcome(await session.ask())["response"] == "late"


async def test_nothing_is_spawned_outside_of_a_turn(session: Hosted):
    host = await session.open(plan())
    with pytest.raises(ChildRefusedError, match="no turn runs"):
        await spawn(host)
