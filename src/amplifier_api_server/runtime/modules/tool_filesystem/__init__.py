"""`tool-filesystem`: read_file, write_file, edit_file and glob, by the ecosystem's names, in the session's folder.

The sandbox is the border. Paths outside the folder are refused so that a model is told what it did wrong, not for
safety.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amplifier_core import ToolResult

from amplifier_api_server.runtime.modules.tool_filesystem import files

_PATH = {"type": "string", "description": "A path in the session's folder, relative to it"}


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:  # noqa: ARG001 - the caller's signature
    folder = Path(coordinator.get_capability("session.working_dir") or Path.cwd())
    for tool in tools(folder):
        await coordinator.mount("tools", tool, name=tool.name)


def tools(folder: Path) -> list[FileTool]:
    return [
        FileTool(
            folder,
            files.read,
            "read_file",
            "Read a text file, with line numbers, or list a folder. For a long file, `offset` is the first line and "
            "`limit` the number of lines.",
            {
                "file_path": _PATH,
                "offset": {"type": "integer", "minimum": 1},
                "limit": {"type": "integer", "minimum": 1},
            },
            ["file_path"],
        ),
        FileTool(
            folder,
            files.write,
            "write_file",
            "Write a text file, with its folders, over what was there.",
            {"file_path": _PATH, "content": {"type": "string"}},
            ["file_path", "content"],
        ),
        FileTool(
            folder,
            files.edit,
            "edit_file",
            "Replace `old_string`, which must be in the file exactly once (or use `replace_all`), by `new_string`.",
            {
                "file_path": _PATH,
                "old_string": {"type": "string"},
                "new_string": {"type": "string"},
                "replace_all": {"type": "boolean"},
            },
            ["file_path", "old_string", "new_string"],
        ),
        FileTool(
            folder,
            files.glob,
            "glob",
            "Find files by a pattern such as **/*.py, the newest first.",
            {"pattern": {"type": "string"}, "path": _PATH},
            ["pattern"],
        ),
    ]


class FileTool:
    """One function of `files` as a tool. It works in a thread: a disk may be slow, and a folder large."""

    def __init__(
        self,
        folder: Path,
        work: Callable[..., Any],
        name: str,
        description: str,
        properties: dict[str, Any],
        required: list[str],
    ) -> None:
        self._folder = folder
        self._work = work
        self.name = name
        self.description = description
        self.input_schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}

    async def execute(self, input: dict[str, Any]) -> ToolResult:  # noqa: A002 - the protocol's name
        if (wrong := self._wrong(input)) is not None:
            return ToolResult(success=False, error={"message": wrong})
        known = {
            name: value
            for name, value in input.items()
            if name in self.input_schema["properties"] and value is not None
        }
        try:
            return ToolResult(output=await asyncio.to_thread(self._work, self._folder, **known))
        except files.FileToolError as error:
            return ToolResult(success=False, error={"message": str(error)})
        except OSError as error:
            path = input.get("file_path") or input.get("path")
            return ToolResult(success=False, error={"message": f"{path}: {error.strerror or error}"})

    def _wrong(self, given: dict[str, Any]) -> str | None:
        kinds = {"string": str, "integer": int, "boolean": bool}
        for name, schema in self.input_schema["properties"].items():
            value = given.get(name)
            if value is None:
                if name in self.input_schema["required"]:
                    return f"{name} is missing"
            elif not isinstance(value, kinds[schema["type"]]) or (
                schema["type"] == "integer" and isinstance(value, bool)
            ):
                return f"{name} should be of type {schema['type']}"
            elif schema.get("minimum") is not None and value < schema["minimum"]:
                return f"{name} should be at least {schema['minimum']}"
        return None
