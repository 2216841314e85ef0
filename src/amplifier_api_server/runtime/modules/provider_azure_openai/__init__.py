"""`provider-azure-openai`: chat completions of a deployment at Azure, by way of the gateway. Holds no key and no address."""

from __future__ import annotations

from typing import Any

from amplifier_api_server.runtime.dialects import chat_completions
from amplifier_api_server.runtime.dialects.provider import mount_provider


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    """Config as provider-openai's; `default_deployment` is the ecosystem's name for a default model here."""
    config = dict(config or {})
    config.setdefault("default_model", config.get("default_deployment"))
    await mount_provider(
        coordinator, config, name="azure-openai", display_name="Azure OpenAI", dialect=chat_completions
    )
