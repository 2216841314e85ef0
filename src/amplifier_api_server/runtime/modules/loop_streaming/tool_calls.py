"""The tool calls of one step: side by side, each with its events, its hooks, a timeout, and a result for the model.

Invariant: `run` gives exactly one result for each call, in their order, also when calls fail or the turn is cancelled.
What can't be helped: a tool that blocks the thread instead of awaiting stalls every session of the process, timeouts
included, until it returns or the control plane, which sees the runtime not answering, ends the sandbox. Ours never block.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from amplifier_core import ImageBlock, ToolCall, ToolResult
from pydantic_core import from_json

from amplifier_api_server.runtime.bounds import bounded_text
from amplifier_api_server.runtime.consent import about_call
from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.modules.loop_streaming.hooks import Hooks, changed, is_denied
from amplifier_api_server.runtime.modules.loop_streaming.waiting import CancelledTurnError, until_cancelled
from amplifier_api_server.runtime.turn_port import CAPABILITY, Turn

log = logging.getLogger(__name__)

MAX_AT_ONCE = 16
MAX_IMAGES = 8  # of one result, for the model to see
MAX_IMAGE_CHARS = 5 * 1024 * 1024  # as base64: the least that any vendor takes
IMAGE_LEFT_OUT = "(An image was left out: it is too large.)"

Content = str | list[dict[str, Any]]  # of a tool's message


class ToolCalls:
    def __init__(self, turn: Turn, tools: Mapping[str, Any], coordinator: Any, hooks: Hooks) -> None:
        self._turn = turn
        self._tools = tools
        self._coordinator = coordinator
        self._hooks = hooks
        self._timeout_seconds = coordinator.get_capability(CAPABILITY).services.claim.tool_timeout_seconds
        self._free = asyncio.Semaphore(MAX_AT_ONCE)

    async def run(self, calls: Sequence[ToolCall]) -> tuple[list[Content], bool]:
        """Run the calls. What the model is told of each, and whether the turn was cancelled meanwhile."""
        group = uuid.uuid4().hex
        results = await asyncio.gather(*(self._run_one(call, group) for call in calls))
        return list(results), self._turn.cancelled.done()

    async def _run_one(self, call: ToolCall, group: str) -> Content:
        """One call from its `started` event to its end. Never raises."""
        turn = self._turn
        about_call(turn, call.name, call.id)  # this coroutine has a task of its own
        async with self._free:
            turn.tool_started(call.id, call.name, call.arguments)
            try:
                result = await self._result(call, group)
            except CancelledTurnError:
                error, kind = "cancelled", "CancelledTurnError"
            except TimeoutError:
                error, kind = f"the tool took longer than {self._timeout_seconds:g} s", "TimeoutError"
            except Exception as caught:  # noqa: BLE001 - a tool is anybody's code; its error is the model's to read
                error, kind = f"{type(caught).__name__}: {caught}", type(caught).__name__
            else:
                return self._ended(call, result)
            turn.tool_failed(call.id, error)
            await self._tell("tool:error", call, group, {"error": {"type": kind, "msg": error}})
            return bounded_text(f"Error: {error}")

    async def _result(self, call: ToolCall, group: str) -> ToolResult:
        """The tool's result, after its hooks had their say. A refusal is a ToolResult without success."""
        if invalid := getattr(call, "invalid", None):
            return _refusal(str(invalid))
        tool = self._tools.get(call.name)
        if tool is None:
            return _refusal(f"there is no tool {call.name!r}; there are: {', '.join(sorted(self._tools)) or 'none'}")
        # A person may be asked for consent here, who has more time than the tool.
        answer = await until_cancelled(self._turn, self._tell("tool:pre", call, group, {}))
        if is_denied(answer):
            return _refusal(f"denied: {answer.reason or 'by a hook'}")
        arguments = changed(answer, "tool_input", call.arguments)
        if not isinstance(arguments, dict):
            arguments = call.arguments
        work = self._execute(tool, call, arguments, group)
        result = await until_cancelled(self._turn, work, timeout_seconds=self._timeout_seconds)
        if not isinstance(result, ToolResult):
            result = ToolResult(output=result)
        told = self._presented(call, result, arguments, group)
        return await until_cancelled(self._turn, told, timeout_seconds=self._timeout_seconds)

    async def _execute(self, tool: Any, call: ToolCall, arguments: dict[str, Any], group: str) -> Any:
        """Run it, known to core's cancellation and to what asks the coordinator whose call it runs in, as delegation does."""
        cancellation, task = self._coordinator.cancellation, asyncio.current_task()
        running = vars(self._coordinator).setdefault("_tool_dispatch_contexts", {})
        running[task] = {"tool_call_id": call.id, "parallel_group_id": group}
        cancellation.register_tool_start(call.id, call.name)
        try:
            return await tool.execute(arguments)
        except SystemExit as error:  # asyncio would let it end the whole process
            raise RuntimeError(f"the tool tried to exit with {error.code!r}") from None
        finally:
            cancellation.register_tool_complete(call.id)
            running.pop(task, None)

    async def _presented(self, call: ToolCall, result: ToolResult, arguments: dict[str, Any], group: str) -> ToolResult:
        """The result as `tool:post` hooks leave it."""
        if not self._hooks.hears("tool:post"):
            return result
        shown = from_json(encoded(result.safe_hook_presentation()))
        answer = await self._tell("tool:post", call, group, {"result": shown, "tool_input": arguments})
        made = changed(answer, "result", shown)
        if made == shown:
            return result
        if isinstance(made, Mapping) and "output" in made:
            error = made.get("error")
            return ToolResult(
                success=made.get("success", result.success) is not False,
                output=made["output"],
                error=dict(error) if isinstance(error, Mapping) else None,
            )
        return ToolResult(success=result.success, output=made, error=result.error)

    async def _tell(self, event: str, call: ToolCall, group: str, data: dict[str, Any]) -> Any:
        told = {
            "tool_name": call.name,
            "tool_call_id": call.id,
            "tool_input": call.arguments,
            "parallel_group_id": group,
        }
        return await self._hooks.tell(event, told | data, call.name)

    def _ended(self, call: ToolCall, result: ToolResult) -> Content:
        if result.success:
            self._turn.tool_completed(call.id, result.output if result.output is not None else _rich_text(result))
        else:
            self._turn.tool_failed(
                call.id, str((result.error or {}).get("message") or result.output or "the tool failed")
            )
        return content_of(result)


def content_of(result: ToolResult) -> Content:
    """What the model is told: text, with the images that a tool shows behind it."""
    rich = _rich_text(result)
    text = bounded_text(rich if result.output is None and rich else result.get_serialized_output())
    images = [block for block in result.content or () if isinstance(block, ImageBlock)]
    if not images:
        return text
    shown: list[dict[str, Any]] = [{"type": "text", "text": text}]
    for image in images[:MAX_IMAGES]:
        fits = len(str(image.source.get("data") or "")) <= MAX_IMAGE_CHARS
        shown.append(image.model_dump(exclude_none=True) if fits else {"type": "text", "text": IMAGE_LEFT_OUT})
    return shown


def _rich_text(result: ToolResult) -> str | None:
    texts = [block.text for block in result.content or () if block.type == "text"]
    return "\n".join(texts) if texts else None


def _refusal(message: str) -> ToolResult:
    return ToolResult(success=False, error={"message": message}, output=f"Error: {message}")
