"""`tool-filesystem`: read_file (which lists folders too), write_file, edit_file and glob, by the ecosystem's names, in the
session's folder; reading also follows `@namespace:path` into its collections.

The sandbox is the border. Paths outside the folder are refused so that a model is told what it did wrong, not for
safety.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amplifier_core import ToolResult

from amplifier_api_server.runtime.modules import inputs
from amplifier_api_server.runtime.modules.tool_filesystem import files

_PATH = {"type": "string", "description": "A path in the session's folder, relative to it"}
_READ_PATH = {"type": "string", "description": "A path in the session's folder, or @namespace:path of a collection"}

_WRITING = ("write_file", "edit_file")

Work = Callable[..., dict[str, Any]]


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    """With `allowed_write_paths: []`, the ecosystem's setting, nothing that writes is mounted."""
    folder = Path(coordinator.get_capability("session.working_dir") or Path.cwd())
    is_read_only = (config or {}).get("allowed_write_paths") == []
    for tool in tools(folder, coordinator):
        if not is_read_only or tool.name not in _WRITING:
            await coordinator.mount("tools", tool, name=tool.name)


def tools(folder: Path, coordinator: Any) -> list[FileTool]:
    def read(file_path: str, **more: Any) -> dict[str, Any]:
        return files.read(files.readable(folder, file_path, coordinator), file_path, **more)

    def write(file_path: str, content: str) -> dict[str, Any]:
        return files.write(folder, file_path, content)

    def edit(**given: Any) -> dict[str, Any]:
        return files.edit(folder, **given)

    def glob(pattern: str, path: str = ".", **more: Any) -> dict[str, Any]:
        return files.glob(
            folder, files.readable(folder, path, coordinator), pattern, kind=more.pop("type", "any"), **more
        )

    return [
        FileTool(read, coordinator, "artifact:read", _READ),
        FileTool(write, coordinator, "artifact:write", _WRITE),
        FileTool(edit, coordinator, "artifact:write", _EDIT),
        FileTool(glob, coordinator, None, _GLOB),
    ]


class FileTool:
    """One function of `files` as a tool. It works in a thread: a disk may be slow, and a folder large.

    `event` is what hooks are told of when it has worked: with the path, never with the content.
    """

    def __init__(self, work: Work, coordinator: Any, event: str | None, spec: dict[str, Any]) -> None:
        self._work = work
        self._coordinator = coordinator
        self._event = event
        self.name: str = spec["name"]
        self.description: str = spec["description"]
        self.input_schema: dict[str, Any] = {
            "type": "object",
            "properties": spec["properties"],
            "required": spec["required"],
        }

    async def execute(self, input: dict[str, Any]) -> ToolResult:  # noqa: A002 - the protocol's name
        if (wrong := inputs.wrong(input, self.input_schema)) is not None:
            return ToolResult(success=False, error={"message": wrong})
        known = {
            name: value
            for name, value in input.items()
            if name in self.input_schema["properties"] and value is not None
        }
        path = input.get("file_path") or input.get("path")
        try:
            output = await asyncio.to_thread(self._work, **known)
        except files.FileToolError as error:
            return ToolResult(success=False, error={"message": str(error)})
        except OSError as error:
            return ToolResult(success=False, error={"message": f"{path}: {error.strerror or error}"})
        await self._tell(str(path), output)
        return ToolResult(output=output)

    async def _tell(self, path: str, output: dict[str, Any]) -> None:
        hooks = getattr(self._coordinator, "hooks", None)  # a bench for tools without a session has none
        if self._event is not None and hooks is not None:
            await hooks.emit(self._event, {"path": path, "bytes": output.get("bytes"), "tool": self.name})


_READ = {
    "name": "read_file",
    "description": "Read a text file, with line numbers, or list a folder. For a long file, `offset` is the first line and "
    "`limit` the number of lines.",
    "properties": {
        "file_path": _READ_PATH,
        "offset": {"type": "integer", "minimum": 1},
        "limit": {"type": "integer", "minimum": 1},
    },
    "required": ["file_path"],
}
_WRITE = {
    "name": "write_file",
    "description": "Write a text file, with its folders, over what was there.",
    "properties": {"file_path": _PATH, "content": {"type": "string"}},
    "required": ["file_path", "content"],
}
_EDIT = {
    "name": "edit_file",
    "description": "Replace `old_string`, which must be in the file exactly once (or use `replace_all`), by `new_string`.",
    "properties": {
        "file_path": _PATH,
        "old_string": {"type": "string"},
        "new_string": {"type": "string"},
        "replace_all": {"type": "boolean"},
    },
    "required": ["file_path", "old_string", "new_string"],
}
_GLOB = {
    "name": "glob",
    "description": "Find files by a pattern such as **/*.py, the newest first. Folders such as .git and node_modules are "
    "left out unless include_ignored is true.",
    "properties": {
        "pattern": {"type": "string"},
        "path": _READ_PATH,
        "type": {"type": "string", "enum": ["file", "dir", "any"]},
        "exclude": {"type": "array", "items": {"type": "string"}, "description": "Patterns to leave out"},
        "include_ignored": {"type": "boolean"},
    },
    "required": ["pattern"],
}
