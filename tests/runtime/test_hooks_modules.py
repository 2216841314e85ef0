from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from amplifier_core import HookResult

from amplifier_api_server.runtime.modules import hooks_approval, hooks_logging, hooks_redaction


class Hooks:
    """As core's registry works: lower priorities first, a modified event goes on to the next."""

    def __init__(self) -> None:
        self.handlers: list[tuple[int, str, Any]] = []

    def register(self, event: str, handler: Any, priority: int = 0, name: str | None = None) -> Any:
        entry = (priority, event, handler)
        self.handlers.append(entry)
        return lambda: self.handlers.remove(entry)

    async def emit(self, event: str, data: dict[str, Any]) -> HookResult:
        result = HookResult(action="continue")
        for _, _, handler in sorted((one for one in self.handlers if one[1] == event), key=lambda one: one[0]):
            result = await handler(event, data)
            if result.action == "modify":
                data = result.data
            elif result.action != "continue":
                return result
        return result


class Coordinator:
    session_id = "sess_1"

    def __init__(self, folder: Path) -> None:
        self.hooks = Hooks()
        self.session_state: dict[str, Any] = {}
        self._folder = folder

    def get_capability(self, name: str) -> str | None:
        return str(self._folder) if name == "session.working_dir" else None


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ".amplifier" / "events.jsonl").read_text().splitlines()]


async def test_events_are_logged_in_the_sessions_folder_and_masked_there_alone(
    coordinator: Coordinator, tmp_path: Path
):
    await hooks_redaction.mount(coordinator)
    close = await hooks_logging.mount(coordinator)
    told = {"response": "mail a.b@example.com with sk-abcdefghijklmnopqrstuvwx"}
    await coordinator.hooks.emit("prompt:complete", told)
    await close()
    (line,) = lines(tmp_path)
    assert (line["event"], line["session_id"]) == ("prompt:complete", "sess_1")
    assert line["data"]["response"] == "mail [REDACTED:PII] with [REDACTED:SECRET]"
    assert "example.com" in told["response"]


async def test_what_goes_back_to_the_model_is_not_masked_unless_it_is_asked_for(tmp_path: Path):
    for config, masked in (({}, False), ({"skip_events": []}, True)):
        coordinator = Coordinator(tmp_path)
        await hooks_redaction.mount(coordinator, config)
        result = await coordinator.hooks.emit("tool:post", {"output": "AKIAABCDEFGHIJKLMNOP"})
        assert (result.action == "modify") is masked


async def test_what_the_allow_list_names_stays(coordinator: Coordinator):
    await hooks_redaction.mount(coordinator, {"allowlist": ["a.keep", "list[1]"]})
    result = await coordinator.hooks.emit(
        "prompt:complete", {"a": {"keep": "x@example.com", "mask": "x@example.com"}, "list": ["x@example.com"] * 2}
    )
    assert result.data["a"] == {"keep": "x@example.com", "mask": "[REDACTED:PII]"}
    assert result.data["list"] == ["[REDACTED:PII]", "x@example.com"]


async def test_a_rule_that_is_none_is_told_when_it_mounts(coordinator: Coordinator):
    with pytest.raises(ValueError, match="there are secrets"):
        await hooks_redaction.mount(coordinator, {"rules": ["everything"]})


async def test_the_log_never_follows_a_link_and_never_fails_a_turn(coordinator: Coordinator, tmp_path: Path):
    (tmp_path / ".amplifier").mkdir()
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / ".amplifier" / "events.jsonl").symlink_to(tmp_path / "elsewhere")
    close = await hooks_logging.mount(coordinator)
    assert (await coordinator.hooks.emit("tool:post", {"output": 1})).action == "continue"
    await close()
    assert (tmp_path / "elsewhere").read_text() == ""


async def test_a_full_log_becomes_the_old_one(coordinator: Coordinator, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(hooks_logging, "MAX_FILE_BYTES", 10)
    close = await hooks_logging.mount(coordinator)
    for number in range(3):
        await coordinator.hooks.emit("tool:post", {"output": number})
        while coordinator_writes(coordinator):
            await asyncio.sleep(0)
    await close()
    assert [line["data"]["output"] for line in lines(tmp_path)] == [2]
    assert '"output":1' in (tmp_path / ".amplifier" / "events.1.jsonl").read_text()


def coordinator_writes(coordinator: Coordinator) -> bool:
    return any(task.get_name() == "hooks-logging" and not task.done() for task in asyncio.all_tasks())


async def test_events_that_come_faster_than_the_disk_are_counted(coordinator: Coordinator, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(hooks_logging, "MAX_WAITING", 2)
    close = await hooks_logging.mount(coordinator)
    for number in range(5):
        await coordinator.hooks.emit("tool:post", {"output": number})
    while coordinator_writes(coordinator):
        await asyncio.sleep(0)
    await coordinator.hooks.emit("tool:post", {"output": "last"})
    await close()
    assert lines(tmp_path)[-1]["dropped_before"] == 3


async def decision(coordinator: Coordinator, tool: str, **given: Any) -> str:
    return (await coordinator.hooks.emit("tool:pre", {"tool_name": tool, "tool_input": given})).action


async def test_configuration_and_policies_say_which_tools_ask(coordinator: Coordinator):
    await hooks_approval.mount(
        coordinator, {"tools": {"bash": {"require_approval": False}, "web_fetch": {"require_approval": True}}}
    )
    assert await decision(coordinator, "bash", command="rm x") == "continue"
    assert await decision(coordinator, "web_fetch", url="x") == "ask_user"
    assert await decision(coordinator, "write_file", file_path="x") == "ask_user"
    assert await decision(coordinator, "read_file", file_path="x") == "continue"
    coordinator.session_state["require_approval_tools"] = {"read_file"}
    assert await decision(coordinator, "read_file", file_path="x") == "ask_user"


async def test_where_policies_alone_decide_nothing_else_asks(coordinator: Coordinator):
    await hooks_approval.mount(coordinator, {"policy_driven_only": True})
    assert await decision(coordinator, "bash", command="rm x") == "continue"


async def test_an_unmounted_hook_is_gone(coordinator: Coordinator):
    for module in (hooks_approval, hooks_redaction, hooks_logging):
        cleanup = await module.mount(coordinator)
        waited = cleanup()
        if waited is not None:
            await waited
    assert coordinator.hooks.handlers == []
