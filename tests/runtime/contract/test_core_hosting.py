"""What amplifier-core 2.0.2 does that children, the bridge and quiet work rely on."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from amplifier_core import HookResult, ToolResult

from tests.runtime.contract.core import bare_session, core_session

_mark: ContextVar[str] = ContextVar("mark", default="none")


async def test_an_orchestrator_and_the_hooks_that_it_tells_see_the_callers_context():
    seen: list[str] = []

    async def note(event: str, data: dict[str, Any]) -> None:
        seen.append(_mark.get())

    async def tell(prompt: str, context: Any, coordinator: Any) -> str:
        seen.append(_mark.get())
        _mark.set("inner")
        await coordinator.hooks.emit("x:y", {})
        return "ok"

    session = await core_session(tell)
    session.coordinator.hooks.register("x:y", note, name="note")
    _mark.set("outer")
    await session.execute("x")
    assert seen == ["outer", "inner"]
    await session.cleanup()


async def test_a_hook_that_denies_is_the_last_one_that_is_told():
    told: list[str] = []

    async def deny(event: str, data: dict[str, Any]) -> HookResult:
        told.append("deny")
        return HookResult(action="deny", reason="no")

    async def late(event: str, data: dict[str, Any]) -> None:
        told.append("late")

    session = await core_session()
    session.coordinator.hooks.register("tool:pre", late, priority=100, name="late")
    session.coordinator.hooks.register("tool:pre", deny, priority=1, name="deny")
    await session.coordinator.hooks.emit("tool:pre", {})
    assert told == ["deny"]
    await session.cleanup()


async def test_a_coordinator_lists_its_capabilities_and_hands_out_its_configuration_itself():
    session = bare_session()
    session.coordinator.register_capability("x.y", 1)
    assert "x.y" in session.coordinator.to_dict()["capabilities"]
    session.coordinator.config["agents"] = {"a": 1}
    assert session.coordinator.config["agents"] == {"a": 1}


async def test_cancelling_a_session_cancels_the_children_that_were_registered():
    parent, child = await core_session(), await core_session()
    parent.coordinator.cancellation.register_child(child.coordinator.cancellation)
    await parent.coordinator.request_cancel(immediate=True)
    assert child.coordinator.cancellation.is_immediate
    await parent.cleanup()
    await child.cleanup()


async def test_a_failed_result_reaches_hooks_as_text_that_says_so():
    told: list[Any] = []

    async def note(event: str, data: dict[str, Any]) -> None:
        told.append(data["result"])

    session = await core_session()
    session.coordinator.hooks.register("tool:post", note, name="note")
    await session.coordinator.hooks.emit("tool:post", {"result": ToolResult(success=False, error={"message": "no"})})
    assert told == ["Error: no"]
    await session.cleanup()
