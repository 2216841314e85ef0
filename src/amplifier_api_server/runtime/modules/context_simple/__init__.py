"""`context-simple`: the transcript in memory, whole; a request gets a view of it that fits the model's window.

What is compacted is the view, never the transcript: older turns are summarised by the session's own model, and the summary
is kept as the session's state, so that it survives suspension and is made once. Invariants: a request never splits a tool
call from its result, and always holds the newest user message; a turn never fails because something did not fit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from amplifier_api_server.runtime.modules.context_simple.summary import summarised
from amplifier_api_server.runtime.modules.context_simple.view import fitted, newest_turns_from, tokens_of
from amplifier_api_server.runtime.turn_port import CAPABILITY, TurnPort

log = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 128_000  # where neither the configuration nor the gateway knows the model's window
DEFAULT_THRESHOLD = 0.8  # of the room: beyond it older turns are summarised
KEPT_SHARE = 0.4  # of the room: the newest turns that stay as they are, when older ones are summarised
ANSWER_SHARE = 8  # of the window, at least, is left for the answer
DROPPED = "(Older turns of this conversation were left out, since they did not fit.)"
PromptFactory = Callable[[], Awaitable[str]]


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    """Config: max_tokens, compact_threshold (0 to 1), auto_compact."""
    config = config or {}
    context = SimpleContext(
        max_tokens=int(config.get("max_tokens") or 0) or None,
        threshold=float(config.get("compact_threshold") or DEFAULT_THRESHOLD),
        summarises=config.get("auto_compact") is not False,
        port=coordinator.get_capability(CAPABILITY),
        hooks=coordinator.hooks,
    )
    await coordinator.mount("context", context)


class SimpleContext:
    def __init__(
        self,
        max_tokens: int | None = None,
        *,
        threshold: float = DEFAULT_THRESHOLD,
        summarises: bool = True,
        port: TurnPort | None = None,
        hooks: Any = None,
    ) -> None:
        self._messages: list[dict[str, Any]] = []
        self._max_tokens = max_tokens
        self._threshold = min(max(threshold, 0.1), 1.0)
        self._summarises = summarises
        self._port = port
        self._hooks = hooks
        self._system_prompt: PromptFactory | None = None
        self._summary = ""
        self._upto = 0  # messages that the summary stands for
        self._compacting = asyncio.Lock()

    async def set_system_prompt_factory(self, factory: PromptFactory) -> None:
        """`factory` is asked anew for each request; its prompt is not a part of the transcript."""
        self._system_prompt = factory

    async def add_message(self, message: dict[str, Any]) -> None:
        self._messages.append(message)

    async def get_messages(self) -> list[dict[str, Any]]:
        return list(self._messages)

    async def set_messages(self, messages: list[dict[str, Any]]) -> None:
        """A summary of messages that are not there any more goes with them."""
        self._messages = list(messages)
        if self._upto > len(self._messages):
            self._summary, self._upto = "", 0

    async def clear(self) -> None:
        await self.set_messages([])

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the transcript."""
        return {"summary": self._summary, "upto": self._upto} if self._upto else {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """After `set_messages`. What does not fit the transcript is not taken."""
        summary, upto = state.get("summary"), state.get("upto")
        if isinstance(summary, str) and isinstance(upto, int) and 0 < upto <= len(self._messages):
            self._summary, self._upto = summary, upto
        else:
            self._summary, self._upto = "", 0

    async def should_compact(self) -> bool:
        """Whether the next request will be over the threshold, by the window known without a provider."""
        return tokens_of(self._messages[self._upto :]) > self._threshold * (self._max_tokens or DEFAULT_MAX_TOKENS)

    async def compact(self) -> None:
        """Nothing to do: the view is compacted when it is asked for, and the transcript never is."""

    async def get_messages_for_request(
        self,
        token_budget: int | None = None,
        provider: Any | None = None,
    ) -> list[dict[str, Any]]:
        """System prompt, summary and newest turns, within the model's window."""
        prompt = await self._system_prompt() if self._system_prompt is not None else ""
        window = token_budget or await self._window(provider)
        room = max(window - tokens_of([{"role": "system", "content": prompt}]), window // 4)
        if self._summarises and tokens_of(self._messages[self._upto :]) > self._threshold * room:
            async with self._compacting:
                await self._compact(provider, room)
        room = max(room - tokens_of([{"content": self._summary}]), window // 8)
        newest = self._messages[self._upto :]
        view = fitted(newest, room)
        head = _head(prompt, self._summary, is_cut=len(view) < len(newest) and not self._summary)
        return [*head, *view]

    async def _compact(self, provider: Any, room: int) -> None:
        newest = self._messages[self._upto :]
        kept_from = newest_turns_from(newest, int(KEPT_SHARE * room))
        if kept_from == 0 or self._port is None or provider is None:
            return  # one long turn: its view is made to fit instead
        await self._tell("context:pre_compact", messages=len(newest), tokens=tokens_of(newest))
        summary = await summarised(self._port, provider, self._summary, newest[:kept_from], room)
        if summary is None:
            return
        self._summary, self._upto = summary, self._upto + kept_from
        await self._tell("context:post_compact", messages=len(newest) - kept_from, summary_chars=len(summary))

    async def _window(self, provider: Any) -> int:
        """Tokens for a request: of the model's window, what an answer does not need."""
        window, answer = None, None
        try:
            if hasattr(provider, "limits"):
                window, answer = await provider.limits()
            elif provider is not None:
                defaults = provider.get_info().defaults or {}
                window, answer = defaults.get("context_window"), defaults.get("max_output_tokens")
        except Exception as error:  # noqa: BLE001 - a provider is anybody's code, and there is a default
            log.warning("a model's window is not known: %s", type(error).__name__)
        if isinstance(window, int) and window > 0:
            reserve = answer if isinstance(answer, int) and 0 < answer < window // 2 else window // ANSWER_SHARE
            return min(window - reserve, self._max_tokens or window)
        return self._max_tokens or DEFAULT_MAX_TOKENS

    async def _tell(self, event: str, **data: Any) -> None:
        if self._hooks is not None:
            await self._hooks.emit(event, data)


def _head(prompt: str, summary: str, *, is_cut: bool) -> list[dict[str, Any]]:
    told = f"<conversation_summary>\n{summary}\n</conversation_summary>" if summary else DROPPED if is_cut else ""
    text = "\n\n".join(part for part in (prompt, told) if part)
    return [{"role": "system", "content": text}] if text else []
