"""`tool-search`: grep and glob, by the ecosystem's names and inputs, in the session's folder and in what `@ns:path` names.

Owns the meaning of the inputs. The search itself is `scan`, in a process of its own that ends with its time or its turn.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from amplifier_core import ToolResult

from amplifier_api_server.runtime import call_groups
from amplifier_api_server.runtime.modules import inputs
from amplifier_api_server.runtime.modules.tool_filesystem import files, scan
from amplifier_api_server.runtime.modules.tool_filesystem import tools as file_tools

TIMEOUT_SECONDS = 30.0
MAX_PATTERN_CHARS = 4_000
MAX_CONTEXT_LINES = 20
DEFAULT_LIMITS = {"content": 500, "files_with_matches": 200, "count": 200}
_MAX_ANSWER_BYTES = 8 * 1024 * 1024


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    folder = Path(coordinator.get_capability("session.working_dir") or Path.cwd())
    timeout = float((config or {}).get("timeout") or TIMEOUT_SECONDS)
    grep = GrepTool(folder, coordinator, timeout_seconds=min(timeout, TIMEOUT_SECONDS))
    await coordinator.mount("tools", grep, name=grep.name)
    for tool in file_tools(folder, coordinator):
        if tool.name == "glob":
            await coordinator.mount("tools", tool, name=tool.name)


class GrepTool:
    name = "grep"
    description = (
        "Search files' contents with a regular expression (Python's syntax). By default it lists the files that match; "
        'output_mode "content" shows the lines, "count" how many there are in each file. Folders such as .git and '
        "node_modules are left out unless include_ignored is true."
    )
    input_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "pattern": {"type": "string", "description": "The regular expression to search for"},
            "path": {"type": "string", "description": "A file or folder; the session's folder if it is left out"},
            "output_mode": {"type": "string", "enum": ["content", "files_with_matches", "count"]},
            "-i": {"type": "boolean", "description": "Ignore case"},
            "-n": {"type": "boolean", "description": "Line numbers, with content; true if it is left out"},
            "-A": {"type": "integer", "minimum": 0, "description": "Lines to show after each match, with content"},
            "-B": {"type": "integer", "minimum": 0, "description": "Lines to show before each match, with content"},
            "-C": {"type": "integer", "minimum": 0, "description": "Lines to show around each match, with content"},
            "glob": {"type": "string", "description": "Only files that match, such as *.py or *.{ts,tsx}"},
            "type": {"type": "string", "description": f"Only files of a kind: {', '.join(scan.TYPES)}"},
            "multiline": {"type": "boolean", "description": "A match may span lines, and . matches line ends"},
            "head_limit": {"type": "integer", "minimum": 0, "description": "At most so many entries; 0 for all"},
            "offset": {"type": "integer", "minimum": 0, "description": "Leave out so many entries first"},
            "include_ignored": {"type": "boolean", "description": "Search folders that are left out otherwise"},
        },
        "required": ["pattern"],
    }

    def __init__(self, folder: Path, coordinator: Any, *, timeout_seconds: float) -> None:
        self._folder = folder
        self._coordinator = coordinator
        self._timeout_seconds = timeout_seconds

    async def execute(self, input: dict[str, Any]) -> ToolResult:  # noqa: A002 - the protocol's name
        try:
            question = self._question(input)
        except files.FileToolError as error:
            return _failed(str(error))
        try:
            answer = await _ask(question, self._timeout_seconds)
        except TimeoutError:
            return _failed(
                f"the search took longer than {self._timeout_seconds:g} s; narrow it by path, glob or a simpler pattern"
            )
        if "error" in answer:
            return _failed(str(answer["error"]))
        return ToolResult(output=_output(input, answer))

    def _question(self, given: dict[str, Any]) -> dict[str, Any]:
        if (wrong := inputs.wrong(given, self.input_schema)) is not None:
            raise files.FileToolError(wrong)
        if not given["pattern"] or len(given["pattern"]) > MAX_PATTERN_CHARS:
            raise files.FileToolError(f"pattern should have 1 to {MAX_PATTERN_CHARS} characters")
        kind = str(given.get("type") or "").lower()
        if kind and kind not in scan.TYPES:
            raise files.FileToolError(f"type is {kind!r}; it should be one of {', '.join(scan.TYPES)}")
        base = files.readable(self._folder, given.get("path") or ".", self._coordinator)
        if not base.exists():
            raise files.FileToolError(f"{given.get('path')} does not exist")
        around = int(given.get("-C") or 0)
        return {
            "pattern": given["pattern"],
            "root": str(self._folder.resolve()),
            "base": str(base),
            "mode": given.get("output_mode") or "files_with_matches",
            "ignore_case": bool(given.get("-i")),
            "multiline": bool(given.get("multiline")),
            "before": min(int(given.get("-B") or around), MAX_CONTEXT_LINES),
            "after": min(int(given.get("-A") or around), MAX_CONTEXT_LINES),
            "glob": str(given.get("glob") or ""),
            "type": kind,
            "include_ignored": bool(given.get("include_ignored")),
        }


def _output(given: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    mode = given.get("output_mode") or "files_with_matches"
    offset = int(given.get("offset") or 0)
    limit = DEFAULT_LIMITS[mode] if given.get("head_limit") is None else int(given["head_limit"])
    page = answer["found"][offset:][: limit or None]
    output: dict[str, Any] = {
        "pattern": given["pattern"],
        "output_mode": mode,
        "total_matches": answer["total"],
        "matches_count": len(page),
    }
    if mode == "content":
        with_numbers = given.get("-n") is not False
        output["results"] = [
            one if with_numbers else {key: value for key, value in one.items() if key != "line_number"} for one in page
        ]
    elif mode == "count":
        output["counts"] = dict(page)
    else:
        output["files"] = [name for name, _ in page]
    if answer["is_cut"] or offset + len(page) < answer["total"]:
        output["results_capped"] = True
    return output


async def _ask(question: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
    """Run one search. Raises TimeoutError. Cancelled or late, its process is killed before this returns."""
    async with call_groups.ours().call() as group:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - asyncio's own takes a thread a child too; this program is ours
            [sys.executable, "-I", "-S", scan.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            close_fds=True,
        )
        try:
            group.add(process.pid)  # it waits for its question
            async with asyncio.timeout(timeout_seconds):
                told, _ = await asyncio.to_thread(process.communicate, json.dumps(question).encode())
        finally:
            if process.poll() is None:
                process.kill()  # communicate() in the thread returns then, and reaps it
    if process.returncode < 0 or len(told) > _MAX_ANSWER_BYTES:
        return {"error": "the search was too large; narrow it by path, glob or a simpler pattern"}
    try:
        answer: dict[str, Any] = json.loads(told)
    except ValueError:
        return {"error": "the search broke off"}
    return answer


def _failed(message: str) -> ToolResult:
    return ToolResult(success=False, error={"message": message})
