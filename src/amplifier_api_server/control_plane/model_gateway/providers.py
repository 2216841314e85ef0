"""Which provider serves which model name, and what is sent to it.

Owns names, addresses and the operator's keys. A key leaves this module in one header of a request to its own provider,
and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson
import structlog

from amplifier_api_server import __version__
from amplifier_api_server.control_plane.model_gateway.answers import Refusal, unavailable
from amplifier_api_server.control_plane.model_gateway.upstream import Timeouts, Upstream, UpstreamError
from amplifier_api_server.control_plane.settings import ModelProvider

log = structlog.get_logger(__name__)

DEFAULT = "default"
_LIST_SECONDS = 300.0  # how long a provider's own list of models is believed
_MAX_LIST_BYTES = 4 * 1024 * 1024
_OK = 200


@dataclass(frozen=True, slots=True)
class Target:
    """One model of one provider."""

    provider: ModelProvider
    model: str

    @property
    def chat_url(self) -> str:
        return _url(self.provider, "/chat/completions")


def _url(provider: ModelProvider, path: str) -> str:
    return str(provider.base_url).rstrip("/") + path


def headers_for(provider: ModelProvider) -> Mapping[str, str]:
    """All that a provider is told beside the body. Nothing of the sandbox's own headers."""
    headers = {
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": f"amplifier-api-server/{__version__}",
    }
    if provider.api_key is not None:
        headers["Authorization"] = f"Bearer {provider.api_key.get_secret_value()}"
    return headers


def key_of(provider: ModelProvider) -> bytes:
    """The key as bytes, to be looked for in answers; empty where there is none or it is too short to be a secret."""
    key = provider.api_key.get_secret_value().encode() if provider.api_key is not None else b""
    return key if len(key) >= 8 else b""  # noqa: PLR2004 - "none" and "EMPTY" are what local servers are given


class Providers:
    """The configured providers, in their order."""

    def __init__(
        self, providers: Sequence[ModelProvider], upstream: Upstream, timeouts: Timeouts, *, default: str | None = None
    ) -> None:
        self._providers = {provider.name: provider for provider in providers}
        self._upstream = upstream
        self._timeouts = timeouts
        self._default = default
        self._listed: dict[str, tuple[float, list[str]]] = {}
        self._asking: dict[str, asyncio.Task[list[str]]] = {}

    async def resolve(self, name: str) -> Target:
        """The target of a model's name: "default", "provider/model" or "model". Raises Refusal: 404, or 502 and 504."""
        if name == DEFAULT:
            return await self._resolve_default()
        if (target := self._named(name)) is None:
            raise Refusal(404, "model_not_found", f"no provider serves a model {name[:200]!r}")
        return target

    async def models(self) -> list[Target]:
        """Every model that can be asked for by name. A provider that can't be asked lists none."""
        found = []
        for provider in self._providers.values():
            try:
                names = list(provider.models) or await self._ask(provider)
            except Refusal:
                continue
            found += [Target(provider, name) for name in names]
        return found

    def _named(self, name: str) -> Target | None:
        prefix, _, rest = name.partition("/")
        provider = self._providers.get(prefix)
        if provider is not None and rest and (not provider.models or rest in provider.models):
            return Target(provider, rest)
        # A name with a slash may be a model's own, as in "org/model".
        for provider in self._providers.values():
            if name in provider.models:
                return Target(provider, name)
        for provider in self._providers.values():
            if not provider.models:
                return Target(provider, name)
        return None

    async def _resolve_default(self) -> Target:
        if self._default is not None and self._default != DEFAULT:
            if (target := self._named(self._default)) is None:
                raise Refusal(404, "model_not_found", f"models.default is {self._default!r}, which no provider serves")
            return target
        provider = next(iter(self._providers.values()), None)
        if provider is None:
            raise Refusal(404, "model_not_found", "no model provider is configured")
        names = provider.models or await self._ask(provider)
        if not names:
            raise Refusal(404, "model_not_found", f"the provider {provider.name} lists no model; set models.default")
        return Target(provider, names[0])

    async def _ask(self, provider: ModelProvider) -> list[str]:
        """The provider's own list, asked for once at a time and believed for a while."""
        at, names = self._listed.get(provider.name, (0.0, []))
        if names and time.monotonic() - at < _LIST_SECONDS:
            return names
        task = self._asking.get(provider.name)
        if task is None:
            task = self._asking[provider.name] = asyncio.create_task(self._list(provider))
            task.add_done_callback(lambda done: self._asked(provider.name, done))
        return await asyncio.shield(task)

    def _asked(self, name: str, done: asyncio.Task[list[str]]) -> None:
        self._asking.pop(name, None)
        if not done.cancelled() and done.exception() is None:
            self._listed[name] = (time.monotonic(), done.result())

    async def _list(self, provider: ModelProvider) -> list[str]:
        try:
            async with asyncio.timeout(self._timeouts.connect_seconds + min(30, self._timeouts.idle_seconds)):
                answer = await self._upstream.call(
                    "GET", _url(provider, "/models"), headers_for(provider), b"", self._timeouts
                )
                try:
                    body = b""
                    while chunk := await answer.read():
                        body += chunk
                        if len(body) > _MAX_LIST_BYTES:
                            break
                finally:
                    answer.close()
        except (UpstreamError, TimeoutError) as error:
            log.warning("model:list_failed", provider=provider.name, error=str(error) or type(error).__name__)
            raise unavailable(502, f"the provider {provider.name} can't be asked for its models") from error
        names = _names(body) if answer.status == _OK else None
        if names is None:
            log.warning("model:list_failed", provider=provider.name, status=answer.status)
            raise unavailable(502, f"the provider {provider.name} does not say which models it has; set models.default")
        return names


def _names(body: bytes) -> list[str] | None:
    """The ids in a list of models; None when it is no such list."""
    try:
        listed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    items = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(items, list):
        return None
    return [item["id"] for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]
