"""`@path` and `@collection:path` in a prompt: the files' texts, appended to it once each.

Code spans and fences don't mention; a mentioned file may mention others, three deep; what is missing vanishes, as
upstream has it. Invariant: no link and no `..` leads out of the folder that a mention is about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from amplifier_api_server.runtime.failures import BadRequest
from amplifier_api_server.runtime.frontmatter import read_text

MAX_DEPTH = 3
MAX_FILES = 100
MAX_PROMPT_CHARS = 1_000_000

_CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_MENTION = re.compile(r"(?:(?<=\s)|(?<=\()|^)@(?:([A-Za-z0-9][\w-]*):)?([\w./-]*\w)", re.MULTILINE)

Roots = Mapping[str, Path]


def with_mentions(instruction: str, home: Path, roots: Roots) -> str:
    """`instruction`, then what it mentions in blocks. `home` is where paths without a collection begin."""
    blocks: dict[str, list[str]] = {}  # text -> the names that it was mentioned by
    _gather(instruction, home, roots, 0, blocks, set())
    if not blocks:
        return instruction
    parts = [f'<context_file paths="{", ".join(names)}">\n{text}\n</context_file>' for text, names in blocks.items()]
    return "\n\n".join([instruction, "---", *parts])[:MAX_PROMPT_CHARS]


def _gather(text: str, home: Path, roots: Roots, depth: int, blocks: dict[str, list[str]], seen: set[Path]) -> None:
    for match in _MENTION.finditer(_CODE.sub(" ", text)):
        namespace, path = match.group(1), match.group(2)
        root = roots.get(namespace) if namespace else home
        found = root and _found(root, path)
        if not root or not found or found in seen or len(seen) >= MAX_FILES:
            continue
        seen.add(found)
        try:
            content = read_text(found, path, "profile_invalid").strip()
        except BadRequest:
            continue
        blocks.setdefault(content, []).append(match.group(0).strip())
        if depth + 1 < MAX_DEPTH:
            _gather(content, root, roots, depth + 1, blocks, seen)


def _found(root: Path, path: str) -> Path | None:
    real_root = root.resolve()
    candidates: list[Callable[[], Path]] = [lambda: real_root / path, lambda: real_root / f"{path}.md"]
    for candidate in candidates:
        try:
            real = candidate().resolve()
            if real.is_file() and real_root in real.parents:
                return real
        except (OSError, RuntimeError, ValueError):
            continue
    return None
