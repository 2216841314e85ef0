"""`loop-basic`: the same loop as `loop-streaming`, by the other name. It streams too, which profiles don't mind."""

from __future__ import annotations

from typing import Any

from amplifier_api_server.runtime.modules.loop_streaming import mount_loop


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    await mount_loop(coordinator, config, name="loop-basic")
