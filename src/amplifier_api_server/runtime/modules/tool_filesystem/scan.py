"""One search, as a program of its own: `python -I -S scan.py`, the question as JSON on standard input, the answer on
standard output.

A program, because a regular expression can take for ever while it holds Python's lock: a process can be killed. Standard
library only, and nothing of this package, so that it starts in some milliseconds. Bounded in files, bytes, lines and answers.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import resource
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 10 * 1024 * 1024
MAX_VISITED = 100_000
MAX_LINE_CHARS = 500
MAX_ENTRIES = 5_000  # collected, whatever is asked for; the total goes on counting up to MAX_TOTAL
MAX_TOTAL = 100_000
MAX_KEPT_CHARS = 2_000_000  # of lines, in the answer
CPU_SECONDS = 60

EXCLUDED = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        ".venv",
        "venv",
        "node_modules",
        "__pycache__",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".tox",
        "dist",
        "build",
        ".next",
        "target",
    }
)

TYPES: dict[str, tuple[str, ...]] = {
    "py": ("*.py", "*.pyi"),
    "js": ("*.js", "*.jsx", "*.mjs", "*.cjs"),
    "ts": ("*.ts", "*.tsx", "*.mts", "*.cts"),
    "go": ("*.go",),
    "rust": ("*.rs",),
    "java": ("*.java",),
    "c": ("*.c", "*.h"),
    "cpp": ("*.cpp", "*.cc", "*.cxx", "*.hpp", "*.hh", "*.h"),
    "rb": ("*.rb",),
    "sh": ("*.sh", "*.bash", "*.zsh"),
    "md": ("*.md", "*.markdown"),
    "json": ("*.json",),
    "yaml": ("*.yaml", "*.yml"),
    "html": ("*.html", "*.htm"),
    "css": ("*.css", "*.scss", "*.less"),
    "xml": ("*.xml",),
    "php": ("*.php",),
    "sql": ("*.sql",),
    "swift": ("*.swift",),
    "kotlin": ("*.kt", "*.kts"),
    "toml": ("*.toml",),
    "txt": ("*.txt",),
}


def main() -> int:
    """0 with an answer, 2 with {"error"}."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    asked = json.load(sys.stdin)
    try:
        answer = search(asked)
    except (ValueError, re.error, RecursionError) as error:
        json.dump({"error": f"pattern: {error}"}, sys.stdout)
        return 2
    json.dump(answer, sys.stdout)
    return 0


def search(asked: dict[str, Any]) -> dict[str, Any]:
    """Raises re.error and ValueError for a pattern that is none."""
    flags = re.IGNORECASE if asked["ignore_case"] else 0
    flags |= re.DOTALL | re.MULTILINE if asked["multiline"] else 0
    pattern = re.compile(asked["pattern"], flags)
    root, base = Path(asked["root"]), Path(asked["base"])
    found: list[Any] = []
    total, kept_chars, is_cut = 0, 0, False
    for path, text in _texts(base, asked):
        if total >= MAX_TOTAL:
            is_cut = True
            break
        shown = _shown(path, root)
        if asked["mode"] == "content":
            for entry in _content(pattern, text, shown, asked):
                total += 1
                kept_chars += sum(map(len, (entry["content"], *entry.get("before", ()), *entry.get("after", ()))))
                if len(found) < MAX_ENTRIES and kept_chars <= MAX_KEPT_CHARS:
                    found.append(entry)
                if total >= MAX_TOTAL:
                    break
        elif (count := _count(pattern, text, multiline=asked["multiline"], once=asked["mode"] != "count")) > 0:
            total += 1
            if len(found) < MAX_ENTRIES:
                found.append([shown, count])
    return {"total": total, "found": found, "is_cut": is_cut}


def _texts(base: Path, asked: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Every text file that is asked for, sorted, links not followed."""
    globs = _globs(asked)
    visited = 0
    files: Iterator[Path] = iter([base]) if base.is_file() else _walk(base, all_folders=asked["include_ignored"])
    for path in files:
        visited += 1
        if visited > MAX_VISITED:
            return
        relative = str(path.relative_to(base)) if path != base else path.name
        if globs and not any(fnmatch.fnmatch(path.name, one) or fnmatch.fnmatch(relative, one) for one in globs):
            continue
        text = _text(path)
        if text is not None:
            yield path, text


def _walk(base: Path, *, all_folders: bool) -> Iterator[Path]:
    for folder, folders, names in os.walk(base):
        folders[:] = sorted(one for one in folders if all_folders or one not in EXCLUDED)
        for name in sorted(names):
            yield Path(folder, name)


def _globs(asked: dict[str, Any]) -> list[str]:
    found = [alternative for one in _braces(asked["glob"]) for alternative in (one, one.removeprefix("**/"))]
    return [*found, *TYPES.get(asked["type"], ())]


def _braces(glob: str) -> list[str]:
    """`*.{ts,tsx}` as its alternatives; one pair of braces is all that globs of tools have."""
    if not glob:
        return []
    head, opened, rest = glob.partition("{")
    inner, closed, tail = rest.partition("}")
    if not opened or not closed:
        return [glob]
    return [f"{head}{one}{tail}" for one in inner.split(",")]


def _text(path: Path) -> str | None:
    """A regular text file's content; None for any other, for a large one, and for one that can't be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            return None
        data = file.read(MAX_FILE_BYTES)
    return None if b"\0" in data[:8192] else data.decode("utf-8", "replace")


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _count(pattern: re.Pattern[str], text: str, *, multiline: bool, once: bool) -> int:
    if multiline:
        hits = 0
        for _ in pattern.finditer(text):
            hits += 1
            if once:
                break
        return hits
    hits = 0
    for line in text.splitlines():
        if pattern.search(line):
            hits += 1
            if once:
                break
    return hits


def _content(pattern: re.Pattern[str], text: str, shown: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each line that matches, with its context; in multiline mode the line that a match begins on."""
    lines = text.splitlines()
    if asked["multiline"]:
        numbers = _lines_of_matches(pattern, text)
    else:
        numbers = (number for number, line in enumerate(lines) if pattern.search(line))
    for number in numbers:
        entry: dict[str, Any] = {"file": shown, "line_number": number + 1, "content": _cut(lines, number)}
        if asked["before"]:
            entry["before"] = [_cut(lines, one) for one in range(max(0, number - asked["before"]), number)]
        if asked["after"]:
            last = min(len(lines), number + 1 + asked["after"])
            entry["after"] = [_cut(lines, one) for one in range(number + 1, last)]
        yield entry


def _lines_of_matches(pattern: re.Pattern[str], text: str) -> Iterator[int]:
    number = position = 0
    for match in pattern.finditer(text):
        number += text.count("\n", position, match.start())
        position = match.start()
        yield number


def _cut(lines: list[str], number: int) -> str:
    line = lines[number] if number < len(lines) else ""
    return line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + " [...]"


if __name__ == "__main__":
    sys.exit(main())
