"""One model call: from a parsed request to its last byte and its usage.

Owns the order of things in a call. Refuses to know which turn may call and which model is meant: that is settled
before. Invariants: usage is handed to the turn exactly once, before the sandbox sees the answer's end; what was not
reserved does not pass; the provider's key is in nothing that leaves.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.model_gateway import failures
from amplifier_api_server.control_plane.model_gateway.answers import (
    Receive,
    Refusal,
    Send,
    no_turn,
    quota_exceeded,
    respond,
    unavailable,
)
from amplifier_api_server.control_plane.model_gateway.budget import PromptEstimates
from amplifier_api_server.control_plane.model_gateway.dialects.openai import (
    SMALL_ALLOWANCE,
    AnswerReader,
    ChatRequest,
    rewritten,
)
from amplifier_api_server.control_plane.model_gateway.providers import Target, headers_for, key_of
from amplifier_api_server.control_plane.model_gateway.sse import EventSplitter, EventTooLarge, data_of
from amplifier_api_server.control_plane.model_gateway.turns import CallUsage, MeteredTurn, RunningTurns
from amplifier_api_server.control_plane.model_gateway.upstream import Answer, Timeouts, Upstream, UpstreamError
from amplifier_api_server.control_plane.settings import Models

log = structlog.get_logger(__name__)

_OK = 200
_MAX_EVENT_BYTES = 4 * 1024 * 1024
_REDACTED = b"[redacted]"

Outcome = Literal["ok", "refused", "failed", "cut", "abandoned"]


@dataclass(frozen=True, slots=True)
class Means:
    """What every call uses."""

    settings: Models
    upstream: Upstream
    turns: RunningTurns
    estimates: PromptEstimates
    clock: Clock


class ModelCall:
    """One call. `run` it once."""

    def __init__(self, means: Means, turn: MeteredTurn, request: ChatRequest, target: Target) -> None:
        self._means = means
        self._turn = turn
        self._request = request
        self._target = target
        self.call_id = "call_" + secrets.token_hex(16)
        # With several choices a running count is of one of them.
        self._has_running_count = target.provider.continuous_usage and request.choices == 1
        self._reader = AnswerReader(is_running_count=self._has_running_count)
        self._key = key_of(target.provider)
        self._prompt_estimate = means.estimates.tokens(turn.tenant_id, target.model, request.prompt_bytes)
        self._charged = 0  # tokens of the turn's allowance that this call has used so far
        self._bound: int | None = None  # of one choice, where it is ours and not the request's own
        self._has_begun = False  # the sandbox was sent the head of an answer
        self._is_streaming = False  # and it has no end yet
        self._held: list[bytes] = []  # events that wait for the provider's count
        self._was_sent = False  # the request went out whole
        self._was_answered = False  # and was accepted
        self._is_abandoned = False  # nobody wants the rest
        self._is_settled = asyncio.Event()
        self._deadline = asyncio.timeout(means.settings.call_timeout.total_seconds())
        self._outcome: Outcome = "ok"
        self._status = 0
        self._started = time.perf_counter()

    # What a turn may do with it.

    def end(self, *, abort: bool) -> None:
        """See `turns.Call`. With a running count nothing is to be learned by reading on."""
        self._is_abandoned = True
        knows_usage = self._has_running_count and self._reader.counted is not None
        at_most = 0.0 if abort or knows_usage else self._means.settings.drain.total_seconds()
        self._hurry(at_most)

    async def ended(self) -> None:
        await self._is_settled.wait()

    def _hurry(self, seconds: float) -> None:
        """Bring the call's deadline forward."""
        when = asyncio.get_running_loop().time() + seconds
        now_at = self._deadline.when()
        if not self._is_settled.is_set() and now_at is not None and when < now_at and not self._deadline.expired():
            self._deadline.reschedule(when)

    # The call.

    async def run(self, receive: Receive, send: Send) -> None:
        """Answer the sandbox, whatever happens."""
        if not self._means.turns.call_began(self._turn, self):
            await no_turn().send(send)
            return
        watcher = asyncio.create_task(self._watch(receive))
        refusal: Refusal | None = None
        try:
            try:
                async with self._deadline:
                    refusal = await self._call(send)
            except TimeoutError:
                refusal = self._timed_out()
            except UpstreamError as error:
                log.warning("model:provider_failed", provider=self._target.provider.name, error=str(error))
                refusal = failures.of_wire(error, self._target.provider.name)
                self._outcome = "failed"
            except Exception:
                log.exception("model:call_failed", turn_id=self._turn.turn_id, call_id=self.call_id)
                refusal = Refusal(500, "internal", "the gateway failed; it is logged")
                self._outcome = "failed"
        finally:
            watcher.cancel()
            self._settle()
        await self._close(send, refusal)

    async def _watch(self, receive: Receive) -> None:
        """The body was read: what comes now is the sandbox hanging up."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end(abort=False)

    async def _call(self, send: Send) -> Refusal | None:
        allowance = self._turn.allowance
        # One token more than the prompt: a call that could not say anything is not made.
        if not await allowance.take(self._prompt_estimate + 1):
            self._outcome = "refused"
            return quota_exceeded()
        self._charged = self._prompt_estimate + 1
        self._charge_to(self._prompt_estimate)
        await self._choose_bound()
        provider, settings = self._target.provider, self._means.settings
        body = rewritten(
            self._request,
            model=self._target.model,
            continuous_usage=provider.continuous_usage,
            max_tokens=self._bound,
        )
        # Without a stream the first byte comes when the model is done.
        idle = settings.idle_timeout if self._request.streams else settings.call_timeout
        timeouts = Timeouts(settings.connect_timeout.total_seconds(), idle.total_seconds())
        self._was_sent = True
        try:
            answer = await self._means.upstream.call(
                "POST", self._target.chat_url, headers_for(provider), body, timeouts
            )
        except UpstreamError:
            self._was_sent = False
            raise
        self._status = answer.status
        try:
            return await self._answered(answer, send)
        finally:
            answer.close()

    async def _answered(self, answer: Answer, send: Send) -> Refusal | None:
        if answer.status != _OK:
            self._outcome, self._was_sent = "failed", False
            failed = await failures.read(answer, self._target.provider, self._key)
            if isinstance(failed, Refusal):
                return failed
            self._settle()
            self._has_begun = True
            await respond(send, answer.status, failed.body, headers=failed.headers)
            return None
        self._was_answered = True
        if answer.headers.get(b"content-encoding", b"identity") != b"identity":
            raise failures.unreadable()
        kind = answer.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind == b"text/event-stream":
            return await self._stream(answer, send)
        return await self._whole(answer, send)

    # An answer in one piece.

    async def _whole(self, answer: Answer, send: Send) -> Refusal | None:
        parts, length = [], 0
        while chunk := await answer.read():
            length += len(chunk)
            if length > self._means.settings.max_response:
                self._outcome = "failed"
                return failures.too_large()
            parts.append(chunk)
        body = b"".join(parts)
        if not self._reader.read(body):
            self._outcome = "failed"
            return unavailable(502, "the model provider's answer is no chat completion")
        self._reader.ended = True
        used = self._usage().total_tokens - self._charged
        if used > 0 and not await self._turn.allowance.take(used):
            self._outcome = "cut"
            return quota_exceeded()
        self._charged += max(0, used)
        self._settle()
        if not self._is_abandoned:
            self._has_begun = True
            await respond(send, _OK, self._redacted(body))
        return None

    # An answer as a stream of events.

    async def _stream(self, answer: Answer, send: Send) -> Refusal | None:
        splitter = EventSplitter(_MAX_EVENT_BYTES)
        length = 0
        try:
            while chunk := await answer.read():
                length += len(chunk)
                if length > self._means.settings.max_response:
                    self._outcome = "failed"
                    return failures.too_large()
                passing, refusal = await self._pass(splitter.feed(chunk))
                if self._reader.is_done:
                    # The turn may end as soon as the sandbox has the end: its usage must be there by then.
                    self._settle()
                await self._send_events(send, passing)
                if refusal is not None:
                    return refusal
                if self._reader.is_done:
                    answer.end()
                    return None
        except EventTooLarge:
            self._outcome = "failed"
            return failures.too_large()
        return await self._at_end(splitter.rest(), send)

    async def _at_end(self, rest: bytes, send: Send) -> Refusal | None:
        """The body ended without [DONE]: whole if the model said that it was finished, else cut short."""
        passing, refusal = await self._pass([rest] if rest.strip() else [])
        refusal = refusal or self._release(passing)
        if refusal is None and not self._reader.ended and not self._reader.failed:
            self._outcome = "failed"
            log.warning("model:stream_cut_short", provider=self._target.provider.name)
            return unavailable(502, "the model provider ended the stream before the answer was complete")
        self._settle()
        await self._send_events(send, passing)
        return refusal

    async def _pass(self, events: Sequence[bytes]) -> tuple[list[bytes], Refusal | None]:
        """The events that the sandbox gets, and why it gets no more of them, if it doesn't."""
        reader = self._reader
        passing: list[bytes] = []
        for event in events:
            before, counted = reader.completion_tokens, reader.counted
            reader.read(data_of(event))
            if reader.completion_tokens > before and not await self._may_pass(reader.completion_tokens - before):
                # What did not pass is not counted, so that a turn never costs more than it may.
                reader.completion_tokens, reader.counted = before, counted
                self._outcome = "cut"
                return passing, quota_exceeded()
            if reader.is_usage_only and not self._request.wants_usage:
                continue
            if self._bound is not None and reader.is_length:
                self._held.append(event)
            else:
                passing.append(event)
        return passing, self._release(passing) if reader.is_done else None

    def _release(self, passing: list[bytes]) -> Refusal | None:
        """At the end: what was held passes, unless it was the budget's bound at which the model stopped."""
        held, self._held = self._held, []
        if held and self._bound is not None:
            usage = self._usage()
            if usage.estimated or usage.completion_tokens >= self._bound:
                self._outcome = "cut"
                return quota_exceeded()
        passing += held
        return None

    async def _may_pass(self, tokens: int) -> bool:
        allowance = self._turn.allowance
        if not allowance.is_limited or allowance.left >= tokens:
            allowance.use(tokens)
        elif not await allowance.take(tokens):
            return False
        self._charged += tokens
        return True

    async def _send_events(self, send: Send, events: Sequence[bytes]) -> None:
        if self._is_abandoned or not events:
            return
        if not self._has_begun:
            self._has_begun = self._is_streaming = True
            await _begin_stream(send)
        joined = events[0] if len(events) == 1 else b"".join(events)
        await send({"type": "http.response.body", "body": self._redacted(joined), "more_body": True})

    # Budget, count, end.

    async def _choose_bound(self) -> None:
        """Bound the answer where the budget is nearer than the request's own bound.

        A request without a bound gets one only when little is left: a large one might be above what the model takes.
        """
        if not self._turn.allowance.is_limited:
            return
        reach = await self._turn.allowance.reach()
        assert reach is not None
        each = max(1, reach // self._request.choices)
        wanted = self._request.max_tokens
        if each <= SMALL_ALLOWANCE if wanted is None else each < wanted:
            self._bound = each

    def _charge_to(self, tokens: int) -> None:
        self._turn.allowance.use(tokens - self._charged)
        self._charged = tokens

    def _timed_out(self) -> Refusal | None:
        if self._is_abandoned:
            self._outcome = "abandoned"
            return no_turn()
        self._outcome = "failed"
        return unavailable(504, "the model call took longer than allowed")

    def _usage(self) -> CallUsage:
        """What the call used, as far as it is known now: by the provider's own count, if that is final."""
        reader, counted = self._reader, self._reader.counted
        is_final = counted is not None and (reader.ended or self._has_running_count)
        prompt, completion = self._prompt_estimate, reader.completion_tokens
        total = prompt + completion
        if counted is not None:
            prompt = counted.prompt_tokens or prompt
            completion = counted.completion_tokens if is_final else completion
            total = counted.total_tokens if is_final else prompt + completion
        return CallUsage(
            call_id=self.call_id,
            model=self._target.model,
            provider=self._target.provider.name,
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=total,
            estimated=not is_final,
            finished_at=self._means.clock.now(),
        )

    def _settle(self) -> None:
        """Hand the usage over, once, and put the allowance right by it.

        A call that the provider did not accept used nothing; one that was given up before its answer came used its
        prompt.
        """
        if self._is_settled.is_set():
            return
        used = self._was_answered or (self._was_sent and self._is_abandoned)
        usage = self._usage() if used else None
        self._charge_to(usage.total_tokens if usage else 0)
        if usage is not None and not usage.estimated:
            self._means.estimates.learn(
                self._turn.tenant_id, self._target.model, self._request.prompt_bytes, usage.prompt_tokens
            )
        self._means.turns.call_ended(self._turn, self, usage)
        self._is_settled.set()
        log.debug(
            "model:call",
            turn_id=self._turn.turn_id,
            call_id=self.call_id,
            model=self._target.model,
            provider=self._target.provider.name,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            estimated=usage.estimated if usage else False,
            duration_ms=round((time.perf_counter() - self._started) * 1000),
            status=self._status,
            outcome=self._outcome,
        )

    async def _close(self, send: Send, refusal: Refusal | None) -> None:
        """The end of the answer: a refusal of its own, a last frame in a stream, or just the end."""
        if refusal is not None and not self._has_begun:
            await refusal.send(send)
        elif self._is_streaming:
            frame = refusal.frame() if refusal is not None else b""
            await send({"type": "http.response.body", "body": frame, "more_body": False})

    def _redacted(self, data: bytes) -> bytes:
        return data.replace(self._key, _REDACTED) if self._key and self._key in data else data


async def _begin_stream(send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": _OK, "headers": headers})
