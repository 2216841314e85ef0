"""`@ns:path` and `@path` in a prompt: the files' texts, appended to it in blocks, each text once.

Code spans and fences don't mention. A mentioned file may mention others, three deep below it; what is missing vanishes.
A path with a namespace is looked for in the pinned trees; one without, in the session's folder, which only the host
knows. Invariant: nothing outside of those folders is read, by no `..` and through no link, whoever wrote the mention.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from amplifier_api_server.runtime.bundles.trees import MAX_ENTRIES
from amplifier_api_server.runtime.failures import BadRequest
from amplifier_api_server.runtime.frontmatter import read_text

MAX_DEPTH = 3
MAX_FILES = 100
MAX_PLAIN = 50  # mentions without a namespace that a plan keeps
MAX_PROMPT_CHARS = 1_000_000

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_TICKS = re.compile(r"`+")
_PARAGRAPHS = re.compile(r"(\n[ \t]*\n)")
_MENTION = re.compile(r"(?<![\w@./:-])@([A-Za-z0-9_.~/][\w:./~-]*)")
_CHARS_CHECKED = 1_000_000


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that a namespace means, with what upstream's modules ask of a bundle."""

    base_path: Path

    def resolve_context_path(self, name: str) -> Path | None:
        """A file or folder below it."""
        return found_below(self.base_path, name)


class MentionResolver:
    """What modules get as the capability `mention_resolver`: `resolve("@ns:path")` is a path, or None.

    `bundles` maps names to folders, as upstream's resolver has it. `base_path` is the session's folder; without one,
    mentions without a namespace mean nothing.
    """

    def __init__(self, namespaces: Mapping[str, Path], base_path: Path | None = None) -> None:
        self.bundles: dict[str, Folder] = {name: Folder(path) for name, path in namespaces.items()}
        self.base_path = base_path

    def resolve(self, mention: str) -> Path | None:
        """`mention` begins with @. None when it isn't there."""
        if not mention.startswith("@"):
            return None
        namespace, colon, path = mention[1:].partition(":")
        if colon:
            folder = self.bundles.get(namespace)
            return folder.resolve_context_path(path) if folder is not None else None
        if self.base_path is None or mention.startswith("@~"):
            return None
        return found_below(self.base_path, mention[1:]) or found_below(self.base_path, f"{mention[1:]}.md")

    def register_bundle(self, name: str, bundle: Any) -> None:
        """`bundle` has a base_path."""
        self.bundles[name] = Folder(Path(bundle.base_path))

    def over(self, namespaces: Mapping[str, Path]) -> MentionResolver:
        """Another one, to which these names come first."""
        other = MentionResolver(namespaces, self.base_path)
        other.bundles = self.bundles | other.bundles
        return other


class Blocks:
    """The texts that a prompt mentions, gathered: each once, with all names that it was mentioned by."""

    def __init__(self, resolver: MentionResolver, missed: Callable[[str, str], None] | None = None) -> None:
        """`missed` is told each mention that isn't there or can't be read, and why, in a clause."""
        self._resolver = resolver
        self._missed = missed
        self._texts: dict[str, list[str]] = {}
        self._seen: set[str] = set()

    def add(self, name: str, content: str) -> bool:
        """False when it is there already, under another name."""
        names = self._texts.setdefault(content, [])
        if name not in names:
            names.append(name)
        return len(names) == 1

    def gather(self, text: str, depth: int = 0) -> None:
        """What `text` mentions, and what that mentions in turn."""
        for mention in mentions_in(text):
            if mention in self._seen or len(self._seen) >= MAX_FILES:
                continue
            self._seen.add(mention)
            path = self._resolver.resolve(mention)
            try:
                content = read(path)
            except BadRequest as error:
                if self._missed is not None:
                    self._missed(mention, error.failure.detail)
                continue
            if self.add(mention, content) and path is not None and depth < MAX_DEPTH and path.is_file():
                self.gather(content, depth + 1)

    def render(self) -> str:
        return "\n\n".join(
            f'<context_file paths="{", ".join(names)}">\n{text}\n</context_file>' for text, names in self._texts.items()
        )


def expand(text: str, resolver: MentionResolver) -> tuple[str, str]:
    """`text`, and the blocks of what it mentions; empty when there are none. Blocking: it reads files."""
    blocks = Blocks(resolver)
    blocks.gather(text)
    return text, blocks.render()


def joined(instruction: str, blocks: str) -> str:
    """A prompt: the instruction, a rule, the blocks."""
    return "\n\n".join(part for part in (instruction, "---" if instruction and blocks else "", blocks) if part)


def mentions_in(text: str) -> list[str]:
    """Each once, in their order, with the @."""
    plain = _without_code(text[:_CHARS_CHECKED])
    found = (f"@{match.group(1).rstrip('.:-~')}" for match in _MENTION.finditer(plain))
    return list(dict.fromkeys(mention for mention in found if len(mention) > 1))


def plain_mentions(mentions: Iterable[str]) -> list[str]:
    """Those without a namespace, which mean files in the session's folder."""
    return [mention for mention in mentions if ":" not in mention][:MAX_PLAIN]


def read(path: Path | None) -> str:
    """A file's text, or a folder's listing. Raises BadRequest, which says why there is none."""
    if path is None:
        raise BadRequest("profile_invalid", "it is not there")
    try:
        if path.is_dir():
            return _listing(path)
    except OSError as error:
        raise BadRequest("profile_invalid", f"{path.name} can't be read: {error.strerror or error}") from error
    return read_text(path, path.name, "profile_invalid").strip()


def found_below(root: Path, relative: str) -> Path | None:
    """A file or folder below `root`, unless a link or a `..` leads there."""
    parts = [part for part in relative.strip("/").split("/") if part not in ("", ".")]
    if ".." in parts or "\x00" in relative:
        return None
    found = root
    for part in parts:
        found = found / part
        try:
            if found.is_symlink():
                return None
        except OSError:
            return None
    try:
        return found if found.is_file() or found.is_dir() else None
    except OSError:
        return None


def _without_code(text: str) -> str:
    """Less code: a fence ends at its like or at the end, a span within its paragraph."""
    text = _without_fences(text) if "```" in text or "~~~" in text else text
    return "".join(_without_spans(part) if "`" in part else part for part in _PARAGRAPHS.split(text))


def _without_fences(text: str) -> str:
    kept: list[str] = []
    fence = ""  # that is open
    for line in text.split("\n"):
        match = _FENCE.match(line)
        marks, rest = match.groups() if match is not None else ("", "")
        if fence:
            if marks.startswith(fence) and not rest.strip():
                fence = ""
        elif marks and "`" not in (rest if marks[0] == "`" else ""):
            fence = marks
        else:
            kept.append(line)
    return "\n".join(kept)


def _without_spans(paragraph: str) -> str:
    """A span ends at the next run of as many backticks. In one pass: the text may be made to be slow."""
    runs = list(_TICKS.finditer(paragraph))
    ends: dict[int, list[re.Match[str]]] = {}
    for run in reversed(runs):
        ends.setdefault(len(run.group()), []).append(run)
    kept, at = [], 0
    for run in runs:
        same = ends[len(run.group())]
        while same and same[-1].start() <= max(run.start(), at - 1):
            same.pop()
        if run.start() >= at and same:
            kept.append(paragraph[at : run.start()])
            at = same.pop().end()
    return " ".join([*kept, paragraph[at:]])


def _listing(folder: Path) -> str:
    with os.scandir(folder) as entries:
        found = [(not entry.is_dir(follow_symlinks=False), entry.name) for entry in islice(entries, MAX_ENTRIES)]
    lines = [f"  {'FILE' if is_file else 'DIR '} {name}" for is_file, name in sorted(found)]
    return "\n".join(lines or ["  (empty)"])
