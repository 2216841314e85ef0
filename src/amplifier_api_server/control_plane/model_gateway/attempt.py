"""One attempt of a model call at one target: the request out, the answer through.

Owns the passing of an answer and its reading on the way. Refuses to know other targets and tries. Invariants: the
attempt's usage is handed over before the sandbox sees the answer's end; the key is in nothing that leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.model_gateway import failures
from amplifier_api_server.control_plane.model_gateway.answers import Refusal, quota_exceeded
from amplifier_api_server.control_plane.model_gateway.budget import PromptEstimates
from amplifier_api_server.control_plane.model_gateway.dialects import Dialect, Request
from amplifier_api_server.control_plane.model_gateway.failures import Failure, Passed
from amplifier_api_server.control_plane.model_gateway.metering import Meter
from amplifier_api_server.control_plane.model_gateway.outlet import Outlet
from amplifier_api_server.control_plane.model_gateway.providers import headers_for, key_of, url_for
from amplifier_api_server.control_plane.model_gateway.resilience import Breakers
from amplifier_api_server.control_plane.model_gateway.sse import EventSplitter, EventTooLarge, data_of, is_stream
from amplifier_api_server.control_plane.model_gateway.targets import Target
from amplifier_api_server.control_plane.model_gateway.turns import CallUsage, MeteredTurn, RunningTurns
from amplifier_api_server.control_plane.model_gateway.upstream import Answer, Timeouts, Upstream, UpstreamError
from amplifier_api_server.control_plane.settings import Models

log = structlog.get_logger(__name__)

_OK = 200
_MAX_EVENT_BYTES = 4 * 1024 * 1024
_BEGIN_BYTES = 1024  # of a body, in which it shows whether it is a stream; blank lines may come before
_ERROR_BYTES = 1024  # what is no answer and shorter, or a page of HTML, is a proxy's word of what went wrong
_LONGEST_WAIT_SECONDS = 15.0  # for a stream's first word: after that its comments pass, which keep clients waiting
_MOST_UNSAID_BYTES = 256 * 1024
_UNCOUNTED_TOKENS = 64  # of the event at which a stream is cut
_REDACTED = b"[redacted]"
_BLANK_LINE = b"\n\n"  # of a last event that came without one: clients drop an event that has no end

# An attempt has ended: its provider, its outcome, the provider's status, its seconds, and those to the first token.
OnAttempt = Callable[[str, str, int, float, float | None], None]
Outcome = Literal["ok", "refused", "failed", "cut", "abandoned"]


@dataclass(frozen=True, slots=True)
class Means:
    """What every call uses."""

    settings: Models
    upstream: Upstream
    turns: RunningTurns
    estimates: PromptEstimates
    breakers: Breakers
    clock: Clock
    attempted: OnAttempt | None = None


@dataclass(frozen=True, slots=True)
class Asking:
    """One call, as its attempts see it. `on_end`: the sandbox is about to see the end, and all usage is handed over."""

    means: Means
    turn: MeteredTurn
    dialect: Dialect
    request: Request
    outlet: Outlet
    on_end: Callable[[], None]


class Attempt:
    """One attempt. `run` it once, and `settle` it, whatever happened."""

    def __init__(self, asking: Asking, target: Target, call_id: str) -> None:
        self._asking = asking
        self._means = asking.means
        self._outlet = asking.outlet
        self._target = target
        self._call_id = call_id
        # With several choices a running count is of one of them.
        self._has_running_count = target.provider.continuous_usage and asking.request.choices == 1
        self._reader = asking.dialect.reader(is_running_count=self._has_running_count)
        self._meter = Meter(
            asking.turn,
            asking.request,
            target,
            self._reader,
            asking.means.estimates,
            is_metered=asking.dialect.is_metered,
        )
        self._key = key_of(target)
        self._held: list[bytes] = []  # events that wait for the provider's count
        self._unsaid: list[bytes] = []  # events before the first that says something
        self._was_sent = False  # the request went out whole, and nothing bad came back
        self._was_answered = False  # something of an answer came
        self._has_said = False  # a stream, something of the answer
        self._is_settled = False
        self._status = 0
        self._started = self._sent_at = time.perf_counter()
        self._first_token_at: float | None = None
        self.outcome: Outcome = "ok"

    @property
    def knows_usage(self) -> bool:
        """Nothing more is to be learned by reading on."""
        return self._reader.counted is not None and self._reader.is_final

    async def run(self) -> Failure | None:
        """None: the answer passed, and the sandbox has all of it but the end."""
        try:
            if not await self._meter.begin():
                self.outcome = "refused"
                return Failure(quota_exceeded())
            failure = await self._call()
        except UpstreamError as error:
            log.warning("model:provider_failed", provider=self._target.provider.name, error=str(error))
            failure = failures.of_wire(error, self._target.provider.name)
        if failure is not None and self.outcome == "ok":
            self.outcome = "failed"
        return failure

    def last_words(self, refusal: Refusal) -> bytes:
        """See `Reader.last_words`."""
        return self._redacted(self._reader.last_words(refusal))

    def settle(self) -> None:
        """Hand the usage over, once, and put the allowance right by it.

        An attempt that gave nothing used what the provider counted, if it did; one that was given up before its answer
        came used its prompt, and what the provider may have made meanwhile.
        """
        if self._is_settled:
            return
        self._is_settled = True
        usage = self._usage(was_given_up=self._was_sent and self.outcome == "abandoned")
        self._meter.charge(usage)
        if usage is not None:
            self._means.turns.call_used(self._asking.turn, usage)
        if self._means.attempted is not None and self.outcome != "refused":  # of what was never sent there is no time
            first_token = None if self._first_token_at is None else self._first_token_at - self._sent_at
            seconds = time.perf_counter() - self._sent_at
            self._means.attempted(self._target.provider.name, self.outcome, self._status, seconds, first_token)
        log.debug(
            "model:call",
            request_id=self._asking.turn.turn_id,
            call_id=self._call_id,
            model=self._target.model,
            provider=self._target.provider.name,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            estimated=usage.estimated if usage else False,
            duration_ms=round((time.perf_counter() - self._started) * 1000),
            status=self._status,
            outcome=self.outcome,
        )

    def used_so_far(self) -> CallUsage | None:
        """What it would be charged with if it were given up now; None where that is nothing, or it was charged."""
        if self._is_settled:
            return None
        try:
            return self._usage(was_given_up=self._was_sent)
        finally:
            self._meter.go_on()

    def _usage(self, *, was_given_up: bool) -> CallUsage | None:
        if was_given_up:
            self._meter.give_up(time.perf_counter() - self._sent_at)
        was_answered = self._was_answered or self._reader.completion_tokens > 0
        used = self._reader.counted is not None or was_answered or was_given_up
        if not used or not self._asking.dialect.is_metered:
            return None
        return self._meter.usage(self._call_id, self._means.clock.now())

    def _end(self) -> None:
        """Before the sandbox sees the end: its turn may end as soon as it does."""
        self._was_answered = True
        self.settle()
        self._asking.on_end()

    async def _call(self) -> Failure | None:
        request, settings, dialect = self._asking.request, self._means.settings, self._asking.dialect
        body = dialect.rewritten(
            request,
            model=self._target.model,
            continuous_usage=self._target.provider.continuous_usage,
            max_tokens=self._meter.bound,
            extra_fields=self._target.provider.extra_fields,
        )
        # Without a stream the first byte comes when the model is done.
        idle = settings.idle_timeout if request.streams else settings.call_timeout
        timeouts = Timeouts(settings.connect_timeout.total_seconds(), idle.total_seconds())
        headers = {**headers_for(self._target, dialect.name), **request.headers}
        self._was_sent, self._sent_at = True, time.perf_counter()
        try:
            answer = await self._means.upstream.call(
                "POST", url_for(self._target, dialect.path), headers, body, timeouts
            )
        except UpstreamError:
            self._was_sent = False
            raise
        self._status = answer.status
        try:
            return await self._answered(answer)
        finally:
            answer.close()

    async def _answered(self, answer: Answer) -> Failure | None:
        if answer.status != _OK:
            self._was_sent = False
            body = await failures.body_of(answer)
            self._reader.read(body)  # some count what they refuse
            self._reader.unsay()
            return failures.of_status(answer, body, self._target, self._key, self._asking.dialect.error)
        return await (self._stream(answer) if await self._is_stream(answer) else self._whole(answer))

    async def _is_stream(self, answer: Answer) -> bool:
        """Whether events come, by what the body begins with: some label them otherwise, or label otherwise as them."""
        kind = answer.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        is_labelled = kind == b"text/event-stream"
        if not is_labelled and not self._asking.request.streams:
            return False
        begin = b""
        while (found := is_stream(begin[:_BEGIN_BYTES], is_labelled=is_labelled)) is None and len(begin) < _BEGIN_BYTES:
            if not (chunk := await answer.read()):
                break
            begin += chunk
        answer.unread(begin)
        return is_labelled if found is None else found

    # An answer in one piece.

    async def _whole(self, answer: Answer) -> Failure | None:
        reader = self._reader
        parts, length = [], 0
        try:
            while chunk := await answer.read():
                length += len(chunk)
                if length > self._means.settings.max_response:
                    reader.say_bytes(length)
                    return failures.too_large()
                parts.append(chunk)
        except UpstreamError:
            reader.say_bytes(length)
            raise
        body = b"".join(parts)
        if not reader.read(body):
            if length < _ERROR_BYTES or body.lstrip().startswith(b"<"):
                reader.unsay()
            return failures.unreadable(
                f"the model provider's answer is none in the dialect {self._asking.dialect.name}"
            )
        passed = Passed(_OK, self._redacted(body), [])
        reader.is_final = reader.counted is not None
        if reader.failed:
            reader.unsay()
            return failures.within(reader.failure_code, passed)
        if not reader.is_answer:
            reader.unsay()
            return failures.unreadable("the model provider's answer holds no answer of the model")
        reader.ended = self._was_answered = True
        if not await self._meter.may_pass():
            self.outcome = "cut"
            return Failure(quota_exceeded(), verdict="works")
        self._end()
        await self._outlet.whole(passed)
        return None

    # An answer as a stream of events.

    async def _stream(self, answer: Answer) -> Failure | None:
        splitter = EventSplitter(_MAX_EVENT_BYTES)
        length = 0
        try:
            while chunk := await answer.read():
                length += len(chunk)
                if length > self._means.settings.max_response:
                    return failures.too_large()
                failure = await self._take(splitter.feed(chunk))
                if failure is not None:
                    return failure
                if self._reader.is_done:
                    answer.end()
                    return None
        except EventTooLarge:
            self._reader.say_bytes(_MAX_EVENT_BYTES)
            return failures.too_large()
        rest = splitter.rest()
        return await self._take([rest + _BLANK_LINE] if rest.strip() else [], is_end=True)

    async def _take(self, events: Sequence[bytes], *, is_end: bool = False) -> Failure | None:
        """Events that just came: what may pass of them does. `is_end`: none follow."""
        reader = self._reader
        passing, refusal = await self._pass(events, is_end=is_end)
        is_over = is_end or reader.is_done
        if refusal is None and is_over:
            refusal = self._release(passing)
        passing, self._unsaid = self._unsaid + passing, []
        is_unsaid = not self._has_said and not self._outlet.has_begun
        if reader.failed and is_unsaid:
            # It said no more than what it counted: then that is its last word.
            reader.is_final = (
                reader.counted is not None and reader.counted.completion_tokens >= reader.completion_tokens
            )
            body = self._redacted(b"".join(passing + self._held))
            return failures.within(reader.failure_code, Passed(_OK, body, [], b"text/event-stream; charset=utf-8"))
        failure = None
        if refusal is not None:
            failure = Failure(refusal, verdict="works")
        elif is_over and not reader.ended and not reader.failed:
            failure = self._cut_short()
            if is_unsaid:
                reader.unsay()
                return failure
        elif is_over:
            self._end()
        elif is_unsaid and self._may_wait(passing):
            self._unsaid = passing
            return None
        self._was_answered = self._was_answered or bool(passing)
        await self._outlet.events(self._redacted(b"".join(passing)))
        return failure

    def _cut_short(self) -> Failure:
        log.warning("model:stream_cut_short", provider=self._target.provider.name)
        return failures.unreadable("the model provider ended the stream before the answer was complete")

    def _may_wait(self, passing: Sequence[bytes]) -> bool:
        """Whether events that say nothing yet may be kept back: while they are, the provider can be asked again."""
        waits = time.perf_counter() - self._sent_at
        longest = min(_LONGEST_WAIT_SECONDS, self._means.settings.idle_timeout.total_seconds() / 4)
        return waits < longest and sum(map(len, passing)) < _MOST_UNSAID_BYTES

    async def _pass(self, events: Sequence[bytes], *, is_end: bool) -> tuple[list[bytes], Refusal | None]:
        """The events that the sandbox gets, and why it gets no more of them, if it doesn't."""
        reader, meter = self._reader, self._meter
        passing: list[bytes] = []
        for event in events:
            before, counted = reader.completion_tokens, reader.counted
            is_read = reader.read(data := data_of(event))
            is_cut_off = is_end and bool(data) and not is_read  # the stream broke off within it
            if not await meter.may_pass():
                self.outcome, self._was_answered = "cut", True
                if not reader.is_final or self._has_running_count:
                    # What did not pass is not counted, as the stream is left here. But the provider's last word is, and an
                    # event that is more than a few tokens: that is what it was, whether it passes or not.
                    told = reader.completion_tokens, reader.counted
                    reader.take_back(before, counted)
                    if meter.excess > _UNCOUNTED_TOKENS:
                        reader.completion_tokens, reader.counted = told
                return passing, quota_exceeded()
            if not self._has_said and reader.said_bytes > 0 and not reader.failed:
                self._has_said, self._first_token_at = True, time.perf_counter()
            if is_cut_off or (reader.is_usage_only and not self._asking.request.wants_usage):
                continue
            if meter.is_budgets and reader.is_length:
                self._held.append(event)
            else:
                passing.append(event)
        return passing, None

    def _release(self, passing: list[bytes]) -> Refusal | None:
        """At the end: what was held passes, unless it was the budget's bound at which the model stopped."""
        held, self._held = self._held, []
        if held and self._meter.is_at_bound:
            self.outcome = "cut"
            return quota_exceeded()
        passing += held
        return None

    def _redacted(self, data: bytes) -> bytes:
        return data.replace(self._key, _REDACTED) if self._key and self._key in data else data
