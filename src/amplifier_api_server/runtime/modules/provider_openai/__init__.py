"""`provider-openai`: chat completions, streamed, by way of the gateway. Holds no key: the gateway knows the tenant."""

from __future__ import annotations

import asyncio
from typing import Any

from amplifier_core import (
    ChatRequest,
    ChatResponse,
    ModelInfo,
    NetworkError,
    ProviderInfo,
    StreamError,
    TextBlock,
    ToolCall,
    ToolCallBlock,
    Usage,
)
from amplifier_core.llm_errors import LLMTimeoutError

from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.gateway import Answer, GatewayBrokenError, GatewaySilentError, GatewayUnreachableError
from amplifier_api_server.runtime.modules.provider_openai import dialect
from amplifier_api_server.runtime.modules.provider_openai.assembly import Assembly
from amplifier_api_server.runtime.protocol import TURN_HEADER, Gateway
from amplifier_api_server.runtime.turn_port import CAPABILITY, Turn, TurnPort

DIAL_DELAYS_SECONDS = (0.05, 0.2, 0.8)  # a connection that was never made is tried again; nothing else is
MAX_ERROR_BYTES = 64 * 1024
MAX_WHOLE_ANSWER_BYTES = 8 * 1024 * 1024


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    port = coordinator.get_capability(CAPABILITY)
    if port is None:
        raise RuntimeError(f"the host offers no capability {CAPABILITY}")
    await coordinator.mount("providers", OpenAIProvider(port, coordinator.hooks, config or {}), name="openai")


class OpenAIProvider:
    name = "openai"

    def __init__(self, port: TurnPort, hooks: Any, config: dict[str, Any]) -> None:
        self._port = port
        self._hooks = hooks
        self._config = config
        self.model = str(config.get("default_model") or port.services.claim.default_model)

    def get_info(self) -> ProviderInfo:
        return ProviderInfo(
            id="openai", display_name="OpenAI dialect, by the gateway", capabilities=["streaming", "tools"]
        )

    async def list_models(self) -> list[ModelInfo]:
        """None: what may be asked for is the gateway's to say, when it is asked."""
        return []

    def parse_tool_calls(self, response: ChatResponse) -> list[ToolCall]:
        return list(response.tool_calls or [])

    async def complete(self, request: ChatRequest, **kwargs: Any) -> ChatResponse:
        """One model call. Every piece of text goes to the turn as it comes. Raises LLMError with a `code`."""
        turn = self._port.current()
        body = dialect.request_body(request, self.model, {**self._config, **kwargs})
        for delay_seconds in (*DIAL_DELAYS_SECONDS, None):
            try:
                assembly = await self._call(turn, encoded(body).encode())
                break
            except GatewayUnreachableError as error:
                if delay_seconds is None:
                    raise dialect.coded(NetworkError(str(error), provider=self.name), "provider_unavailable") from error
                await asyncio.sleep(delay_seconds)
            except GatewayBrokenError as error:
                raise dialect.coded(StreamError(str(error), provider=self.name), None) from error
            except GatewaySilentError as error:
                raise dialect.coded(LLMTimeoutError(str(error), provider=self.name), "model_timeout") from error
        response = _response(assembly)
        await self._hooks.emit("llm:response", _told(assembly, response, str(body["model"])))
        return response

    async def _call(self, turn: Turn, body: bytes) -> Assembly:
        headers = {TURN_HEADER: turn.request_id, "accept": "text/event-stream"}
        idle = self._port.services.claim.model_idle_timeout_seconds
        requested = self._port.services.gateway.request(
            "POST", Gateway.CHAT_COMPLETIONS, body=body, headers=headers, idle_timeout_seconds=idle
        )
        async with requested as answer:
            if answer.status != 200:  # noqa: PLR2004
                raise dialect.error_of(answer.status, answer.headers, await answer.read(MAX_ERROR_BYTES))
            return await _read(answer, turn)


async def _read(answer: Answer, turn: Turn) -> Assembly:
    assembly = Assembly(turn.token)
    if answer.headers.get("content-type", "").startswith("application/json"):
        assembly.take_whole(await answer.read(MAX_WHOLE_ANSWER_BYTES))
        return assembly
    async for chunk in answer.chunks():
        assembly.feed(chunk)
    assembly.finish()
    return assembly


def _response(assembly: Assembly) -> ChatResponse:
    text, calls = assembly.text, assembly.calls()
    content: list[Any] = [TextBlock(text=text)] if text else []
    content += [ToolCallBlock(id=call["id"], name=call["name"], input=call["arguments"]) for call in calls]
    usage = assembly.usage
    return ChatResponse(
        content=content,
        tool_calls=[ToolCall(**call) for call in calls] or None,
        usage=Usage(
            input_tokens=usage.get("prompt_tokens", 0),
            output_tokens=usage.get("completion_tokens", 0),
            total_tokens=usage.get("total_tokens", 0),
        )
        if usage
        else None,
        finish_reason=assembly.finish_reason,
    )


def _told(assembly: Assembly, response: ChatResponse, model: str) -> dict[str, Any]:
    """What hooks learn of a call: counts, never content."""
    usage = response.usage.model_dump(exclude_none=True) if response.usage else None
    return {"provider": "openai", "model": model, "usage": usage, "finish_reason": assembly.finish_reason}
