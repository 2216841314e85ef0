"""The models that the gateway offers, as it lists them: which there are, how long their windows are. Kept for a while.

Invariant: asking never fails and never waits long; a list that can't be had is empty, and asked for again later.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from pydantic_core import from_json

from amplifier_api_server.runtime.gateway import Gateway, GatewayError
from amplifier_api_server.runtime.protocol import TURN_HEADER
from amplifier_api_server.runtime.protocol import Gateway as GatewayPath

log = logging.getLogger(__name__)

ASK_SECONDS = 5.0
KEPT_SECONDS = 300.0
RETRY_SECONDS = 30.0  # after a failure
MAX_LIST_BYTES = 2 * 1024 * 1024
MAX_MODELS = 2_000


@dataclass(frozen=True, slots=True)
class Model:
    """One model; None for what the gateway does not know of it."""

    id: str
    context_window: int | None = None
    max_output_tokens: int | None = None
    owner: str = ""


@dataclass(slots=True)
class _Kept:
    models: tuple[Model, ...] = ()
    until: float = 0.0
    asking: asyncio.Task[tuple[Model, ...] | None] | None = None


_kept: WeakKeyDictionary[Gateway, _Kept] = WeakKeyDictionary()


async def models_of(gateway: Gateway, request_id: str | None = None) -> tuple[Model, ...]:
    """The gateway's list, asked by one at a time."""
    kept = _kept.setdefault(gateway, _Kept())
    loop = asyncio.get_running_loop()
    if loop.time() < kept.until:
        return kept.models
    if kept.asking is None or kept.asking.done():
        kept.asking = asyncio.create_task(_ask(gateway, request_id), name="list models")
    found = await asyncio.shield(kept.asking)
    if loop.time() >= kept.until:
        kept.until = loop.time() + (RETRY_SECONDS if found is None else KEPT_SECONDS)
        kept.models = kept.models if found is None else found
    return kept.models


def known_models(gateway: Gateway) -> tuple[Model, ...]:
    """What was listed last, without asking."""
    kept = _kept.get(gateway)
    return kept.models if kept is not None else ()


def find(models: tuple[Model, ...], name: str) -> Model | None:
    """The model of that name, with or without a provider before it."""
    exact = next((model for model in models if model.id == name), None)
    return exact or next((model for model in models if model.id.rpartition("/")[2] == name.rpartition("/")[2]), None)


async def _ask(gateway: Gateway, request_id: str | None) -> tuple[Model, ...] | None:
    headers = {TURN_HEADER: request_id} if request_id else {}
    try:
        async with (
            asyncio.timeout(ASK_SECONDS),
            gateway.request("GET", GatewayPath.MODELS, headers=headers, idle_timeout_seconds=ASK_SECONDS) as answer,
        ):
            body = await answer.read(MAX_LIST_BYTES)
            if answer.status != 200:  # noqa: PLR2004
                log.warning("the gateway did not list its models: %d", answer.status)
                return None
        return _parsed(from_json(body))
    except (GatewayError, TimeoutError, ValueError) as error:
        log.warning("the gateway's models could not be listed: %s", error or type(error).__name__)
        return None


def _parsed(told: Any) -> tuple[Model, ...]:
    data = told.get("data") if isinstance(told, dict) else None
    rows = (
        [row for row in data if isinstance(row, dict) and isinstance(row.get("id"), str)]
        if isinstance(data, list)
        else []
    )
    return tuple(
        Model(
            row["id"],
            _count(row.get("context_window")),
            _count(row.get("max_output_tokens")),
            str(row.get("owned_by") or ""),
        )
        for row in rows[:MAX_MODELS]
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
