"""Which fields of a request pass to a provider: those that the vendors publish and that only shape the answer.

Owns the lists. Everything else is left out, so that a field that makes a provider choose another model, another address or
another account is left out before anybody here has heard of it; an operator has more passed by a provider's `extra_fields`.
It is left out and not refused, because clients send fields without being asked, as they do those that name people, keep
data on the operator's account or choose what is paid. What runs something at the provider is refused: see `server_tools`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

# https://platform.openai.com/docs/api-reference/chat/create; the sampling of the last line is known to most servers that
# speak the dialect.
CHAT = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "stop", "seed"),
        *("temperature", "top_p", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format"),
        *("reasoning_effort", "verbosity", "modalities", "audio", "prediction", "moderation"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("web_search_options", "search_parameters", "plugins", "data_sources"),
        *("top_k", "min_p", "typical_p", "repetition_penalty", "min_tokens", "ignore_eos"),
    }
)
CHAT_DROPPED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier"})

# https://platform.openai.com/docs/api-reference/responses/create
RESPONSES = frozenset(
    {
        *("model", "input", "instructions", "stream", "stream_options", "max_output_tokens", "max_tool_calls"),
        *("temperature", "top_p", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "include", "text"),
        *("reasoning", "truncation", "context_management", "moderation"),
        *(
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "prompt",
            "search_parameters",
            "plugins",
        ),
    }
)
RESPONSES_DROPPED = frozenset(
    {
        # Of a memory that there is none of. `store` is sent as false: without it the vendor keeps every answer.
        *("store", "previous_response_id", "conversation", "background"),
        *("user", "metadata", "service_tier", "safety_identifier"),
    }
)

# https://docs.anthropic.com/en/api/messages
MESSAGES = frozenset(
    {
        *("model", "messages", "system", "max_tokens", "stop_sequences", "stream", "temperature", "top_p", "top_k"),
        *("thinking", "tools", "tool_choice", "cache_control", "context_management", "compaction", "output_config"),
        *("output_format", "mcp_servers"),
    }
)
MESSAGES_DROPPED = frozenset(
    {
        *("metadata", "container", "service_tier", "inference_geo", "speed"),
        *("diagnostics", "user_profile_id", "workspace_id"),
    }
)


def passing(
    body: Mapping[str, Any], published: frozenset[str], dropped: frozenset[str], extra: Collection[str]
) -> dict[str, Any]:
    """What of a body passes to a provider whose operator has the fields of these patterns passed too."""
    return {
        name: value
        for name, value in body.items()
        if name in published or (name not in dropped and any(fnmatchcase(name, pattern) for pattern in extra))
    }
