"""What one model call asks for, out of core's request, a call's own options and the provider's configuration. Pure.

Owns which of the ecosystem's names mean what. The request's own fields win, then the call's options, then the configuration.
Refuses `base_url` and `api_key`: where a provider is and with which key is the gateway's to know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from amplifier_core import ChatRequest, ToolSpec

from amplifier_api_server.runtime.dialects.conversation import Conversation, conversation_of

# How many tokens of thinking an effort stands for, where a dialect wants tokens.
THINKING_TOKENS: Mapping[str, int] = MappingProxyType(
    {"minimal": 1024, "low": 4096, "medium": 12_288, "high": 32_768, "xhigh": 49_152, "max": 65_536}
)
DEFAULT_EFFORT = "high"  # of extended thinking that says no more
EXTRA = ("seed", "presence_penalty", "frequency_penalty", "parallel_tool_calls", "logit_bias", "verbosity", "top_k")
_REASONS = re.compile(r"(?:o[1-9]|gpt-[5-9]|codex)(?!.*chat)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tool the model may call."""

    kind: Literal["auto", "none", "required", "tool"]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Thinking:
    """How much the model should think before it answers."""

    effort: str | None  # as it was said; None: nobody said
    budget_tokens: int
    is_adaptive: bool = False  # Anthropic's newer models choose for themselves


@dataclass(frozen=True, slots=True)
class ModelCall:
    model: str
    conversation: Conversation
    tools: tuple[ToolSpec, ...]
    choice: Choice | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: tuple[str, ...]
    thinking: Thinking | None
    response_format: Mapping[str, Any] | None  # {"type": "json"} or {"type": "json_schema", "schema", "strict"?}
    caching: bool  # whether to hint at what is worth caching
    options: Mapping[str, Any]  # the rest of what was configured, for what only one dialect knows


def call_of(request: ChatRequest, model: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> ModelCall:
    """`options` are what came with this call, `config` the provider's own."""
    told = {**config, **{name: value for name, value in options.items() if value is not None}}
    name = str(request.model or options.get("model") or model)
    return ModelCall(
        model=name,
        conversation=conversation_of(request.messages),
        tools=tuple(request.tools or ()),
        choice=choice_of(request.tool_choice if request.tool_choice is not None else told.get("tool_choice")),
        max_tokens=_positive(request.max_output_tokens or told.get("max_output_tokens") or told.get("max_tokens")),
        temperature=_number(request.temperature, told.get("temperature")),
        top_p=_number(request.top_p, told.get("top_p")),
        stop=_texts(request.stop if request.stop is not None else told.get("stop")),
        thinking=_thinking(request.reasoning_effort, told),
        response_format=request.response_format.model_dump(by_alias=True, exclude_none=True)
        if request.response_format is not None
        else None,
        caching=told.get("enable_prompt_caching", True) is not False,
        options=told,
    )


def choice_of(told: Any) -> Choice | None:
    """A tool choice in any vendor's words."""
    if isinstance(told, Mapping):
        kind = told.get("type")
        function = told.get("function")
        name = function.get("name") if isinstance(function, Mapping) else told.get("name")
        if kind in ("function", "tool") and name:
            return Choice("tool", str(name))
        told = kind
    match told:
        case "auto" | "none" | "required":
            return Choice(told)
        case "any":
            return Choice("required")
        case str() if told:
            return Choice("tool", told)
    return None


def reasons(model: str) -> bool:
    """Whether OpenAI's naming says that the model thinks by itself; it then refuses `max_tokens`."""
    return _REASONS.match(model.rpartition("/")[2]) is not None


def native_tool(spec: ToolSpec) -> dict[str, Any] | None:
    """A tool that the vendor itself defines, as its own words; None for one of ours."""
    extra = spec.model_extra or {}
    kind = extra.get("type")
    return {**extra, "name": spec.name} if isinstance(kind, str) and kind not in ("function", "custom") else None


def _thinking(effort: str | None, told: Mapping[str, Any]) -> Thinking | None:
    reasoning = told.get("reasoning")
    if isinstance(reasoning, Mapping):
        reasoning = reasoning.get("effort")
    effort = effort or told.get("reasoning_effort") or reasoning
    effort = str(effort).lower() if effort else None
    if effort == "none" or not (effort or told.get("extended_thinking")):
        return Thinking("none", 0) if effort == "none" else None
    budget = _positive(told.get("thinking_budget_tokens")) or THINKING_TOKENS.get(effort or DEFAULT_EFFORT, 32_768)
    return Thinking(effort, budget, told.get("thinking_type") == "adaptive")


def _positive(value: Any) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError):
        return None
    return number if number > 0 else None


def _number(*values: Any) -> float | None:
    return next((value for value in values if isinstance(value, int | float) and not isinstance(value, bool)), None)


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(one for one in value or () if isinstance(one, str) and one)
