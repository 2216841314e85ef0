"""Markdown with YAML before it, and YAML alone, from anybody: parsed with limits, into JSON values, with the line that
every key stands on.

Refuses anchors' aliases (a few bytes that mean gigabytes), doubled keys, depth, size, tags and whatever JSON can't say.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from amplifier_api_server.runtime.failures import BadRequest

MAX_FILE_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_NODES = 20_000
_LEAST_INTEGER, _MOST_INTEGER = -(2**63), 2**63 - 1  # what every reader of a compiled plan can hold

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """`data` is the YAML; `body` what follows it; `lines` where each key stands in the file, from 1."""

    name: str  # of the file, as errors say it
    data: Mapping[str, Any]
    body: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def wrong(self, code: str, message: str, *path: str | int) -> BadRequest:
        """An error about `path` that names file and line: the line of the nearest key above it that is known."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return BadRequest(code, f"{self.name}:{self.lines[path[:length]]}: {message}")
        return BadRequest(code, f"{self.name}: {message}")


def read_text(path: Path, name: str, code: str, limit_bytes: int = MAX_FILE_BYTES) -> str:
    """A regular file's text, never through a link at its end. Raises BadRequest with `code`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadRequest(code, f"{name} is no regular file")
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise BadRequest(code, f"{name} can't be read: {error.strerror or error}") from None
    if len(data) > limit_bytes:
        raise BadRequest(code, f"{name} has more than {limit_bytes} bytes")
    try:
        return data.decode("utf-8-sig")  # Windows' editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise BadRequest(code, f"{name} is not UTF-8 at byte {error.start}") from None


def parse(text: str, name: str, code: str) -> Document:
    """A document from its text. Without a first line of `---` all of it is body. Raises BadRequest with `code`."""
    text = text.removeprefix("\ufeff")
    lines = text.split("\n")
    if lines[0].rstrip() != "---":
        return Document(name, {}, text)
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() in ("---", "...")), None)
    if end is None:
        raise BadRequest(code, f"{name}:1: the frontmatter that begins with --- has no end")
    return _document("\n".join(lines[1:end]), "\n".join(lines[end + 1 :]).strip(), name, code, first_line=2)


def parse_yaml(text: str, name: str, code: str) -> Document:
    """A document that is YAML from its first line on. Raises BadRequest with `code`."""
    return _document(text.removeprefix("\ufeff"), "", name, code, first_line=1)


def _document(source: str, body: str, name: str, code: str, *, first_line: int) -> Document:
    """`first_line` is where `source` begins in the file."""
    try:
        _check_events(source, name, code, first_line)
        loader = _Loader(source)
        try:
            node = loader.get_single_node()
            _demand_single_keys(node, name, code, first_line)
            data = loader.construct_document(node) if node is not None else {}
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + first_line}" if mark else name
        raise BadRequest(code, f"{where}: {error.problem or 'is no YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise BadRequest(code, f"{name}: is no YAML: {str(error)[:200]}") from None
    if not isinstance(data, dict):
        raise BadRequest(code, f"{name}:{first_line}: it should be a mapping")
    found: dict[KeyPath, int] = {}
    _note_lines(node, (), found, first_line)
    document = Document(name, {}, body, found)
    return Document(name, _as_json(data, (), document, code), body, found)


def _check_events(source: str, name: str, code: str, first_line: int) -> None:
    """Before anything is built of it: composing recurses in C and would crash on depth, and aliases multiply."""
    depth = 0
    for count, event in enumerate(yaml.parse(source, Loader=_Loader)):
        line = (event.start_mark.line if event.start_mark else 0) + first_line
        if isinstance(event, yaml.AliasEvent):
            raise BadRequest(code, f"{name}:{line}: aliases (*{event.anchor}) are not taken here; write it out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise BadRequest(code, f"{name}:{line}: nested deeper than {MAX_DEPTH}")
        if count > MAX_NODES:
            raise BadRequest(code, f"{name}:{line}: more than {MAX_NODES} values")


def _demand_single_keys(node: yaml.Node | None, name: str, code: str, first_line: int) -> None:
    """A key that is there twice hides one of its values (YAML 1.2.2, 3.2.1.3). Before merging, which doubles some."""
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + first_line
                if key.value in lines:
                    first = lines[key.value]
                    raise BadRequest(
                        code, f"{name}:{line}: the key {key.value!r:.60} is there twice, first in line {first}"
                    )
                lines[key.value] = line
            _demand_single_keys(value, name, code, first_line)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _demand_single_keys(value, name, code, first_line)


def _note_lines(node: yaml.Node | None, path: KeyPath, found: dict[KeyPath, int], first_line: int) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                below = (*path, key.value)
                found[below] = key.start_mark.line + first_line
                _note_lines(value, below, found, first_line)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            below = (*path, index)
            found[below] = value.start_mark.line + first_line
            _note_lines(value, below, found, first_line)


def _as_json(value: Any, path: KeyPath, document: Document, code: str) -> Any:
    """`value` as JSON has it: keys are text, dates are their ISO form; what has none is refused."""
    match value:
        case None | bool():
            return value
        case int():
            if not _LEAST_INTEGER <= value <= _MOST_INTEGER:  # str() would refuse to write the largest
                raise document.wrong(code, "an integer should have 64 bits at most", *path)
            return value
        case str():
            return _encodable(value, path, document, code)
        case float() if math.isfinite(value):
            return value
        case dt.date():
            return value.isoformat()
        case dict():
            named = {str(_as_json(key, path, document, code)): item for key, item in value.items()}
            return {name: _as_json(item, (*path, name), document, code) for name, item in named.items()}
        case list():
            return [_as_json(item, (*path, index), document, code) for index, item in enumerate(value)]
        case _:
            raise document.wrong(code, f"{value!r:.60} is nothing that JSON can say", *path)


def _encodable(value: str, path: KeyPath, document: Document, code: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise document.wrong(code, "a text holds half of a surrogate pair, which is no character", *path) from None
    return value
