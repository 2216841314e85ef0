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
LEFT_OUT = "(Earlier steps of this turn were left out, since they did not fit.)"


def tokens_of(messages: Sequence[dict[str, Any]]) -> int:
    """About how many tokens they are."""
    return sum(len(encoded(one).encode()) for one in messages) // BYTES_PER_TOKEN


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
        total += tokens_of(messages[start:end])
        if total > max_tokens:
            break
        found, end = start, start
    return 0 if found == starts[0] else found


def shortened(messages: Sequence[dict[str, Any]], keep: int, limit_chars: int = OLD_RESULT_CHARS) -> Messages:
    """The same with tools' results cut to `limit_chars`, but for those among the last `keep` messages."""
    first_kept = len(messages) - keep
    return [one if index >= first_kept else _short(one, limit_chars) for index, one in enumerate(messages)]


def _short(message: dict[str, Any], limit_chars: int) -> dict[str, Any]:
    content = message.get("content")
    if message.get("role") != "tool":
        return message
    text = content if isinstance(content, str) else encoded(content)
    return message if len(text) <= limit_chars else {**message, "content": bounded_text(text, limit_chars)}


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
