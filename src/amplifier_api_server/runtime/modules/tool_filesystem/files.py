"""Reading, writing, editing and finding files beneath one folder. Blocking; bounded in what is read, held and
answered.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amplifier_api_server.runtime.modules.tool_filesystem.scan import EXCLUDED
from amplifier_api_server.runtime.turn_port import CAPABILITY

MAX_FILE_BYTES = 10 * 1024 * 1024
MAX_LINES = 2000
MAX_LINE_CHARS = 2000
MAX_FOUND = 1000
MAX_VISITED = 100_000


class FileToolError(Exception):
    """What was asked can't be done; says why, for the model to read."""


def located(folder: Path, path: str) -> Path:
    """The real path. Raises FileToolError when it is not beneath `folder`, wherever links lead."""
    if "\0" in path:
        raise FileToolError("a path holds no NUL")
    root = folder.resolve()
    real = (root / path).resolve()
    if real != root and root not in real.parents:
        raise FileToolError(f"{path} is outside the session's folder, {root}")
    return real


def readable(folder: Path, path: str, coordinator: Any) -> Path:
    """As `located`; beside the folder, what `@namespace:path` names, and the installed collections.

    Raises FileToolError for a mention that nothing is known of.
    """
    if path.startswith("@"):
        resolver = coordinator.get_capability("mention_resolver")
        found = resolver.resolve(path) if resolver is not None else None
        if found is None:
            raise FileToolError(f"{path} names nothing in this session's collections")
        return Path(found)
    port = coordinator.get_capability(CAPABILITY)
    real = (folder.resolve() / path).resolve() if "\0" not in path else folder
    if port is not None and port.services.collections in real.parents:
        return real
    return located(folder, path)


def read(path: Path, file_path: str, offset: int = 1, limit: int = MAX_LINES) -> dict[str, Any]:
    """Lines from `offset` on, numbered as `cat -n` does; or a folder's entries. `path` is what `file_path` means."""
    if path.is_dir():
        entries = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in os.scandir(path))
        return {"file_path": file_path, "entries": entries[:MAX_FOUND], "total": len(entries)}
    lines = _text(path, file_path).splitlines()
    shown = lines[offset - 1 : offset - 1 + min(limit, MAX_LINES)]
    numbered = (f"{number:6d}\t{line[:MAX_LINE_CHARS]}" for number, line in enumerate(shown, offset))
    return {"file_path": file_path, "content": "\n".join(numbered), "total_lines": len(lines), "lines_read": len(shown)}


def write(folder: Path, file_path: str, content: str) -> dict[str, Any]:
    path = located(folder, file_path)
    data = content.encode("utf-8", "replace")
    if len(data) > MAX_FILE_BYTES:
        raise FileToolError(f"content has {len(data)} bytes; {MAX_FILE_BYTES} are allowed")
    if path.is_dir():
        raise FileToolError(f"{file_path} is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, file_path, data)
    return {"file_path": file_path, "bytes": len(data)}


def edit(folder: Path, file_path: str, old_string: str, new_string: str, replace_all: bool = False) -> dict[str, Any]:
    path = located(folder, file_path)
    text = _text(path, file_path)
    count = text.count(old_string) if old_string else 0
    if count == 0:
        raise FileToolError(f"old_string is not in {file_path}" if old_string else "old_string is empty")
    if count > 1 and not replace_all:
        raise FileToolError(
            f"old_string is in {file_path} {count} times; give more of its surroundings, or replace_all"
        )
    if len(text) + count * (len(new_string) - len(old_string)) > MAX_FILE_BYTES:
        raise FileToolError(f"{file_path} would have more than {MAX_FILE_BYTES} bytes")
    _replace(path, file_path, text.replace(old_string, new_string).encode("utf-8", "surrogateescape"))
    return {"file_path": file_path, "replacements": count}


def glob(
    folder: Path,
    path: Path,
    pattern: str,
    kind: str = "any",
    exclude: Sequence[str] = (),
    include_ignored: bool = False,
) -> dict[str, Any]:
    """Paths relative to `folder`, where they are below it; links are not followed. `path` is where to begin."""
    root = folder.resolve()
    if not pattern or pattern.startswith("/") or ".." in Path(pattern).parts or "\0" in pattern:
        raise FileToolError("pattern should be relative, without ..")
    found: list[tuple[float, str]] = []
    for visited, match in enumerate(path.glob(pattern)):
        if visited >= MAX_VISITED:
            break
        inner = match.relative_to(path)
        if not include_ignored and EXCLUDED.intersection(inner.parts[:-1]):
            continue
        if any(fnmatch.fnmatch(match.name, one) or fnmatch.fnmatch(str(inner), one) for one in exclude):
            continue
        try:
            status = match.lstat()
        except OSError:
            continue  # it went away meanwhile
        if kind == "any" or (kind == "dir") == stat.S_ISDIR(status.st_mode):
            found.append((status.st_mtime, str(match.relative_to(root) if match.is_relative_to(root) else match)))
    found.sort(key=lambda one: (-one[0], one[1]))
    return {"matches": [name for _, name in found[:MAX_FOUND]], "count": len(found)}


def _text(path: Path, shown: str) -> str:
    """A regular file's text. O_NONBLOCK: a FIFO would otherwise wait for a writer for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileToolError(f"{shown} is no regular file")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise FileToolError(f"{shown} has more than {MAX_FILE_BYTES} bytes; read a part of it with bash")
    if b"\0" in data[:8192]:
        raise FileToolError(f"{shown} is a binary file")
    return data.decode("utf-8", "surrogateescape")


def _replace(path: Path, shown: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileToolError(f"{shown} is no regular file")
        os.ftruncate(descriptor, 0)
        file.write(data)
