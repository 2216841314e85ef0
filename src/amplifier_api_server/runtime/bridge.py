"""What modules from outside tell by hooks, brought to the turn: tokens, tool calls, why a model call failed.

The runtime's own loop and providers write to the turn directly; each of these handlers is registered only where a module
from outside stands in for one of them, so that nothing is shown twice. Invariant: a handler never raises and never has
an opinion: core takes its silence for `continue`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.modules.loop_streaming.waiting import until_cancelled
from amplifier_api_server.runtime.protocol import Failure
from amplifier_api_server.runtime.turn_port import Turn, TurnPort

log = logging.getLogger(__name__)

FIRST = -1000
LAST = 100_000  # after every hook that may deny: core stops at a denial, and what was denied never runs

_OWN = "amplifier_api_server."
_CODE = re.compile(r"""['"]code['"]:\s*['"]([a-z][a-z0-9_]{0,63})['"]""")
_CODES = {402: "quota_exceeded", 404: "model_not_found", 408: "model_timeout", 504: "model_timeout"}
_MAX_CODE_SEARCH_CHARS = 4096
_FAILED = "Error: "  # as core writes a failed ToolResult as text, which is how loop-basic's come through hooks

Handler = Callable[[str, dict[str, Any]], Awaitable[None]]
Listen = Callable[[str, Handler, int], None]


def is_foreign(module: Any) -> bool:
    return module is not None and not type(module).__module__.startswith(_OWN)


class Bridge:
    """Of one session. `listen` registers a handler by event and priority."""

    def __init__(self, port: TurnPort, listen: Listen) -> None:
        self._port = port
        self._listen = listen
        self._open_calls: list[tuple[str, str, str]] = []  # call id, tool, input as JSON
        self._calls = 0
        self._noted: Failure | None = None

    def connect(self, orchestrator: Any, providers: Mapping[str, Any]) -> None:
        """Once all modules are mounted."""
        self._listen("provider:error", self._provider_error, FIRST)
        for event in ("execution:end", "orchestrator:complete", "prompt:complete"):
            self._listen(event, self._answered, FIRST)
        self._listen(
            "provider:request", self._model_call if is_foreign(orchestrator) else self._model_call_again, FIRST
        )
        if any(map(is_foreign, providers.values())):
            self._listen("llm:stream_block_delta", self._delta, FIRST)
        if is_foreign(orchestrator):
            for provider in providers.values():
                self._end_with_turn(provider)
            self._listen("content_block:end", self._block, FIRST)
            self._listen("tool:pre", self._tool_started, LAST)
            self._listen("tool:post", self._tool_ended, FIRST)
            self._listen("tool:error", self._tool_failed, FIRST)

    def _end_with_turn(self, provider: Any) -> None:
        """A foreign loop looks at its cancel between calls only: this closes a call under way, and its connection."""
        complete = provider.complete

        async def ending(request: Any, **options: Any) -> Any:
            turn = self._turn
            work = complete(request, **options)
            if turn is None:
                return await work
            response = await until_cancelled(turn, work)
            turn.end_answer(getattr(response, "finish_reason", None))
            return response

        try:
            provider.complete = ending
        except AttributeError:
            log.info("a provider takes no attribute: its calls end when they end")

    def begin_turn(self) -> None:
        self._open_calls.clear()
        self._noted = None

    @property
    def _turn(self) -> Turn | None:
        return self._port.turn

    async def _model_call_again(self, event: str, data: dict[str, Any]) -> None:
        """The orchestrator goes on after an error that it told: that one is not why the turn fails, if it does."""
        turn = self._turn
        if turn is not None and self._noted is not None and turn.failure is self._noted:
            turn.failure = None
        self._noted = None

    async def _model_call(self, event: str, data: dict[str, Any]) -> None:
        await self._model_call_again(event, data)
        if (turn := self._turn) is not None:
            turn.is_answered = False
            turn.begin_step()
            while self._open_calls:  # of the step before: a hook refused them, or they got lost
                turn.tool_failed(self._open_calls.pop()[0], "the tool was not run, or its end was not told")

    async def _delta(self, event: str, data: dict[str, Any]) -> None:
        text = data.get("text")
        if data.get("is_shown"):  # by a provider of ours beside the foreign one
            return
        if (turn := self._turn) is not None and isinstance(text, str) and data.get("block_type") in (None, "text"):
            turn.token(text)

    async def _block(self, event: str, data: dict[str, Any]) -> None:
        """A whole block, of providers that don't stream. Thinking is not shown as an answer."""
        block, turn = data.get("block"), self._turn
        if turn is None or turn.step_text or not isinstance(block, Mapping) or block.get("type") != "text":
            return
        text = block.get("text") or block.get("content")
        if isinstance(text, str):
            turn.token(text)

    async def _answered(self, event: str, data: dict[str, Any]) -> None:
        if (turn := self._turn) is not None:
            turn.is_answered = True

    async def _provider_error(self, event: str, data: dict[str, Any]) -> None:
        turn = self._turn
        if turn is not None and turn.failure is None:
            turn.fail(failure_of(data))
            self._noted = turn.failure

    async def _tool_started(self, event: str, data: dict[str, Any]) -> None:
        turn = self._turn
        if turn is None:
            return
        given = data.get("tool_input")
        arguments = given if isinstance(given, dict) else {} if given is None else {"input": given}
        self._calls += 1
        call_id, tool = str(data.get("tool_call_id") or f"hook_{self._calls}"), str(data.get("tool_name") or "tool")
        self._open_calls.append((call_id, tool, encoded(given)))
        turn.tool_started(call_id, tool, arguments)

    async def _tool_ended(self, event: str, data: dict[str, Any]) -> None:
        turn, call_id = self._turn, self._ending(data)
        if turn is None or call_id is None:
            return
        result = data.get("result")
        if isinstance(result, str) and result.startswith(_FAILED):
            turn.tool_failed(call_id, result.removeprefix(_FAILED))
        elif not isinstance(result, Mapping) or "success" not in result:
            turn.tool_completed(call_id, result)
        elif result["success"]:
            turn.tool_completed(call_id, result.get("output"))
        else:
            turn.tool_failed(call_id, _words(result.get("error")) or _words(result.get("output")) or "the tool failed")

    async def _tool_failed(self, event: str, data: dict[str, Any]) -> None:
        turn, call_id = self._turn, self._ending(data)
        if turn is not None and call_id is not None:
            turn.tool_failed(call_id, _words(data.get("error")) or "the tool failed")

    def _ending(self, data: Mapping[str, Any]) -> str | None:
        """Which open call this is the end of. loop-basic tells no ids: then by tool and input, or else by tool.

        Two calls that are alike in both may be told in each other's place, which nobody could tell apart.
        """
        tool, given = str(data.get("tool_name") or data.get("tool") or "tool"), encoded(data.get("tool_input"))
        named = data.get("tool_call_id")
        if named:
            alike = [call for call in self._open_calls if call[0] == named]
        else:
            alike = [call for call in self._open_calls if call[1:] == (tool, given)]
            alike = alike or [call for call in self._open_calls if call[1] == tool]
        if not alike:
            return None
        self._open_calls.remove(alike[0])
        return alike[0][0]


def failure_of(data: Mapping[str, Any]) -> Failure:
    """Why a model call failed, by a `provider:error` event of ours (flat) or of the ecosystem's (`error` of type, msg)."""
    error, status = data.get("error"), data.get("status_code")
    words = str(data.get("error_message") or _words(error) or data.get("error_type") or "the model call failed")
    named = _CODE.search(words[:_MAX_CODE_SEARCH_CHARS])
    code = data.get("code") or (named.group(1) if named else _CODES.get(status) if isinstance(status, int) else None)
    delay = data.get("retry_after")
    return Failure(
        code=str(code or "model_failed"),
        detail=words[:2000],
        retry_after_seconds=float(delay) if isinstance(delay, int | float) else None,
    )


def _words(error: Any) -> str:
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("msg") or error.get("type")
    return "" if error is None else str(error)
