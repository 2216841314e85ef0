"""Older turns in a few words, by the session's own model; quietly, and charged to the turn as every call is.

Owns the question. Refuses to decide what is summarised. Invariant: a summary that can't be had is None, never an exception
but the turn's own cancellation: a turn doesn't fail for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from amplifier_core import ChatRequest, Message

from amplifier_api_server.runtime.bounds import bounded_text
from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.modules.context_simple.view import BYTES_PER_TOKEN
from amplifier_api_server.runtime.turn_port import TurnPort

log = logging.getLogger(__name__)

MAX_MESSAGE_CHARS = 4_000  # of one message, in the question
MAX_SUMMARY_CHARS = 24_000
MAX_SUMMARY_TOKENS = 8_192  # with what the model thinks before it
MIN_SUMMARY_TOKENS = 512
MAX_PIECES = 8  # questions for one summary; what is older than that is left out
SECONDS = 120.0

QUESTION = (
    "Below is the older part of a conversation between a user and an assistant that has tools. It will be left out of what "
    "the assistant sees, and your summary stands in its place. Write that summary. Keep every fact that later turns may "
    "need: what the user asked for, said about themselves and decided; names, numbers, paths, identifiers and settings "
    "exactly as they were given; what was done and found out, which files were changed and how; what is still open. Leave "
    "out what is settled and of no further use. Write plain text, nothing else."
)


async def summarised(
    port: TurnPort, provider: Any, before: str, messages: Sequence[dict[str, Any]], max_tokens: int
) -> str | None:
    """The summary of `before` (an earlier summary) and `messages`. Each question is within `max_tokens`."""
    answer_tokens = min(MAX_SUMMARY_TOKENS, max(MIN_SUMMARY_TOKENS, max_tokens // 4))
    room_chars = max(2_000, max_tokens * BYTES_PER_TOKEN // 2)
    summary = before
    try:
        async with asyncio.timeout(SECONDS):
            for piece in list(_pieces(messages, room_chars))[-MAX_PIECES:]:
                summary = await _ask(port, provider, summary, piece, answer_tokens)
    except Exception as error:  # noqa: BLE001 - whatever a provider raises: there is a way on without a summary
        log.warning("older turns could not be summarised: %s", type(error).__name__)
        return None
    return bounded_text(summary, MAX_SUMMARY_CHARS) if summary.strip() else None


async def _ask(port: TurnPort, provider: Any, before: str, piece: str, answer_tokens: int) -> str:
    earlier = f"<earlier_summary>\n{before}\n</earlier_summary>\n\n" if before else ""
    request = ChatRequest(
        messages=[
            Message(role="system", content=QUESTION),
            Message(role="user", content=f"{earlier}<conversation>\n{piece}\n</conversation>"),
        ],
        max_output_tokens=answer_tokens,
    )
    with port.quietly():
        response = await provider.complete(request, extended_thinking=False)  # it would take the answer's room
    text = "".join(block.text for block in response.content if block.type == "text")
    if not text.strip():
        raise ValueError("the model said nothing")
    return text


def _pieces(messages: Sequence[dict[str, Any]], room_chars: int) -> Iterator[str]:
    """The messages as text, in pieces of about `room_chars`."""
    held: list[str] = []
    size = 0
    for message in messages:
        text = _told(message)
        if held and size + len(text) > room_chars:
            yield "\n\n".join(held)
            held, size = [], 0
        held.append(bounded_text(text, room_chars))
        size += len(text)
    if held:
        yield "\n\n".join(held)


def _told(message: dict[str, Any]) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else encoded(content) if content else ""
    calls = [f"[calls {one.get('tool')} {encoded(one.get('arguments'))}]" for one in message.get("tool_calls") or ()]
    who = f"tool {message['name']}" if message.get("role") == "tool" and message.get("name") else message.get("role")
    return f"{who}: " + bounded_text("\n".join([text, *calls]).strip(), MAX_MESSAGE_CHARS)
