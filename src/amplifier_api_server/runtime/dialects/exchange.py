"""One model call carried to the gateway and back: bytes out, an answer in, every wait bounded.

Owns the exchange, whatever the dialect. Refuses to send anything twice: only a connection that was never made and a call
that the gateway had no place for are tried again, all other retries are the gateway's. Invariant: what comes out is a
whole answer or an LLMError with a code.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from amplifier_core import NetworkError
from amplifier_core.llm_errors import LLMTimeoutError, ProviderUnavailableError

from amplifier_api_server.runtime import gateway
from amplifier_api_server.runtime.dialects import sse
from amplifier_api_server.runtime.dialects.answer import Answer
from amplifier_api_server.runtime.dialects.errors import broken, coded, error_of
from amplifier_api_server.runtime.protocol import TURN_HEADER
from amplifier_api_server.runtime.turn_port import Services

DIAL_DELAYS_SECONDS = (0.05, 0.2, 0.8)
BUSY_DELAYS_SECONDS = (1.0, 2.0, 4.0, 8.0)  # where the gateway has no place; up to half as much is added, by chance
MAX_ERROR_BYTES = 64 * 1024
MAX_WHOLE_ANSWER_BYTES = 8 * 1024 * 1024
IDLE_TIMES_OF_PINGS = 5  # idle timeouts that a stream may live on comments and pings alone


class Reader(Protocol):
    """What a dialect makes of a stream's events."""

    @property
    def is_done(self) -> bool: ...
    def take(self, event: Mapping[str, Any], /) -> None: ...
    def take_whole(self, answer: Mapping[str, Any], /) -> None: ...
    def done(self) -> None: ...


Watch = Callable[[Answer], Awaitable[None]]


async def exchange(
    services: Services,
    request_id: str,
    path: str,
    body: bytes,
    answer: Answer,
    reader: Reader,
    watch: Watch | None = None,
) -> None:
    """Fill `answer`. `watch` is awaited after each chunk. Raises LLMError."""
    for delay_seconds in BUSY_DELAYS_SECONDS:
        try:
            return await _dialled(services, request_id, path, body, answer, reader, watch)
        except ProviderUnavailableError as error:
            if getattr(error, "code", None) != "busy":
                raise
            least_seconds = min(error.retry_after or 0.0, BUSY_DELAYS_SECONDS[-1])
            await asyncio.sleep(max(delay_seconds, least_seconds) * random.uniform(1, 1.5))  # noqa: S311 - no secret
    return await _dialled(services, request_id, path, body, answer, reader, watch)


async def _dialled(
    services: Services, request_id: str, path: str, body: bytes, answer: Answer, reader: Reader, watch: Watch | None
) -> None:
    provider = answer.provider
    for delay_seconds in (*DIAL_DELAYS_SECONDS, None):
        try:
            return await _once(services, request_id, path, body, answer, reader, watch)
        except gateway.GatewayUnreachableError as error:
            if delay_seconds is None:
                raise coded(NetworkError(str(error), provider=provider), "provider_unavailable") from error
            await asyncio.sleep(delay_seconds)
        except gateway.GatewayBrokenError as error:
            raise broken(str(error), provider) from error
        except gateway.GatewaySilentError as error:
            raise coded(LLMTimeoutError(str(error), provider=provider), "model_timeout") from error
    raise AssertionError("the last try ends the loop")


async def _once(
    services: Services, request_id: str, path: str, body: bytes, answer: Answer, reader: Reader, watch: Watch | None
) -> None:
    headers = {TURN_HEADER: request_id, "accept": "text/event-stream"}
    idle = services.claim.model_idle_timeout_seconds
    async with services.gateway.request("POST", path, body=body, headers=headers, idle_timeout_seconds=idle) as got:
        if got.status != 200:  # noqa: PLR2004
            raise error_of(got.status, got.headers, await got.read(MAX_ERROR_BYTES), answer.provider)
        if got.headers.get("content-type", "").startswith("application/json"):
            reader.take_whole(sse.whole(await got.read(MAX_WHOLE_ANSWER_BYTES), answer.provider))
        else:
            await _stream(got, answer, reader, watch, IDLE_TIMES_OF_PINGS * idle)
        if watch is not None:
            await watch(answer)


async def _stream(
    got: gateway.Answer, answer: Answer, reader: Reader, watch: Watch | None, max_pings_seconds: float
) -> None:
    events = sse.Events(answer.provider)
    loop = asyncio.get_running_loop()
    last_event_at = loop.time()
    async for chunk in got.chunks():
        seen = _feed(events.feed(chunk), reader)
        if seen:
            last_event_at = loop.time()
        elif loop.time() - last_event_at > max_pings_seconds:
            words = f"the model's stream held nothing but pings for {max_pings_seconds:g} s"
            raise coded(LLMTimeoutError(words, provider=answer.provider), "model_timeout")
        if watch is not None and answer.deltas:
            await watch(answer)
    _feed(events.finish(), reader)
    if not reader.is_done:
        raise broken("the model's stream ended before its answer did", answer.provider)


def _feed(events: Any, reader: Reader) -> int:
    """The number of events that were more than a ping."""
    seen = 0
    for event in events:
        if event == sse.DONE:
            reader.done()
            seen += 1
        else:
            reader.take(event)
            seen += event.get("type") != "ping"
    return seen
