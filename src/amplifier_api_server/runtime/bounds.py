"""What is too long is cut in the middle, and says so: of tools' outputs, before they reach an event or a transcript."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from amplifier_api_server.runtime.events import clean, encoded
from amplifier_api_server.runtime.protocol import MAX_TOOL_OUTPUT_CHARS

_NOTE_CHARS = 64


def bounded_text(text: str, limit_chars: int = MAX_TOOL_OUTPUT_CHARS) -> str:
    """`text`, or its head and tail with the number of characters left out between them."""
    text = clean(text)
    if len(text) <= limit_chars:
        return text
    half = max((limit_chars - _NOTE_CHARS) // 2, 0)
    tail = text[len(text) - half :]
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{tail}"


def bounded_output(output: Any, limit_chars: int = MAX_TOOL_OUTPUT_CHARS) -> Any:
    """`output` as plain JSON of about `limit_chars` characters: its long strings cut, else all of it as cut text."""
    if isinstance(output, str):
        return bounded_text(output, limit_chars)
    text = encoded(output)
    if len(text) <= limit_chars:
        return from_json(text)
    plain = from_json(text)
    if isinstance(plain, dict):
        share = limit_chars // len(plain)
        cut = {key: bounded_text(value, share) if isinstance(value, str) else value for key, value in plain.items()}
        if len(encoded(cut)) <= 2 * limit_chars:  # escapes may lengthen what was cut to fit
            return cut
    return bounded_text(text, limit_chars)
