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
from amplifier_api_server.runtime.modules.context_simple.view import (
    BYTES_PER_TOKEN,
    asked_before,
    fitted,
    newest_steps_from,
    newest_turns_from,
    tokens_of,
)
from amplifier_api_server.runtime.turn_port import CAPABILITY, TurnPort

log = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 128_000  # where neither the configuration nor the gateway knows the model's window
DEFAULT_THRESHOLD = 0.8  # of the room: beyond it older turns are summarised
KEPT_SHARE = 0.4  # of the room: the newest turns that stay as they are, when older ones are summarised
ANSWER_SHARE = 8  # of the window, at least, is left for the answer
DROPPED = "(Older turns of this conversation were left out, since they did not fit.)"
RETRY_AFTER_MESSAGES = 8  # since a summary failed: a provider that can't now is not asked at every step
MIN_CORRECTION, MAX_CORRECTION = 0.8, 4.0  # of the estimate, by the provider's own count
PLAUSIBLE_CORRECTION = 0.4  # a count far below the estimate says nothing: some servers count no prompts
SHRINKING = 0.7  # of what a provider found too long without saying why
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
        self._failed_at = -RETRY_AFTER_MESSAGES  # how many messages there were when a summary last failed
        self._sent_tokens = 0  # of the last view, as estimated
        self._correction = 1.0  # the provider's tokens for one estimated token
        self._specs_tokens = 0  # what a request holds beside the view: the tools
        self._learned_window: int | None = None  # by a provider that found a request too long

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

    def note_usage(self, input_tokens: int, other_chars: int) -> None:
        """What a provider counted for the last view and `other_chars` of tools beside it."""
        self._specs_tokens = other_chars // BYTES_PER_TOKEN
        correction = input_tokens / max(self._sent_tokens + self._specs_tokens, 1)
        if correction >= PLAUSIBLE_CORRECTION:
            self._correction = min(max(correction, MIN_CORRECTION), MAX_CORRECTION)

    def note_too_long(self, window: int | None) -> bool:
        """A provider refused the last view as too long; whether a smaller one is worth a try. `window` if it said."""
        sent = int((self._sent_tokens + self._specs_tokens) * self._correction)
        if window is not None and window >= sent:  # then the estimate was too low
            self._correction = min(self._correction * 1.5, MAX_CORRECTION)
        self._learned_window = min(window or int(sent * SHRINKING), self._learned_window or sent)
        return self._sent_tokens > 0

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
        window = int((token_budget or await self._window(provider)) / self._correction)
        taken = tokens_of([{"role": "system", "content": prompt}]) + self._specs_tokens
        room = max(window - taken, window // 4)
        if self._summarises and tokens_of(self._newest) > self._threshold * room:
            async with self._compacting:
                await self._compact(provider, room)
        room = max(room - tokens_of([{"content": self._summary}]), window // 8)
        newest = self._newest
        view = fitted(newest, room)
        made = [*_head(prompt, self._summary, is_cut=len(view) < len(newest) and not self._summary), *view]
        self._sent_tokens = tokens_of(made)
        return made

    @property
    def _newest(self) -> list[dict[str, Any]]:
        """What the summary does not stand for; in mid-turn with what was asked in that turn."""
        return [*asked_before(self._messages, self._upto), *self._messages[self._upto :]]

    async def _compact(self, provider: Any, room: int) -> None:
        newest, kept = self._newest, int(KEPT_SHARE * room)
        kept_from = newest_turns_from(newest, kept) or newest_steps_from(newest, kept)
        summed_up = kept_from - len(asked_before(self._messages, self._upto))
        if summed_up <= 0 or self._port is None or provider is None:
            return  # one step: its view is made to fit instead
        if 0 <= len(self._messages) - self._failed_at < RETRY_AFTER_MESSAGES:
            return
        before = tokens_of(newest)
        await self._tell("context:pre_compact", messages=len(newest), tokens=before)
        summary = await summarised(self._port, provider, self._summary, newest[:kept_from], room)
        if summary is None:
            self._failed_at = len(self._messages)
            return
        self._summary, self._upto = summary, self._upto + summed_up
        self._failed_at = -RETRY_AFTER_MESSAGES
        after = tokens_of(self._newest) + tokens_of([{"content": summary}])
        await self._tell("context:post_compact", messages=len(self._newest), tokens=after, summary_chars=len(summary))
        await self._tell("context:compaction", before_tokens=before, after_tokens=after, strategy="summary")

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
        if self._learned_window is not None:
            window = min(self._learned_window, window or self._learned_window)
        if isinstance(window, int) and window > 0:
            reserve = answer if isinstance(answer, int) and 0 < answer < window // 2 else window // ANSWER_SHARE
            return min(window - reserve, self._max_tokens or window)
        return self._max_tokens or DEFAULT_MAX_TOKENS

    async def _tell(self, event: str, **data: Any) -> None:
        if self._hooks is not None and self._hooks.list_handlers().get(event):
            await self._hooks.emit(event, data)


def _head(prompt: str, summary: str, *, is_cut: bool) -> list[dict[str, Any]]:
    told = f"<conversation_summary>\n{summary}\n</conversation_summary>" if summary else DROPPED if is_cut else ""
    text = "\n\n".join(part for part in (prompt, told) if part)
    return [{"role": "system", "content": text}] if text else []
