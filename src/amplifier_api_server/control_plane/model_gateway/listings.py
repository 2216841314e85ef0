"""Which models a provider says it has, for providers whose configuration does not say.

Owns asking (once at a time, within bounds) and believing the answer for a while. What a tenant's own key may see is asked
and kept apart from what the operator's may.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar

import orjson
import structlog

from amplifier_api_server.control_plane.model_gateway import failures
from amplifier_api_server.control_plane.model_gateway.answers import Refusal, unavailable
from amplifier_api_server.control_plane.model_gateway.upstream import Stalled, Timeouts, Upstream, UpstreamError

log = structlog.get_logger(__name__)

_BELIEVED_SECONDS = 300.0
_FAILED_SECONDS = 5.0  # one that can't say is not asked again for each name and dialect that it might serve
_MAX_BYTES = 4 * 1024 * 1024
_MAX_NAMES = 2_000
_MAX_NAME_CHARS = 200
_MAX_KEPT = 512
_OK = 200

T = TypeVar("T")
Whose = tuple[str, str]  # the provider's name, and the tenant whose key it is asked with; "" for the operator's


class Listings:
    """Asks providers."""

    def __init__(self, upstream: Upstream, timeouts: Timeouts) -> None:
        self._upstream = upstream
        self._timeouts = timeouts
        self._listed: OrderedDict[Whose, tuple[float, list[str]]] = OrderedDict()
        self._asking: dict[Whose, asyncio.Task[list[str]]] = {}
        self._failed: OrderedDict[Whose, tuple[float, Refusal]] = OrderedDict()

    async def ask(self, whose: Whose, url: str, headers: Mapping[str, str]) -> list[str]:
        """The names in the provider's own list, in its order. Raises Refusal: 502."""
        at, names = self._listed.get(whose, (0.0, []))
        if names and time.monotonic() - at < _BELIEVED_SECONDS:
            return names
        failed_at, refusal = self._failed.get(whose, (0.0, None))
        if refusal is not None and time.monotonic() - failed_at < _FAILED_SECONDS:
            raise Refusal(refusal.status, refusal.code, refusal.detail)
        task = self._asking.get(whose)
        if task is None:
            task = self._asking[whose] = asyncio.create_task(self._list(whose, url, headers))
            task.add_done_callback(lambda done: self._asked(whose, done))
        return await asyncio.shield(task)

    def forget(self, provider: str, tenant_id: str) -> None:
        """The tenant's key is another one."""
        self._listed.pop((provider, tenant_id), None)
        self._failed.pop((provider, tenant_id), None)

    def _asked(self, whose: Whose, done: asyncio.Task[list[str]]) -> None:
        self._asking.pop(whose, None)
        if done.cancelled():
            return
        failed = done.exception()
        if failed is None:
            self._failed.pop(whose, None)
            _keep(self._listed, whose, (time.monotonic(), done.result()))
        elif isinstance(failed, Refusal):
            _keep(self._failed, whose, (time.monotonic(), failed))

    async def _list(self, whose: Whose, url: str, headers: Mapping[str, str]) -> list[str]:
        provider, is_own_key = whose[0], bool(whose[1])
        try:
            async with asyncio.timeout(self._timeouts.connect_seconds + min(30, self._timeouts.idle_seconds)):
                answer = await self._upstream.call("GET", url, headers, b"", self._timeouts)
                try:
                    body = b""
                    while chunk := await answer.read():
                        body += chunk
                        if len(body) > _MAX_BYTES:
                            break
                finally:
                    answer.close()
        except (UpstreamError, TimeoutError) as error:
            log.warning("model:list_failed", provider=provider, error=str(error) or type(error).__name__)
            wire = error if isinstance(error, UpstreamError) else Stalled("it was silent for too long")
            raise failures.refusal_of_wire(wire, provider) from error
        names = _names(body) if answer.status == _OK else None
        if names is None:
            log.warning("model:list_failed", provider=provider, status=answer.status)
            if answer.status != _OK:
                raise failures.refusal_of_status(answer.status, provider, is_own_key=is_own_key)
            raise unavailable(
                502, f"the model provider {provider} does not say which models it has; set models.default"
            )
        return names


def _keep(kept: OrderedDict[Whose, T], whose: Whose, value: T) -> None:
    kept[whose] = value
    kept.move_to_end(whose)
    if len(kept) > _MAX_KEPT:
        kept.popitem(last=False)


def _names(body: bytes) -> list[str] | None:
    """The ids in a list of models, as OpenAI's and Anthropic's are; None when it is no such list."""
    try:
        listed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    items = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(items, list):
        return None
    ids = [item["id"] for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]
    return [name for name in ids if 1 <= len(name) <= _MAX_NAME_CHARS][:_MAX_NAMES]
