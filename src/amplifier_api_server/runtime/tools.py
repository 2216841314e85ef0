"""Tools without a session: their catalog, and one call of one of them, each in a folder of its own that goes with it."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

from amplifier_core import ToolResult

from amplifier_api_server.runtime.bounds import bounded_output, bounded_text
from amplifier_api_server.runtime.failures import Conflicting, Missing
from amplifier_api_server.runtime.modules import TOOLS, in_tree
from amplifier_api_server.runtime.modules.loop_streaming.waiting import until_stopped
from amplifier_api_server.runtime.protocol import ExecuteTool, ToolOutcome, ToolSpec
from amplifier_api_server.runtime.turn_port import CAPABILITY, Services, TurnPort


class Bench:
    """As much of a coordinator as a tool's `mount` needs."""

    def __init__(self, capabilities: dict[str, Any]) -> None:
        self.tools: dict[str, Any] = {}
        self.todo_state: list[Any] = []
        self._capabilities = capabilities

    def get_capability(self, name: str) -> Any:
        return self._capabilities.get(name)

    async def mount(self, mount_point: str, module: Any, name: str | None = None) -> None:
        self.tools[name or module.name] = module


async def bundled_tools(services: Services | None, folder: Path) -> dict[str, Any]:
    """Every bundled tool by name, working in `folder`."""
    capabilities: dict[str, Any] = {"session.working_dir": str(folder)}
    if services is not None:
        capabilities[CAPABILITY] = TurnPort(services, folder)
    bench = Bench(capabilities)
    for module_id in TOOLS:
        await in_tree(module_id).mount(bench, {})
    return bench.tools


async def catalog() -> list[ToolSpec]:
    tools = await bundled_tools(None, Path(tempfile.gettempdir()))
    return [
        ToolSpec(name=one.name, description=one.description, input_schema=one.input_schema) for one in tools.values()
    ]


async def execute(services: Services, name: str, body: ExecuteTool) -> ToolOutcome:
    """Run a tool once. Raises Missing (no_tool), Conflicting (workspace_unavailable); a tool's own trouble is an outcome."""
    folder = services.workspace / f"tool-{secrets.token_hex(8)}"
    tool = (await bundled_tools(services, folder)).get(name)
    if tool is None:
        raise Missing("no_tool", f"there is no tool {name!r:.100}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        detail = f"the tool's folder can't be made: {error.strerror or error}"
        raise Conflicting("workspace_unavailable", detail, status=503) from error
    try:
        return await _run(tool, name, body.input, min(body.timeout_seconds, services.claim.tool_timeout_seconds))
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


async def _run(tool: Any, name: str, given: dict[str, Any], timeout_seconds: float) -> ToolOutcome:
    try:
        result: ToolResult = await until_stopped(tool.execute(given), timeout_seconds=timeout_seconds)
    except TimeoutError:
        return ToolOutcome(tool=name, status="failed", error=f"the tool took longer than {timeout_seconds:g} s")
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - what a tool raises is its caller's to read
        return ToolOutcome(tool=name, status="failed", error=bounded_text(f"{type(error).__name__}: {error}", 4096))
    if result.success:
        return ToolOutcome(tool=name, status="completed", output=bounded_output(result.output))
    message = str((result.error or {}).get("message") or "the tool failed")
    output = None if isinstance(result.output, str) else bounded_output(result.output)
    return ToolOutcome(tool=name, status="failed", output=output, error=bounded_text(message, 4096))
