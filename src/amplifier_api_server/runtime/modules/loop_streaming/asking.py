"""The loop's model calls: which provider, what it is sent, what hooks are told of it.

Invariant: a call is given up at once when its turn is cancelled, which closes its stream too; a failed one is told as
`provider:error` before it is raised, because `execute()` itself loses everything but the words.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amplifier_core import ChatRequest, ChatResponse, ContextLengthError, LLMError, Message, ToolCall, ToolSpec

from amplifier_api_server.runtime.dialects.errors import window_in
from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.modules.loop_streaming.hooks import Hooks, is_denied, with_injections
from amplifier_api_server.runtime.modules.loop_streaming.waiting import CancelledTurnError, until_cancelled
from amplifier_api_server.runtime.turn_port import Turn

DEFAULT_PRIORITY = 100
MAX_SHORTENINGS = 3  # of one request that a provider found too long
WRAP_UP = (
    '<system-reminder source="orchestrator">\n'
    "No more tools can be called in this turn. Answer the user now with what you have: what was done and found out, and what "
    "is still open. Don't mention this reminder.\n"
    "</system-reminder>"
)


class DeniedError(Exception):
    """A hook denied the model call; the text says why."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A provider of the session, by the name that it is mounted under, and the model to ask it for."""

    name: str
    provider: Any
    model: str | None = None


def choose(providers: Mapping[str, Any], config: Mapping[str, Any]) -> Chosen:
    """The first of `provider_preferences` that is mounted, else `default_provider`, else the lowest `priority`.

    Raises LLMError where there is none.
    """
    if not providers:
        raise LLMError("this session's profile has no model provider")
    preferences = config.get("provider_preferences")
    for one in preferences if isinstance(preferences, list) else ():
        if isinstance(one, Mapping) and (name := _mounted(providers, one.get("provider"))) is not None:
            return Chosen(name, providers[name], str(one["model"]) if one.get("model") else None)
    name = _mounted(providers, config.get("default_provider")) or min(
        providers, key=lambda at: _priority(providers[at])
    )
    return Chosen(name, providers[name])


class Asking:
    """The model calls of one turn."""

    def __init__(
        self,
        turn: Turn,
        context: Any,
        chosen: Chosen,
        tools: Mapping[str, Any],
        hooks: Hooks,
        config: Mapping[str, Any],
    ) -> None:
        self._turn = turn
        self._context = context
        self._chosen = chosen
        self._specs = [spec_of(tool, name) for name, tool in tools.items()]
        self._specs_chars = len(encoded([spec.model_dump() for spec in self._specs])) if self._specs else 0
        self._hooks = hooks
        self._config = config
        self._last_call_at: float | None = None

    async def ask(self, iteration: int, *, is_last: bool = False) -> ChatResponse:
        """One call. With `is_last` the model is asked for an answer and may call nothing. Raises DeniedError, LLMError."""
        await self._wait_between_calls()
        told = {"provider": self._chosen.name, "iteration": iteration} | ({"max_reached": True} if is_last else {})
        answer = await self._hooks.tell("provider:request", told)
        if is_denied(answer):
            raise DeniedError(f"Operation denied: {(answer.reason if answer else None) or 'by a hook'}")
        try:
            response = await self._complete(is_last=is_last)
        except CancelledTurnError:
            raise
        except Exception as error:
            await self._tell_error(error)
            raise
        self._last_call_at = time.monotonic()
        await self._tell_response(response)
        return response

    def calls_in(self, response: ChatResponse) -> list[ToolCall]:
        return list(self._chosen.provider.parse_tool_calls(response) or ())

    async def _complete(self, *, is_last: bool) -> ChatResponse:
        """A request that the provider finds too long is made again from a smaller view, if the context can make one."""
        injections = self._hooks.take_waiting()
        options = {"extended_thinking": True} if self._config.get("extended_thinking") else {}
        for attempt in range(MAX_SHORTENINGS + 1):
            # The context may ask the model for a summary first.
            work = self._context.get_messages_for_request(provider=self._chosen.provider)
            messages = with_injections(await until_cancelled(self._turn, work), injections)
            request = self._request(messages, is_last=is_last)
            try:
                response: ChatResponse = await until_cancelled(
                    self._turn, self._chosen.provider.complete(request, **options)
                )
            except ContextLengthError as error:
                shrink = getattr(self._context, "note_too_long", None)
                if attempt == MAX_SHORTENINGS or self._turn.step_text or not callable(shrink):
                    raise
                if not shrink(window_in(error)):
                    raise
            else:
                return response
        raise AssertionError("the last attempt ends the loop")

    def _request(self, messages: list[dict[str, Any]], *, is_last: bool) -> ChatRequest:
        if is_last:
            messages = [*messages, {"role": "user", "content": WRAP_UP}]
        return ChatRequest(
            messages=[Message(**message) for message in messages],
            tools=self._specs or None,  # also at the last call: some dialects refuse transcripts of tools without them
            tool_choice="none" if is_last and self._specs else None,
            model=self._chosen.model,
            reasoning_effort=self._config.get("reasoning_effort"),
            stream=True,
        )

    async def _wait_between_calls(self) -> None:
        """`min_delay_between_calls_ms`, for providers with a narrow rate limit."""
        delay = self._config.get("min_delay_between_calls_ms")
        if self._last_call_at is None or not isinstance(delay, int | float) or delay <= 0:
            return
        left = self._last_call_at + delay / 1000 - time.monotonic()
        if left > 0:
            await until_cancelled(self._turn, asyncio.sleep(left))

    async def _tell_response(self, response: ChatResponse) -> None:
        self._turn.end_answer(getattr(response, "finish_reason", None))
        if not self._turn.step_text.strip():
            self._turn.token(text_of(response))  # a provider from outside may not stream
        usage = response.usage
        note = getattr(self._context, "note_usage", None)
        if usage is not None and callable(note):
            note(usage.input_tokens + (usage.cache_write_tokens or 0), self._specs_chars)
        counts = usage.model_dump(exclude_none=True) if usage is not None else None
        told = {"provider": self._chosen.name, "usage": counts, "tool_calls": bool(response.tool_calls)}
        await self._hooks.tell("provider:response", told)
        if not self._hooks.hears("content_block:start", "content_block:end"):
            return
        for index, block in enumerate(response.content):
            at = {"block_index": index, "total_blocks": len(response.content)}
            await self._hooks.tell("content_block:start", {"block_type": block.type, **at})
            shown = {**at, "block": block.model_dump(exclude_none=True)} | ({"usage": counts} if counts else {})
            await self._hooks.tell("content_block:end", shown)

    async def _tell_error(self, error: Exception) -> None:
        if not isinstance(error, LLMError):
            await self._hooks.tell(
                "provider:error",
                {"provider": self._chosen.name, "error": {"type": type(error).__name__, "msg": str(error)}},
            )
            return
        told = {
            "provider": error.provider or self._chosen.name,
            "error": {"type": type(error).__name__, "msg": str(error)},
            "error_type": type(error).__name__,
            "error_message": str(error),
            "status_code": error.status_code,
            "retry_after": error.retry_after,
            "retryable": error.retryable,
            "code": getattr(error, "code", None),
        }
        await self._hooks.tell("provider:error", told)


def spec_of(tool: Any, name: str) -> ToolSpec:
    """A tool as the model is told of it; in its vendor's own words where it has such (`native_tool_spec`)."""
    schema = getattr(tool, "input_schema", None) or {"type": "object", "properties": {}}
    native = getattr(tool, "native_tool_spec", None) if hasattr(type(tool), "native_tool_spec") else None
    extra = {key: value for key, value in native.items() if key != "name"} if isinstance(native, Mapping) else {}
    if not extra.get("type"):
        return ToolSpec(name=name, description=getattr(tool, "description", "") or "", parameters=schema)
    fixed = {
        "name": str(native["name"]) if native and native.get("name") else name,
        "description": getattr(tool, "description", ""),
    }
    return ToolSpec(**{**extra, **fixed, "parameters": schema})


def text_of(response: ChatResponse) -> str:
    return "".join(block.text for block in response.content if block.type == "text")


def _mounted(providers: Mapping[str, Any], wanted: Any) -> str | None:
    """A provider by its mount name or instance id, with or without `provider-` before it."""
    if not isinstance(wanted, str) or not wanted:
        return None
    return next((name for name in (wanted, wanted.removeprefix("provider-")) if name in providers), None)


def _priority(provider: Any) -> float:
    told = getattr(provider, "priority", None)
    if told is None:
        config = getattr(provider, "config", None)
        told = config.get("priority") if isinstance(config, Mapping) else None
    return told if isinstance(told, int | float) else DEFAULT_PRIORITY
