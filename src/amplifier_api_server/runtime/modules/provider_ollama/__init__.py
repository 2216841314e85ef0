"""`provider-ollama`: Ollama's chat completions, by way of the gateway. Holds no key and no address."""

from __future__ import annotations

from typing import Any

from amplifier_api_server.runtime.dialects import chat_completions
from amplifier_api_server.runtime.dialects.provider import mount_provider


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    await mount_provider(coordinator, config, name="ollama", display_name="Ollama", dialect=chat_completions)
