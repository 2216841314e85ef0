"""The Amplifier modules that are part of the runtime, by their ids; each is a package with `mount(coordinator,
config)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# By its folder here. Where two ids mean the same work, one of them is a few lines over the other.
IN_TREE: Mapping[str, str] = MappingProxyType(
    {
        "loop-streaming": "loop_streaming",
        "loop-basic": "loop_basic",
        "context-simple": "context_simple",
        "provider-anthropic": "provider_anthropic",
        "provider-azure-openai": "provider_azure_openai",
        "provider-ollama": "provider_ollama",
        "provider-openai": "provider_openai",
        "provider-vllm": "provider_vllm",
        "tool-bash": "tool_bash",
        "tool-delegate": "tool_delegate",
        "tool-filesystem": "tool_filesystem",
        "tool-search": "tool_search",
        "tool-task": "tool_task",
        "tool-todo": "tool_todo",
        "tool-web": "tool_web",
        "hooks-approval": "hooks_approval",
        "hooks-logging": "hooks_logging",
        "hooks-redaction": "hooks_redaction",
    }
)
# Those whose tools work without a session too; the others need its turn, or its agents.
TOOLS = ("tool-bash", "tool-filesystem", "tool-search", "tool-todo")


def import_all() -> None:
    """Import every one of them: while a warm runtime waits, it costs nobody anything (5 ms of the first session here)."""
    for module_id in IN_TREE:
        in_tree(module_id)


def in_tree(module_id: str) -> Any:
    """An in-tree module's package, imported when first used: a runtime pays for what its profiles name."""
    return importlib.import_module(f"{__name__}.{IN_TREE[module_id]}")
