"""`loop-streaming` (and `loop-basic`): ask the model, run the tools it calls side by side, and again until it calls
none.

Invariant: whatever happens, the transcript is left valid: every tool call has its result, and after a cancel an
assistant's message is last. A failure leaves by an exception, and the host rolls the transcript back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from amplifier_core import ChatResponse, ToolCall

from amplifier_api_server.runtime.modules.loop_streaming.asking import Asking, DeniedError, choose, text_of
from amplifier_api_server.runtime.modules.loop_streaming.hooks import Hooks, changed, is_denied
from amplifier_api_server.runtime.modules.loop_streaming.tool_calls import ToolCalls
from amplifier_api_server.runtime.modules.loop_streaming.waiting import CancelledTurnError, until_stopped
from amplifier_api_server.runtime.protocol import Failure
from amplifier_api_server.runtime.turn_port import CAPABILITY, Turn, TurnPort

DEFAULT_MAX_ITERATIONS = 50
CANCELLED_TEXT = "(This turn was cancelled.)"
CALLBACK_SECONDS = 0.2  # for what modules do when a turn is cancelled; a cancel as a whole has one second
EVENTS = ("execution:start", "execution:end")  # what core's own list of events lacks in some of its versions


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    await mount_loop(coordinator, config, name="loop-streaming")


async def mount_loop(coordinator: Any, config: dict[str, Any] | None, *, name: str) -> None:
    """Config: max_iterations, turn_timeout_seconds, extended_thinking, reasoning_effort, default_provider,
    provider_preferences, min_delay_between_calls_ms.
    """
    coordinator.register_contributor("observability.events", name, lambda: list(EVENTS))
    await coordinator.mount("orchestrator", StreamingLoop(config or {}, name))


class PromptDeniedError(Exception):
    """A hook denied the prompt."""


class StepLimitError(Exception):
    """The model went on calling tools for more steps than are allowed."""


class StreamingLoop:
    def __init__(self, config: dict[str, Any], name: str = "loop-streaming") -> None:
        self.config = config
        self._name = name
        self._max_iterations = int(config.get("max_iterations") or DEFAULT_MAX_ITERATIONS)
        if self._max_iterations < 1:  # upstream's -1 is "no limit", which nobody who pays for it wants
            self._max_iterations = DEFAULT_MAX_ITERATIONS
        seconds = config.get("turn_timeout_seconds")
        self._seconds = float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None

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
        turn, told = port.current(), Hooks(coordinator)
        submitted = await told.tell("prompt:submit", {"prompt": prompt})
        if submitted is not None and is_denied(submitted):
            turn.fail(Failure(code="prompt_denied", detail=submitted.reason or "a hook denied the prompt"))
            raise PromptDeniedError
        prompt = str(changed(submitted, "prompt", prompt) or prompt)
        await told.tell("execution:start", {"prompt": prompt})
        await context.add_message({"role": "user", "content": prompt})
        run = _Run(turn, context, told, self._max_iterations, self._seconds)
        status = "error"
        try:
            asking = Asking(turn, context, choose(providers, self.config), tools, told, self.config)
            response = await run.steps(asking, ToolCalls(turn, tools, coordinator, told))
            status = "success" if response else "incomplete"
        except CancelledTurnError:
            response = turn.step_text
            await context.add_message({"role": "assistant", "content": response or CANCELLED_TEXT})
            status = "cancelled"
            await self._tell_cancelled(coordinator, told, run.iterations)
        except DeniedError as error:  # of a model call: the turn ends with these words, as the ecosystem's loops do
            response = str(error)
            await context.add_message({"role": "assistant", "content": response})
            turn.token(response)
            status = "incomplete"
        except StepLimitError as error:
            turn.fail(Failure(code="step_limit", detail=str(error)))
            raise
        finally:
            await told.tell("execution:end", {"status": status})
        await told.tell("prompt:complete", {"prompt": prompt, "response": response})
        ended = {"orchestrator": self._name, "turn_count": run.iterations, "status": status}
        await told.tell("orchestrator:complete", ended)
        return response

    async def _tell_cancelled(self, coordinator: Any, told: Hooks, iterations: int) -> None:
        """What modules asked to do at a cancel is done, and hooks are told, within the little time that there is."""
        cancellation = coordinator.cancellation
        at = {"orchestrator": self._name, "turn_count": iterations}
        with contextlib.suppress(Exception):  # they are anybody's code, and the turn has ended
            await until_stopped(cancellation.trigger_callbacks(), timeout_seconds=CALLBACK_SECONDS)
        await told.tell("cancel:requested", at | {"state": str(cancellation.state)})
        await told.tell("cancel:completed", at | {"was_immediate": bool(cancellation.is_immediate)})


class _Run:
    """The steps of one turn."""

    def __init__(self, turn: Turn, context: Any, hooks: Hooks, max_iterations: int, seconds: float | None) -> None:
        self.iterations = 0
        self._turn = turn
        self._context = context
        self._max_iterations = max_iterations
        self._deadline = None if seconds is None else time.monotonic() + seconds

    async def steps(self, asking: Asking, runner: ToolCalls) -> str:
        """Until the model calls nothing. At a limit it is asked once more, for an answer without tools."""
        while self.iterations < self._max_iterations and not self._is_late:
            self.iterations += 1
            self._turn.begin_step()
            response = await asking.ask(self.iterations)
            calls = asking.calls_in(response)
            await self._context.add_message(_message(response, calls))
            if not calls:
                return text_of(response)
            self._turn.begin_step()
            results, cancelled = await runner.run(calls)
            for call, result in zip(calls, results, strict=True):
                await self._context.add_message(
                    {"role": "tool", "name": call.name, "tool_call_id": call.id, "content": result}
                )
            if cancelled:
                raise CancelledTurnError
        return await self._wrapped_up(asking)

    @property
    def _is_late(self) -> bool:
        return self._deadline is not None and self.iterations > 0 and time.monotonic() >= self._deadline

    async def _wrapped_up(self, asking: Asking) -> str:
        """What was done is not lost because there was more to do. Raises StepLimitError where no answer comes either."""
        self._turn.begin_step()
        response = await asking.ask(self.iterations, is_last=True)
        text = text_of(response)
        if not text.strip():
            raise StepLimitError(
                f"the model called tools for {self.iterations} steps without an answer, which is the limit"
            )
        await self._context.add_message(_message(response, []))  # calls that it made all the same are not run
        return text


def _message(response: ChatResponse, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """An answer as the transcript keeps it: its text; with thinking all blocks, which its model wants back as they were."""
    content: str | list[dict[str, Any]] = text_of(response)
    message: dict[str, Any] = {"role": "assistant"}
    thoughts = [block for block in response.content if _is_kept(block)]
    if thoughts:
        blocks = [block for block in response.content if block.type == "text" or _is_kept(block)]
        content = [block.model_dump(exclude_none=True, mode="json") for block in blocks]
        model = (response.metadata or {}).get("model")
        message |= {"metadata": {"model": model}} if model else {}
    message["content"] = content
    if calls:
        message["tool_calls"] = [{"id": call.id, "tool": call.name, "arguments": call.arguments} for call in calls]
    return message


def _is_kept(block: Any) -> bool:
    """Thinking that a provider can take back: signed, encrypted or redacted. Other thoughts are nobody's to read again."""
    if block.type == "thinking":
        state = block.content
        return bool(block.signature) or bool(isinstance(state, list) and state and state[0])
    return bool(block.type in ("redacted_thinking", "reasoning"))
