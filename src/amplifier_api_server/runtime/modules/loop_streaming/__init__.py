"""`loop-streaming` (and `loop-basic`): ask the model, run the tools it calls side by side, and again until it calls
none.

Invariant: whatever happens, the transcript is left valid: every tool call has its result, and after a cancel an
assistant's message is last. A failure leaves by an exception, and the host rolls the transcript back.
"""

from __future__ import annotations

import asyncio
from typing import Any

from amplifier_core import ChatRequest, ChatResponse, LLMError, Message, ToolSpec

from amplifier_api_server.runtime.modules.loop_streaming.tool_calls import ToolCalls, tell
from amplifier_api_server.runtime.modules.loop_streaming.waiting import CancelledTurnError, until_cancelled
from amplifier_api_server.runtime.protocol import Failure
from amplifier_api_server.runtime.turn_port import CAPABILITY, Turn, TurnPort

DEFAULT_MAX_ITERATIONS = 50
CANCELLED_TEXT = "(This turn was cancelled.)"


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    await coordinator.mount("orchestrator", StreamingLoop(config or {}))


class PromptDeniedError(Exception):
    """A hook denied the prompt."""


class StepLimitError(Exception):
    """The model went on calling tools for more steps than are allowed."""


class StreamingLoop:
    def __init__(self, config: dict[str, Any]) -> None:
        self._max_iterations = int(config.get("max_iterations") or DEFAULT_MAX_ITERATIONS)
        if self._max_iterations < 1:  # upstream's -1 is "no limit", which nobody who pays for it wants
            self._max_iterations = DEFAULT_MAX_ITERATIONS

    async def execute(
        self,
        prompt: str,
        context: Any,
        providers: dict[str, Any],
        tools: dict[str, Any],
        hooks: Any,
        coordinator: Any = None,
        **_: Any,
    ) -> str:
        """One turn; returns the model's last text. Raises LLMError and StepLimitError."""
        port: TurnPort = coordinator.get_capability(CAPABILITY)
        turn = port.current()
        submitted = await tell(coordinator, "prompt:submit", {"prompt": prompt}, "prompt")
        if submitted is not None and submitted.action == "deny":
            turn.fail(Failure(code="prompt_denied", detail=submitted.reason or "a hook denied the prompt"))
            raise PromptDeniedError
        await hooks.emit("execution:start", {"prompt": prompt})
        await context.add_message({"role": "user", "content": prompt})
        status = "error"
        try:
            response = await self._steps(turn, context, _chosen(providers), tools, coordinator)
            status = "completed"
        except CancelledTurnError:
            response = turn.step_text
            await context.add_message({"role": "assistant", "content": response or CANCELLED_TEXT})
            status = "cancelled"
        except LLMError as error:
            await _tell_provider_error(hooks, error)
            raise
        except StepLimitError as error:
            turn.fail(Failure(code="step_limit", detail=str(error)))
            raise
        finally:
            await hooks.emit("execution:end", {"status": status})
        await hooks.emit("prompt:complete", {"prompt": prompt, "response": response})
        await hooks.emit("orchestrator:complete", {"orchestrator": "loop-streaming", "status": status})
        return response

    async def _steps(self, turn: Turn, context: Any, provider: Any, tools: dict[str, Any], coordinator: Any) -> str:
        specs = [
            ToolSpec(name=name, description=tool.description, parameters=_schema(tool)) for name, tool in tools.items()
        ]
        runner = ToolCalls(turn, tools, coordinator)
        for _ in range(self._max_iterations):
            turn.begin_step()
            response = await self._ask(turn, context, provider, specs, coordinator)
            text = _text(response)
            calls = provider.parse_tool_calls(response)
            if not calls:
                await context.add_message({"role": "assistant", "content": _kept(response)})
                return text
            kept = [{"id": call.id, "tool": call.name, "arguments": call.arguments} for call in calls]
            await context.add_message({"role": "assistant", "content": _kept(response), "tool_calls": kept})
            turn.begin_step()
            results, cancelled = await runner.run(calls)
            for call, result in zip(calls, results, strict=True):
                await context.add_message(
                    {"role": "tool", "name": call.name, "tool_call_id": call.id, "content": result}
                )
            if cancelled:
                raise CancelledTurnError
        raise StepLimitError(
            f"the model called tools for {self._max_iterations} steps without an answer, which is the limit"
        )

    async def _ask(
        self, turn: Turn, context: Any, provider: Any, specs: list[ToolSpec], coordinator: Any
    ) -> ChatResponse:
        """One model call, given up at once when the turn is cancelled: that closes its stream too."""
        told = await tell(coordinator, "provider:request", {"provider": provider.name}, provider.name)
        # It may ask the model for a summary first.
        messages = await until_cancelled(turn, context.get_messages_for_request(provider=provider))
        if told is not None and told.action == "inject_context" and told.ephemeral and told.context_injection:
            messages = [*messages, {"role": told.context_injection_role, "content": told.context_injection}]
        request = ChatRequest(messages=[Message(**message) for message in messages], tools=specs or None, stream=True)
        response: ChatResponse = await until_cancelled(turn, provider.complete(request))
        if not turn.step_text.strip():
            turn.token(_text(response))  # a provider from outside may not stream
        usage = response.usage.model_dump(exclude_none=True) if response.usage else None
        await coordinator.hooks.emit("provider:response", {"provider": provider.name, "usage": usage})
        return response


def _chosen(providers: dict[str, Any]) -> Any:
    """The provider with the lowest `priority`, the first of them where they are equal."""
    if not providers:
        raise LLMError("this session's profile has no model provider")
    return min(providers.values(), key=lambda provider: getattr(provider, "priority", 100))


def _schema(tool: Any) -> dict[str, Any]:
    return getattr(tool, "input_schema", None) or {"type": "object", "properties": {}}


def _text(response: ChatResponse) -> str:
    return "".join(block.text for block in response.content if block.type == "text")


def _kept(response: ChatResponse) -> str | list[dict[str, Any]]:
    """What a transcript keeps beside the calls: the text; with thinking, all blocks, which models want back as they were."""
    if all(block.type in ("text", "tool_call") for block in response.content):
        return _text(response)
    return [block.model_dump(exclude_none=True, mode="json") for block in response.content if block.type != "tool_call"]


async def _tell_provider_error(hooks: Any, error: LLMError) -> None:
    """By the event that hosts listen to: `execute()` itself loses everything but the words."""
    await hooks.emit(
        "provider:error",
        {
            "provider": error.provider,
            "error_type": type(error).__name__,
            "error_message": str(error),
            "status_code": error.status_code,
            "retry_after": error.retry_after,
            "retryable": error.retryable,
            "code": getattr(error, "code", None),
        },
    )
    await asyncio.sleep(0)
