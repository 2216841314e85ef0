"""What of a transcript goes into a request: pure, by sizes, never parting a tool call from its result.

Sizes are in tokens, estimated as UTF-8 bytes of the JSON by four: near enough for English and code, and not too low for
scripts of several bytes a character. Invariants: a view begins with a user's message; every call in it has its result and
the other way round; nothing given is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amplifier_api_server.runtime.bounds import bounded_text
from amplifier_api_server.runtime.events import encoded

Messages = list[dict[str, Any]]

BYTES_PER_TOKEN = 4
OLD_RESULT_CHARS = 1_000  # that a tool's result keeps when it is no more among the newest
SHORT_RESULT_CHARS = 200  # and where even that is too much
IMAGE_TOKENS = 1_600  # what vendors count for a large image, about
IMAGE_LEFT_OUT = "(An image was left out.)"
LEFT_OUT = "(Earlier steps of this turn were left out, since they did not fit.)"


def tokens_of(messages: Sequence[dict[str, Any]]) -> int:
    """About how many tokens they are."""
    return sum(_bytes_of(one) for one in messages) // BYTES_PER_TOKEN


def _bytes_of(message: dict[str, Any]) -> int:
    """An image's bytes say nothing of what it costs."""
    content = message.get("content")
    images = [one for one in content if _is_image(one)] if isinstance(content, list) else []
    if not images:
        return len(encoded(message).encode())
    rest = [one for one in content or () if not _is_image(one)]
    return len(encoded({**message, "content": rest}).encode()) + len(images) * IMAGE_TOKENS * BYTES_PER_TOKEN


def _is_image(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "image"


def turn_starts(messages: Sequence[dict[str, Any]]) -> list[int]:
    """Where turns begin: at users' messages."""
    return [index for index, one in enumerate(messages) if one.get("role") == "user"]


def newest_turns_from(messages: Sequence[dict[str, Any]], max_tokens: int) -> int:
    """The index of the first of the newest whole turns that together are within `max_tokens`; of the last one at least."""
    starts = turn_starts(messages)
    if not starts:
        return 0
    found, total, end = starts[-1], 0, len(messages)
    for start in reversed(starts):
        total += sum(map(_bytes_of, messages[start:end]))
        if total // BYTES_PER_TOKEN > max_tokens:
            break
        found, end = start, start
    return 0 if found == starts[0] else found


def newest_steps_from(messages: Sequence[dict[str, Any]], max_tokens: int) -> int:
    """The same for the steps of one long turn: the index of a model's message, so that no call is parted from its result.

    0 where there is nothing before the last step.
    """
    starts = [index for index, one in enumerate(messages) if one.get("role") == "assistant"][1:]
    found, total, end = 0, 0, len(messages)
    for start in reversed(starts):
        total += sum(map(_bytes_of, messages[start:end]))
        if found and total // BYTES_PER_TOKEN > max_tokens:
            break
        found, end = start, start
    return found


def asked_before(messages: Sequence[dict[str, Any]], at: int) -> list[dict[str, Any]]:
    """What the user asked in the turn that index `at` is in the middle of; nothing where a turn begins there."""
    if at >= len(messages) or messages[at].get("role") == "user":
        return []
    return next(([one] for one in reversed(messages[:at]) if one.get("role") == "user"), [])


def shortened(messages: Sequence[dict[str, Any]], keep: int, limit_chars: int = OLD_RESULT_CHARS) -> Messages:
    """The same with tools' results cut to `limit_chars`, but for those among the last `keep` messages."""
    first_kept = len(messages) - keep
    return [one if index >= first_kept else _short(one, limit_chars) for index, one in enumerate(messages)]


def _short(message: dict[str, Any], limit_chars: int) -> dict[str, Any]:
    content = message.get("content")
    if message.get("role") != "tool":
        return message
    text = _text(content)
    is_short = len(text) <= limit_chars and isinstance(content, str)
    return message if is_short else {**message, "content": bounded_text(text, limit_chars)}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(IMAGE_LEFT_OUT if _is_image(one) else str(one.get("text") or "") for one in content)
    return content if isinstance(content, str) else encoded(content)


def fitted(messages: Messages, max_tokens: int) -> Messages:
    """One turn, or several, made to fit: old results shorter, then all results, then whole steps of the last turn left out.

    What is left at least is the last user's message, and its newest step.
    """
    for keep, limit_chars in ((4, OLD_RESULT_CHARS), (1, OLD_RESULT_CHARS), (0, SHORT_RESULT_CHARS)):
        if tokens_of(messages) <= max_tokens:
            return messages
        messages = shortened(messages, keep, limit_chars)
    start = newest_turns_from(messages, max_tokens)
    messages = messages[start:]
    if tokens_of(messages) <= max_tokens:
        return messages
    return _newest_steps(messages, max_tokens)


def _newest_steps(turn: Messages, max_tokens: int) -> Messages:
    """The user's message, a word about what is left out, and the newest steps (a model's message and its results)."""
    first = next((index for index, one in enumerate(turn) if one.get("role") != "user"), len(turn))
    asked, rest = turn[:first], turn[first:]
    steps = [index for index, one in enumerate(rest) if one.get("role") == "assistant"]
    for start in steps[1:]:
        kept = [*asked, {"role": "assistant", "content": LEFT_OUT}, *rest[start:]]
        if tokens_of(kept) <= max_tokens or start == steps[-1]:
            return kept
    return turn
