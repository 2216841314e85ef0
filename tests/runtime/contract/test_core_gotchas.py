"""What amplifier-core 2.0.2 does that a host must know: an upgrade that changes it fails here, not at a tenant's.

Each test is a trap that the runtime is built around; where it is stated for core alone, the next one shows our way around it.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import subprocess
import sys
import threading
import weakref
from typing import Any

import amplifier_core
import pytest
from amplifier_core import HookResult
from amplifier_core.events import ALL_EVENTS

from tests.runtime.conftest import Driver
from tests.runtime.contract.core import TableLoader, bare_session, core_session
from tests.runtime.fake_gateway import answers


def test_the_version_is_the_one_that_was_read():
    assert importlib.metadata.version("amplifier-core") == "2.0.2"


def test_the_session_class_is_the_rust_one():
    assert amplifier_core.AmplifierSession is amplifier_core.RustSession


# 1. Closed sessions are never freed by core itself.


async def test_core_alone_does_not_free_a_closed_session():
    session = await core_session()
    await session.execute("x")
    context = weakref.ref(session.coordinator.get("context"))
    await session.cleanup()
    del session
    gc.collect()
    assert context() is not None


async def test_a_session_that_the_host_closed_is_freed(runtime: Driver):
    await runtime.open()
    await runtime.ask()
    assert runtime.app is not None
    host = runtime.app._sessions.get("sess_1")._host
    assert host is not None
    held = [
        weakref.ref(one)
        for one in (host, host.port, host._coordinator.get("context"), host._coordinator.get("tools")["bash"])
    ]
    del host
    assert (await runtime.call_raw("DELETE", "/sessions/sess_1"))[0] == 204
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


# 2. Modules are global to the process: see test_collection_modules.


# 3. A failed tool, hook or provider only warns.


async def test_core_opens_a_session_whose_tool_did_not_mount():
    told: list[dict[str, Any]] = []

    async def note(event: str, data: dict[str, Any]) -> None:
        told.append(data)

    session = bare_session(tools={"tool-bad": None})
    session.coordinator.loader = TableLoader(
        {"loop-x": object(), "context-x": object(), "tool-bad": ValueError("broken")}
    )
    session.coordinator.hooks.register("module:load_failed", note, name="note")
    await session.initialize()
    assert [(one["module_type"], one["module_id"], one["error"]) for one in told] == [("tool", "tool-bad", "broken")]
    await session.cleanup()


async def test_core_ignores_a_loader_given_to_the_session_and_takes_the_coordinators():
    session = bare_session()
    session.coordinator.loader = loader = TableLoader({})
    assert session.coordinator.loader is loader


# 4. execute() raises a bare RuntimeError.


async def test_core_loses_the_cause_of_a_failed_execute():
    async def fail(prompt: str, context: Any, coordinator: Any) -> str:
        raise ValueError("why")

    session = await core_session(fail)
    with pytest.raises(RuntimeError, match="Execution failed: ValueError: why") as caught:
        await session.execute("x")
    assert type(caught.value) is RuntimeError
    assert caught.value.__cause__ is None
    await session.cleanup()


async def test_a_failed_turn_carries_code_and_retry_after_all_the_same(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.append(
        answers(402, {"code": "quota_exceeded", "detail": "spent", "retry_after_seconds": 9.5})
    )
    result = await runtime.ask()
    assert result["status"] == "failed"
    assert runtime.gateway.checkpoints[0]["failure"] == {
        "code": "quota_exceeded",
        "detail": "spent",
        "retry_after_seconds": 9.5,
    }


# 5. Cancelling the task of an execute orphans the orchestrator.


async def test_cancelling_cores_execute_does_not_reach_the_orchestrator():
    release, went_on = asyncio.Event(), asyncio.Event()

    async def wait(prompt: str, context: Any, coordinator: Any) -> str:
        await release.wait()
        went_on.set()
        return "late"

    session = await core_session(wait)
    task = asyncio.create_task(session.execute("x"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    await asyncio.wait_for(went_on.wait(), 60)
    await session.cleanup()


# 6. The cancel token stays set.


async def test_the_cancel_token_is_not_reset_between_turns():
    session = await core_session()
    await session.coordinator.request_cancel(immediate=True)
    await session.execute("x")
    assert session.coordinator.cancellation.is_cancelled
    session.coordinator.cancellation.reset()
    session.coordinator.reset_turn()
    assert not session.coordinator.cancellation.is_cancelled
    await session.cleanup()


# 7. Two executes interleave.


async def test_core_runs_two_executes_of_one_session_at_once():
    inside, release = [], asyncio.Event()

    async def slow(prompt: str, context: Any, coordinator: Any) -> str:
        inside.append(prompt)
        await release.wait()
        return prompt

    session = await core_session(slow)
    tasks = [asyncio.create_task(session.execute(prompt)) for prompt in ("a", "b")]
    while len(inside) < 2:
        await asyncio.sleep(0.001)
    release.set()
    assert await asyncio.gather(*tasks) == ["a", "b"]
    await session.cleanup()


# 8. Hooks.


async def test_a_lower_priority_hook_runs_first_and_an_exception_is_swallowed():
    session, order = await core_session(), []

    async def late(event: str, data: dict[str, Any]) -> None:
        order.append("late")

    async def early(event: str, data: dict[str, Any]) -> None:
        order.append("early")
        raise ValueError

    session.coordinator.hooks.register("tool:pre", late, priority=10, name="late")
    session.coordinator.hooks.register("tool:pre", early, priority=-10, name="early")
    result = await session.coordinator.hooks.emit("tool:pre", {"a": 1})
    assert order == ["early", "late"]
    assert result.action == "continue"
    await session.cleanup()


async def test_deny_beats_inject_and_modify():
    session = await core_session()

    async def deny(event: str, data: dict[str, Any]) -> HookResult:
        return HookResult(action="deny", reason="no")

    async def inject(event: str, data: dict[str, Any]) -> HookResult:
        return HookResult(action="inject_context", context_injection="x")

    session.coordinator.hooks.register("tool:pre", inject, priority=0, name="inject")
    session.coordinator.hooks.register("tool:pre", deny, priority=1, name="deny")
    assert (await session.coordinator.hooks.emit("tool:pre", {})).action == "deny"
    await session.cleanup()


async def test_unregister_by_name_takes_one_hook_of_that_name_whatever_its_event():
    session = await core_session()

    async def hook(event: str, data: dict[str, Any]) -> None: ...

    for event in ("tool:pre", "tool:post"):
        session.coordinator.hooks.register(event, hook, name="same")
    session.coordinator.hooks.unregister("same")
    left = [event for event, names in session.coordinator.hooks.list_handlers().items() if "same" in names]
    assert len(left) == 1
    await session.cleanup()


async def test_a_synchronous_hook_runs_on_another_thread_and_data_is_copied_as_json():
    session, seen = await core_session(), []
    given = {"deep": {"n": 1}}

    def hook(event: str, data: dict[str, Any]) -> None:
        seen.append((threading.get_ident(), data["deep"]))

    session.coordinator.hooks.register("tool:pre", hook, name="sync")
    await session.coordinator.hooks.emit("tool:pre", given)
    assert seen[0][0] != threading.get_ident()
    assert seen[0][1] == given["deep"]
    assert seen[0][1] is not given["deep"]
    await session.cleanup()


# 9. Streams of the kernel's own are no events that a list names.


def test_stream_block_events_are_not_among_all_events():
    assert not [event for event in ALL_EVENTS if event.startswith("llm:stream_block")]


async def test_tokens_pass_through_hooks_only_where_somebody_listens_for_them(runtime: Driver):
    await runtime.open()
    assert runtime.app is not None
    host = runtime.app._sessions.get("sess_1")._host
    assert host is not None
    seen: list[str] = []

    async def note(event: str, data: dict[str, Any]) -> None:
        seen.append(event)

    for event in [one for one in ALL_EVENTS if "delta" not in one and "stream" not in one]:
        host._coordinator.hooks.register(event, note, name=f"note-{event}")
    await runtime.ask()
    assert not [event for event in seen if "delta" in event or "stream" in event]
    assert {"prompt:submit", "execution:start", "provider:request", "llm:response", "execution:end"} <= set(seen)
    host._coordinator.hooks.register("llm:stream_block_delta", note, name="note-delta")
    await runtime.ask()
    assert "llm:stream_block_delta" in seen


# 10. A tool that blocks stalls the process: test_bash_tool and test_file_tools show that ours don't.


# 11. Approvals.


async def test_without_an_approval_system_every_approval_is_denied():
    session = await core_session()
    asked = HookResult(action="ask_user", approval_prompt="may I?")
    result = await session.coordinator.process_hook_result(asked, "tool:pre", "x")
    assert result.action == "deny"
    await session.cleanup()


async def test_only_an_allow_grants():
    class Says:
        def __init__(self, word: str) -> None:
            self.word = word

        async def request_approval(self, *_: Any, **__: Any) -> str:
            return self.word

    granted = {}
    for word in ("Allow", "Allow once", "Allow always", "yes", "Deny"):
        session = await core_session(approval_system=Says(word))
        asked = HookResult(action="ask_user", approval_prompt="may I?", approval_options=[word, "Deny"])
        granted[word] = (await session.coordinator.process_hook_result(asked, "tool:pre", "x")).action != "deny"
        await session.cleanup()
    assert granted == {"Allow": True, "Allow once": True, "Allow always": True, "yes": False, "Deny": False}


# 12. Threads.


def test_threads_start_with_the_first_awaited_engine_call_and_not_before():
    code = """
import asyncio, os
from tests.runtime.contract.core import *
count = lambda: len(os.listdir("/proc/self/task"))
async def main():
    session = bare_session()
    session.coordinator.loader = TableLoader({"loop-x": ScriptedLoop(answer), "context-x": ListContext()})
    before = count()
    await session.initialize()
    print(before, count() > before)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, cwd=".", check=False
    )
    assert done.stdout.split() == ["1", "True"], done.stderr


# 13. A silent model stream: test_turn_failures.


# What else the host relies on.


async def test_a_coordinator_takes_attributes_which_the_ecosystems_todo_tool_uses():
    session = await core_session()
    session.coordinator.todo_state = [1]
    assert session.coordinator.todo_state == [1]
    await session.cleanup()
