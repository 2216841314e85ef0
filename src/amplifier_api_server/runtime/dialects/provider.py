"""What core's providers are here: a name, a configuration and a dialect, over the gateway. Holds no key and no address.

Owns what all of them share: the call with its events, the models, the limits. Invariant: every call is made for the turn that
runs, so that it is counted, can be cancelled, and shows its text where that turn shows text.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from amplifier_core import ChatRequest, ChatResponse, LLMError, ModelInfo, ProviderInfo, ToolCall

from amplifier_api_server.runtime.dialects import messages
from amplifier_api_server.runtime.dialects.answer import Answer
from amplifier_api_server.runtime.dialects.calls import ModelCall, call_of
from amplifier_api_server.runtime.dialects.exchange import exchange
from amplifier_api_server.runtime.dialects.models import Model, find, known_models, models_of
from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.turn_port import CAPABILITY, TurnPort

log = logging.getLogger(__name__)

DEFAULT_PRIORITY = 100
# What core's own types want a number for, where the gateway has none.
UNKNOWN_WINDOW_TOKENS = 128_000
UNKNOWN_OUTPUT_TOKENS = 8_192
NOT_OURS = ("base_url", "api_key", "host", "azure_endpoint", "endpoint", "organization")
WINDOW_SHARE_OF_ANSWER = 4  # an answer's room is at most this part of the window, unless the configuration says more
_WINDOWS = ("context_window", "num_ctx", "max_model_len")  # as the ecosystem's configurations name it
_WATCHED = ("llm:stream_block_delta", "content_block:delta")


async def mount_provider(
    coordinator: Any, config: dict[str, Any] | None, *, name: str, display_name: str, dialect: ModuleType
) -> None:
    """Mount a provider under `name`, where core finds it and gives it its `instance_id`. Raises RuntimeError."""
    port = coordinator.get_capability(CAPABILITY)
    if port is None:
        raise RuntimeError(f"the host offers no capability {CAPABILITY}")
    provider = GatewayProvider(port, coordinator.hooks, config or {}, dialect, name=name, display_name=display_name)
    await coordinator.mount("providers", provider, name=name)
    coordinator.register_contributor(
        "observability.events",
        f"provider-{name}",
        lambda: ["llm:stream_block_start", "llm:stream_block_delta", "llm:stream_block_end"],
    )


class GatewayProvider:
    """Config: default_model, provider, priority, max_tokens, temperature and the rest of docs/modules.md."""

    def __init__(
        self,
        port: TurnPort,
        hooks: Any,
        config: Mapping[str, Any],
        dialect: ModuleType,
        *,
        name: str,
        display_name: str,
    ) -> None:
        self.name = name
        self.config = dict(config)
        self.priority = int(config.get("priority", DEFAULT_PRIORITY))
        self.default_model = self._routed(str(config.get("default_model") or port.services.claim.default_model))
        self._display_name = display_name
        self._dialect = dialect
        self._port = port
        self._hooks = hooks
        if ignored := [one for one in NOT_OURS if config.get(one)]:
            log.debug("provider-%s: %s ignored: where providers are is the gateway's to know", name, ", ".join(ignored))

    @property
    def model(self) -> str:
        return self.default_model

    def get_info(self) -> ProviderInfo:
        """With the default model's limits, once the gateway's list was seen."""
        defaults: dict[str, Any] = {"model": self.default_model}
        known = find(known_models(self._port.services.gateway), self.default_model)
        window, output = self._limits(known)
        defaults |= {"context_window": window} if window else {}
        defaults |= {"max_output_tokens": output} if output else {}
        return ProviderInfo(
            id=self.name,
            display_name=self._display_name,
            capabilities=["streaming", "tools", "vision", "thinking"],
            defaults=defaults,
        )

    async def list_models(self) -> list[ModelInfo]:
        """What the gateway lists: every model that this session may ask for, whichever provider has it."""
        listed = await models_of(self._port.services.gateway, self._request_id)
        return [
            ModelInfo(
                id=model.id,
                display_name=model.id,
                context_window=model.context_window or UNKNOWN_WINDOW_TOKENS,
                max_output_tokens=model.max_output_tokens or UNKNOWN_OUTPUT_TOKENS,
                capabilities=["streaming", "tools"],
            )
            for model in listed
        ]

    async def limits(self, model: str | None = None) -> tuple[int | None, int | None]:
        """A model's window, and the longest answer that a call asks for, in tokens; None for what nobody knows."""
        listed = await models_of(self._port.services.gateway, self._request_id)
        return self._limits(find(listed, self._routed(model) if model else self.default_model))

    def parse_tool_calls(self, response: ChatResponse) -> list[ToolCall]:
        return list(response.tool_calls or [])

    async def complete(self, request: ChatRequest, **options: Any) -> ChatResponse:
        """One model call. Every piece of text goes to the turn as it comes. Raises LLMError with a `code`."""
        turn = self._port.current()
        call = await self._call(request, options)
        body = encoded(self._dialect.body_of(call)).encode()
        await self._tell("llm:request", self._asked(call))
        began = time.monotonic()
        watcher = _Watcher(self._hooks) if self._is_heard(*_WATCHED) else None
        answer = Answer(turn.token, self.name, is_watched=watcher is not None)
        reader = self._dialect.Reader(answer)
        try:
            await exchange(
                self._port.services,
                turn.request_id,
                self._dialect.PATH,
                body,
                answer,
                reader,
                watcher.tell if watcher is not None else None,
            )
            response = answer.response(call.model)
        except LLMError as error:
            error.model = call.model
            await self._tell("llm:response", self._ended(call, began) | {"status": "error", "error": str(error)})
            raise
        await self._tell("llm:response", self._ended(call, began) | _told(response))
        return response

    async def _call(self, request: ChatRequest, options: Mapping[str, Any]) -> ModelCall:
        call = call_of(request, self.default_model, self.config, options)
        call = replace(call, model=self._routed(call.model))
        if self._dialect is messages and call.max_tokens is None:
            _, longest = await self.limits(call.model)  # the dialect demands a bound
            call = replace(call, max_tokens=longest)
        return call

    def _routed(self, model: str) -> str:
        """`provider/model`, where the configuration says which of the gateway's providers is meant."""
        provider = str(self.config.get("provider") or "")
        return f"{provider}/{model}" if provider and not model.startswith(f"{provider}/") else model

    def _limits(self, model: Model | None) -> tuple[int | None, int | None]:
        told = next((self.config[name] for name in _WINDOWS if _is_count(self.config.get(name))), None)
        window = told or (model.context_window if model else None)
        output = self.config.get("max_tokens")
        if not _is_count(output):
            output = model.max_output_tokens if model else None
            if output and window:
                output = min(output, window // WINDOW_SHARE_OF_ANSWER)
        return window, output

    @property
    def _request_id(self) -> str | None:
        return self._port.turn.request_id if self._port.turn is not None else None

    def _is_heard(self, *events: str) -> bool:
        handlers = self._hooks.list_handlers()
        return any(handlers.get(event) for event in events)

    async def _tell(self, event: str, data: dict[str, Any]) -> None:
        if self._is_heard(event):
            await self._hooks.emit(event, data)

    def _asked(self, call: ModelCall) -> dict[str, Any]:
        """What hooks learn of a call before it: counts, never content."""
        return {
            "provider": self.name,
            "model": call.model,
            "message_count": len(call.conversation.turns),
            "has_instructions": bool(call.conversation.system),
            "tool_count": len(call.tools),
            "thinking_enabled": call.thinking is not None,
            "thinking_budget": call.thinking.budget_tokens if call.thinking is not None else None,
        }

    def _ended(self, call: ModelCall, began: float) -> dict[str, Any]:
        return {"provider": self.name, "model": call.model, "duration_ms": round((time.monotonic() - began) * 1000)}


class _Watcher:
    """The pieces of one answer, told to hooks: as often as chunks come, not as often as tokens do."""

    def __init__(self, hooks: Any) -> None:
        self._hooks = hooks
        self._request_id = uuid.uuid4().hex
        self._sequence = 0

    async def tell(self, answer: Answer) -> None:
        deltas, answer.deltas = answer.deltas, []
        joined: dict[int, tuple[str, list[str]]] = {}
        for delta in deltas:
            kind = "tool_use" if delta.block.kind == "tool_call" else delta.block.kind
            joined.setdefault(delta.block.index, (kind, []))[1].append(delta.text)
        for index, (kind, texts) in joined.items():
            data = {"request_id": self._request_id, "block_index": index, "block_type": kind, "text": "".join(texts)}
            data["is_shown"] = True  # the turn has it already: the bridge for other providers passes it over
            self._sequence += 1
            for event in _WATCHED:
                if self._hooks.list_handlers().get(event):
                    await self._hooks.emit(event, data | {"sequence": self._sequence})


def _told(response: ChatResponse) -> dict[str, Any]:
    """What hooks learn of an answer: counts, never content."""
    usage = response.usage.model_dump(exclude_none=True) if response.usage else {}
    usage.pop("total_tokens", None)
    return {"status": "ok", "usage": usage, "finish_reason": response.finish_reason}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
