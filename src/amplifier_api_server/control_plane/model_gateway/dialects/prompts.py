"""How many tokens a prompt may well be, before a provider has counted it.

Owns the estimate, which is made from bytes, without a tokenizer. It is above the count of most prompts, and at least three
eighths of that of any text: a tokenizer that knows nothing of a script still makes no more than a token of each byte.
What a request holds beside its text counts by its kind. Refuses to know a model's window, and what was learned of it.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# Four of these are a token of prose, and two of gibberish; of everything else two, and one.
_LIGHT = (string.ascii_lowercase + string.whitespace).encode()
_IMAGE_TOKENS = 2500  # vendors say 85 to 4,800 of one, mostly about 1,500
_FILE_TOKENS = 4096  # of a document or a recording, at least
_BYTES_A_FILE_TOKEN = 4  # of its base64
_TOOLS_TOKENS = 512  # what a vendor itself says to the model of how to call tools

_IMAGES = frozenset({"image_url", "input_image", "image"})
_FILES = frozenset({"file", "input_file", "document", "input_audio", "audio", "video", "video_url", "container_upload"})
_REFERENCES = frozenset({"item_reference"})  # to what the provider keeps
# Where the vendors put a file's bytes or its address: https://platform.openai.com/docs/guides/pdf-files,
# https://docs.anthropic.com/en/docs/build-with-claude/files.
_HOLDERS = ("image_url", "file_data", "input_audio", "file", "source", "url", "data", "audio", "video", "video_url")


class Prompt(NamedTuple):
    """Tokens of a request's text and of what else it holds. `has_unseen`: a document that is somewhere else."""

    text_tokens: int
    file_tokens: int
    has_unseen: bool


def prompt_of(raw: bytes, body: Mapping[str, Any], parts: Any) -> Prompt:
    """Of a body that came as `raw`; `parts`: its messages or items."""
    text, files, has_unseen = text_tokens(raw), _TOOLS_TOKENS if body.get("tools") else 0, False
    for part in _parts(parts):
        kind = part.get("type")
        if kind in _REFERENCES:
            has_unseen = True
        elif kind in _IMAGES or kind in _FILES:
            held = list(_held(part))
            inlined = [one for one in held if not _is_address(one)]
            text -= sum(text_tokens(one.encode(errors="replace")) for one in inlined)
            if kind in _IMAGES and not any(one.startswith("data:") and one[5:11] != "image/" for one in inlined):
                files += _IMAGE_TOKENS
            elif inlined:
                files += max(_FILE_TOKENS, sum(map(len, inlined)) // _BYTES_A_FILE_TOKEN)
            else:
                has_unseen = True
    return Prompt(max(1, text), files, has_unseen)


def text_tokens(text: bytes) -> int:
    """Of prose and code some more than there are; of what is hardest on tokenizers three eighths."""
    heavy = len(text.translate(None, _LIGHT))
    return (len(text) + heavy + 3) // 4


def strings_in(value: Any, skipped: frozenset[str] = frozenset()) -> Iterator[str]:
    """Every text within a value, but those by these names. Depth costs no recursion."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += [inner for name, inner in one.items() if name not in skipped]
        elif isinstance(one, list):
            waiting += one


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Messages, items and parts, and the parts within them. A document that is text is none: it is text."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            source = one.get("source")
            if not isinstance(source, dict) or source.get("type") not in ("text", "content"):
                yield one
            waiting += [inner.get(name) for inner in (one, source) if isinstance(inner, dict) for name in _WITHIN]


_WITHIN = ("content", "output")  # where parts hold parts


def _held(part: Mapping[str, Any]) -> Iterator[str]:
    """The bytes of a file, as text, or its address, in a part that is one."""
    waiting: list[Any] = [part]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [one[name] for name in _HOLDERS if name in one]
        elif isinstance(one, str):
            yield one


def _is_address(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://", "gs://", "s3://"))
