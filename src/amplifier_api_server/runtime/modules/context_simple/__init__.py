"""`context-simple`: the transcript in memory, whole; a request gets as many of the newest turns as fit.

Invariant: a request never splits a tool call from its result, and always holds the newest user message.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

CHARS_PER_TOKEN = 4  # a rough mean for English and code; only decides what is left out of a request
DEFAULT_MAX_TOKENS = 200_000

PromptFactory = Callable[[], Awaitable[str]]


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    await coordinator.mount("context", SimpleContext(int((config or {}).get("max_tokens") or DEFAULT_MAX_TOKENS)))


class SimpleContext:
    def __init__(self, max_tokens: int = DEFAULT_MAX_TOKENS) -> None:
        self._messages: list[dict[str, Any]] = []
        self._max_chars = max_tokens * CHARS_PER_TOKEN
        self._system_prompt: PromptFactory | None = None

    async def set_system_prompt_factory(self, factory: PromptFactory) -> None:
        """`factory` is asked anew for each request; its prompt is not a part of the transcript."""
        self._system_prompt = factory

    async def add_message(self, message: dict[str, Any]) -> None:
        self._messages.append(message)

    async def get_messages(self) -> list[dict[str, Any]]:
        return list(self._messages)

    async def set_messages(self, messages: list[dict[str, Any]]) -> None:
        self._messages = list(messages)

    async def clear(self) -> None:
        self._messages.clear()

    async def get_messages_for_request(
        self,
        token_budget: int | None = None,
        provider: Any | None = None,
    ) -> list[dict[str, Any]]:
        """System prompt and transcript, without the oldest turns where all would not fit."""
        prompt = await self._system_prompt() if self._system_prompt is not None else ""
        chars = token_budget * CHARS_PER_TOKEN if token_budget else self._max_chars
        head = [{"role": "system", "content": prompt}] if prompt else []
        return head + newest_turns(self._messages, chars - len(prompt))


def newest_turns(messages: list[dict[str, Any]], max_chars: int) -> list[dict[str, Any]]:
    """The longest run of whole turns at the end of `messages` within `max_chars`; at least the last turn.

    A turn begins with a user's message, so that a cut before one never parts a tool call from its result.
    """
    start = total = 0
    for index in range(len(messages) - 1, -1, -1):
        total += len(json.dumps(messages[index], ensure_ascii=False))
        if messages[index].get("role") == "user":
            if total > max_chars and start:
                break
            start = index
    return messages[start:] if total > max_chars else list(messages)
