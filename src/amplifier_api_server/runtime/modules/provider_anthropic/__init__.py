"""`provider-anthropic`: Anthropic's messages, by way of the gateway. Holds no key and no address."""

from __future__ import annotations

from typing import Any

from amplifier_api_server.runtime.dialects import messages
from amplifier_api_server.runtime.dialects.provider import mount_provider


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    await mount_provider(coordinator, config, name="anthropic", display_name="Anthropic", dialect=messages)
