"""`provider-openai`: OpenAI's chat completions, or its responses with `api: responses`, by way of the gateway. Holds no key
and no address.
"""

from __future__ import annotations

from typing import Any

from amplifier_api_server.runtime.dialects import chat_completions, responses
from amplifier_api_server.runtime.dialects.provider import mount_provider

APIS = {"chat": chat_completions, "chat_completions": chat_completions, "responses": responses}


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    """Raises ValueError for an `api` that there is not."""
    api = str((config or {}).get("api") or "chat")
    if api not in APIS:
        raise ValueError(f"provider-openai: api is {api!r}; it should be one of {', '.join(APIS)}")
    await mount_provider(coordinator, config, name="openai", display_name="OpenAI", dialect=APIS[api])
