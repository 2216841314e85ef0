"""The tool calls of one step: side by side, each with its events, its hooks, a timeout, and a result for the model.

Invariant: `run` gives exactly one result for each call, in their order, also when calls fail or the turn is cancelled.
What can't be helped: a tool that blocks the thread instead of awaiting stalls every session of the process, timeouts
included, until it returns or the control plane, which sees the runtime not answering, ends the sandbox. Ours never block.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from amplifier_core import HookResult, ToolCall, ToolResult

from amplifier_api_server.runtime.bounds import bounded_text
from amplifier_api_server.runtime.modules.loop_streaming.waiting import CancelledTurnError, until_cancelled
from amplifier_api_server.runtime.turn_port import CAPABILITY, Turn

log = logging.getLogger(__name__)

MAX_AT_ONCE = 16


class ToolCalls:
    def __init__(self, turn: Turn, tools: dict[str, Any], coordinator: Any) -> None:
        self._turn = turn
        self._tools = tools
        self._coordinator = coordinator
        self._timeout_seconds = coordinator.get_capability(CAPABILITY).services.claim.tool_timeout_seconds
        self._free = asyncio.Semaphore(MAX_AT_ONCE)

    async def run(self, calls: Sequence[ToolCall]) -> tuple[list[str], bool]:
        """Run the calls. The texts for the model, and whether the turn was cancelled meanwhile."""
        results = await asyncio.gather(*(self._run_one(call) for call in calls))
        return list(results), self._turn.cancelled.done()

    async def _run_one(self, call: ToolCall) -> str:
        """One call from its `started` event to its end. Never raises."""
        turn = self._turn
        async with self._free:
            turn.tool_started(call.id, call.name, call.arguments)
            try:
                result = await until_cancelled(turn, self._execute(call), timeout_seconds=self._timeout_seconds)
            except CancelledTurnError:
                error = "cancelled"
            except TimeoutError:
                error = f"the tool took longer than {self._timeout_seconds:g} s"
            except Exception as caught:  # noqa: BLE001 - a tool is anybody's code; its error is the model's to read
                error = f"{type(caught).__name__}: {caught}"
            else:
                return self._ended(call, result)
            turn.tool_failed(call.id, error)
            await self._tell("tool:error", call, {"error": error})
            return bounded_text(f"Error: {error}")

    async def _execute(self, call: ToolCall) -> ToolResult:
        """The tool's result, after its hooks had their say. A refusal is a ToolResult without success."""
        if invalid := getattr(call, "invalid", None):
            return _refusal(str(invalid))
        tool = self._tools.get(call.name)
        if tool is None:
            return _refusal(f"there is no tool {call.name!r}; there are: {', '.join(sorted(self._tools)) or 'none'}")
        answer = await self._tell("tool:pre", call, {})
        if answer is not None and answer.action == "deny":
            return _refusal(f"denied: {answer.reason or 'by a hook'}")
        arguments = call.arguments
        if answer is not None and answer.action == "modify" and isinstance((answer.data or {}).get("tool_input"), dict):
            arguments = answer.data["tool_input"]
        result = await _executed(tool, arguments)
        if not isinstance(result, ToolResult):
            result = ToolResult(output=result)
        await self._tell("tool:post", call, {"result": result.safe_hook_presentation()})
        return result

    async def _tell(self, event: str, call: ToolCall, data: dict[str, Any]) -> HookResult | None:
        told = {"tool_name": call.name, "tool_call_id": call.id, "tool_input": call.arguments, **data}
        return await tell(self._coordinator, event, told, call.name)

    def _ended(self, call: ToolCall, result: ToolResult) -> str:
        if result.success:
            self._turn.tool_completed(call.id, result.output)
        else:
            self._turn.tool_failed(
                call.id, str((result.error or {}).get("message") or result.output or "the tool failed")
            )
        return bounded_text(result.get_serialized_output())


async def tell(coordinator: Any, event: str, data: dict[str, Any], name: str) -> HookResult | None:
    """Tell the hooks; their answer, after the coordinator asked for approvals and put injections into the context."""
    answer: HookResult | None = await coordinator.hooks.emit(event, data)
    if answer is None or answer.action in ("continue", "modify"):
        return answer
    processed: HookResult | None = await coordinator.process_hook_result(answer, event, name)
    return processed


async def _executed(tool: Any, arguments: dict[str, Any]) -> Any:
    """A tool that calls sys.exit() fails; asyncio would let that end the whole process."""
    try:
        return await tool.execute(arguments)
    except SystemExit as error:
        raise RuntimeError(f"the tool tried to exit with {error.code!r}") from None


def _refusal(message: str) -> ToolResult:
    return ToolResult(success=False, error={"message": message}, output=f"Error: {message}")
