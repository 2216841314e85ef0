"""The gateway as an application on runtimes' sockets: what a sandbox may ask of the control plane, and nothing else.

Owns paths, the check that a turn runs in the runtime that names it, and the bound on calls at once. What comes in is
never trusted: the runtime is known by its socket, the tenant by the turn.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from types import TracebackType
from typing import Any, Self

import orjson
import structlog
from pydantic import ValidationError

from amplifier_api_server.control_plane.clock import Clock, SystemClock
from amplifier_api_server.control_plane.errors import headers_of, status_of
from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.json_bounds import (
    LIGHT_BYTES,
    MAX_VALUES,
    UnboundedJSON,
    loads_unwritten,
    work_seconds,
)
from amplifier_api_server.control_plane.model_gateway.answers import (
    Receive,
    Refusal,
    Scope,
    Send,
    busy,
    no_turn,
    respond,
)
from amplifier_api_server.control_plane.model_gateway.approval_notes import PATH as APPROVAL_PATH
from amplifier_api_server.control_plane.model_gateway.approval_notes import ApprovalNotes, OnApproval
from amplifier_api_server.control_plane.model_gateway.attempt import OnAttempt
from amplifier_api_server.control_plane.model_gateway.bodies import Bodies, Disconnected
from amplifier_api_server.control_plane.model_gateway.budget import PromptEstimates
from amplifier_api_server.control_plane.model_gateway.calls import Means, ModelCall
from amplifier_api_server.control_plane.model_gateway.catalogue import ModelCatalogue
from amplifier_api_server.control_plane.model_gateway.demo import MODEL as DEMO_MODEL
from amplifier_api_server.control_plane.model_gateway.demo import Demo
from amplifier_api_server.control_plane.model_gateway.dialects import BY_PATH, Dialect, InvalidRequest, Request
from amplifier_api_server.control_plane.model_gateway.model_lists import asks_as, list_of, one_of
from amplifier_api_server.control_plane.model_gateway.providers import Providers, TenantKeys
from amplifier_api_server.control_plane.model_gateway.resilience import Breakers
from amplifier_api_server.control_plane.model_gateway.turns import MeteredTurn, RunningTurns
from amplifier_api_server.control_plane.model_gateway.upstream import Timeouts, Upstream
from amplifier_api_server.control_plane.settings import Models
from amplifier_api_server.control_plane.shares import Shares
from amplifier_api_server.control_plane.web.door import MAX_FETCH_BYTES, WebDoor
from amplifier_api_server.runtime.protocol import (
    MAX_CHECKPOINT_BYTES,
    MAX_STATE_BYTES,
    TURN_HEADER,
    Checkpoint,
    CheckpointAnswer,
    Failure,
    Gateway,
)
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.ids import RuntimeId, TenantId

log = structlog.get_logger(__name__)

OnCheckpoint = Callable[[RuntimeId, Checkpoint], Awaitable[CheckpointAnswer]]

MAX_CALLS_OF_A_TURN = 16  # at once: so that one turn can't take every place there is
_CHECKPOINT_SECONDS = 30.0
_TURN_HEADER = TURN_HEADER.lower().encode()
_MODEL = re.compile(re.escape(Gateway.MODELS) + r"/((?!.*(?:\.\.|//))[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,199})")
_BEFORE_ID, _AFTER_ID = Gateway.CHECKPOINT.split("{request_id}")


class ModelGateway:
    """The application. `start` it before, `close` it after. `checkpoint` is what is done at a turn's end."""

    def __init__(
        self,
        settings: Models,
        turns: RunningTurns,
        checkpoint: OnCheckpoint,
        *,
        clock: Clock | None = None,
        upstream: Upstream | None = None,
        catalogue: ModelCatalogue | None = None,
        keys: TenantKeys | None = None,
        web: WebDoor | None = None,
        approval: OnApproval | None = None,
        attempted: OnAttempt | None = None,
        queue: FairQueue | None = None,
    ) -> None:
        self._queue = queue or FairQueue()
        self._settings = settings
        self._catalogue = catalogue
        self._keys = keys
        self._web = web
        self._turns = turns
        self._checkpoint = checkpoint
        self._upstream = upstream or Upstream()
        breakers = Breakers(settings.breaker_failures, settings.breaker_open.total_seconds())
        self._means = Means(
            settings, self._upstream, turns, PromptEstimates(), breakers, clock or SystemClock(), attempted
        )
        self._bodies = Bodies()
        self._approvals = ApprovalNotes(self._bodies, approval) if approval is not None else None
        self._places = Shares(settings.max_concurrent_calls)
        self._demo: Demo | None = None
        self._providers: Providers | None = None

    async def start(self) -> None:
        """Know the providers; with none configured, start the demo and serve that."""
        settings = self._settings
        if not settings.providers:
            self._demo = Demo()
            await self._demo.start()
            # It stands in for whatever is named, so the names that are configured mean nothing.
            nameless: dict[str, Any] = {"default": None, "aliases": {}, "tiers": {}}
            settings = settings.model_copy(update=nameless | {"providers": self._demo.providers})
        timeouts = Timeouts(self._settings.connect_timeout.total_seconds(), self._settings.idle_timeout.total_seconds())
        self._providers = Providers(settings, self._upstream, timeouts, catalogue=self._catalogue, keys=self._keys)

    async def close(self) -> None:
        """Cut what is under way to providers; stop the demo."""
        await self._upstream.close()
        if self._demo is not None:
            await self._demo.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def providers(self) -> Providers:
        """Which models there are, and for whom."""
        assert self._providers is not None, "start() comes first"
        return self._providers

    @property
    def is_demo(self) -> bool:
        """No provider is configured: the demo serves."""
        return self._demo is not None

    def forget(self, runtime_id: RuntimeId) -> None:
        """The runtime is gone: keep nothing about it."""
        self._bodies.forget(runtime_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. `scope["state"]["runtime_id"]` is who asks."""
        runtime_id: RuntimeId = scope["state"]["runtime_id"]
        try:
            await self._route(runtime_id, scope, receive, send)
        except Refusal as refusal:
            await refusal.send(send)
        except Disconnected:
            pass
        except Exception:
            log.exception("gateway:failed", runtime_id=runtime_id, path=scope["path"][:100])
            await _fail(send, 500, Failure(code="internal", detail="the gateway failed; it is logged"))

    async def _route(self, runtime_id: RuntimeId, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        await self._bodies.pace(runtime_id)
        if method == "POST" and (dialect := BY_PATH.get(path)) is not None:
            await self._call(runtime_id, dialect, scope, receive, send)
        elif method == "GET" and path == Gateway.MODELS:
            await self._models(runtime_id, scope, send, None)
        elif method == "GET" and (named := _MODEL.fullmatch(path)) is not None:
            await self._models(runtime_id, scope, send, named[1])
        elif method == "POST" and path == Gateway.FETCH and self._web is not None:
            with self._bodies.request(runtime_id) as body:
                asked = body.read(scope, receive, MAX_FETCH_BYTES)
                await self._web.answer(lambda: self._turn_of(runtime_id, scope), asked, receive, send)
        elif method == "POST" and path.startswith(_BEFORE_ID) and path.endswith(_AFTER_ID):
            turn_id = path[len(_BEFORE_ID) : -len(_AFTER_ID)]
            await self._take_checkpoint(runtime_id, turn_id, scope, receive, send)
        elif (
            method == "POST" and self._approvals is not None and (of_turn := APPROVAL_PATH.fullmatch(path)) is not None
        ):
            await self._approvals.take(runtime_id, of_turn[1], scope, receive, send)
        else:
            await _refuse_path(scope, send)

    async def _call(self, runtime_id: RuntimeId, dialect: Dialect, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._call_model(runtime_id, dialect, scope, receive, send)
        except Refusal as refusal:
            await refusal.send(send, dialect.error)

    async def _call_model(
        self, runtime_id: RuntimeId, dialect: Dialect, scope: Scope, receive: Receive, send: Send
    ) -> None:
        turn = self._turn_of(runtime_id, scope)
        with _place_of(turn), self._bodies.request(runtime_id) as body:
            raw = await body.read(scope, receive, self._settings.max_request)
            if len(raw) > LIGHT_BYTES:
                await self._queue.admit(turn.tenant_id, work_seconds(raw))
            try:
                request = dialect.parse(raw, scope["headers"])
            except InvalidRequest as error:
                raise Refusal(400, "invalid_request", str(error)) from error
            self._require_tools_allowed(request)
            model = DEMO_MODEL if self.is_demo else request.model
            route = await self.providers.route(
                tenant_id=turn.tenant_id, tier=turn.tier, model=model, dialect=dialect.name
            )
            # Counted among all only now: a request that dawdles takes no place from others.
            if not self._places.has_room(turn.tenant_id):
                log.warning("gateway:all_places_taken", free=self._places.free, tenant_id=turn.tenant_id)
                raise busy("the tenant has its share of the places for model calls, or all are taken")
            with self._places.place(turn.tenant_id):
                await ModelCall(self._means, turn, dialect, request, route).run(receive, send)

    def _require_tools_allowed(self, request: Request) -> None:
        """Raise Refusal (403) for a tool that would run at the provider, unless the operator allows it."""
        allowed = self._settings.server_tools
        for name in request.server_tools:
            if not any(fnmatchcase(name, pattern) for pattern in allowed):
                detail = f"{name!r} would run at the model's provider, which this server's operator does not allow"
                raise Refusal(403, "server_tool_not_allowed", detail + "; leave it out of the request", is_final=True)

    def _turn_of(self, runtime_id: RuntimeId, scope: Scope) -> MeteredTurn:
        turn = self._turns.get(runtime_id, _named_turn(scope))
        if turn is None:
            raise no_turn()
        return turn

    async def _models(self, runtime_id: RuntimeId, scope: Scope, send: Send, name: str | None) -> None:
        """What the turn may ask for, or the one of that by this name; outside of a turn, what every tenant may."""
        turn = self._turns.get(runtime_id, _named_turn(scope))
        whose, tier = (turn.tenant_id, turn.tier) if turn is not None else (TenantId(""), "default")
        dialect = asks_as(scope)
        try:
            if name is None:
                answer = list_of(await self.providers.models(tenant_id=whose, tier=tier), dialect)
            else:
                asked = DEMO_MODEL if self.is_demo else name
                answer = await one_of(self.providers, asked, dialect, tenant_id=whose, tier=tier) | {"id": name}
        except Refusal as refusal:
            await refusal.send(send, dialect.error)
            return
        await respond(send, 200, orjson.dumps(answer))

    async def _checkpoint_in(self, raw: bytes, runtime_id: RuntimeId, turn_id: str) -> Checkpoint:
        """The checkpoint in a body. Each of its steps may hold the event loop for 60 ms. Raises Refusal (422)."""
        values = await self._queue.run(runtime_id, partial(_values_in, raw))
        await self._queue.run(runtime_id, partial(_require_json, values))
        return await self._queue.run(runtime_id, partial(_checkpoint_of, values, turn_id))

    async def _take_checkpoint(
        self, runtime_id: RuntimeId, turn_id: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Its errors are plain `Failure`s: only our own runtime asks for this."""
        try:
            with self._bodies.request(runtime_id) as body:
                raw = await body.read(scope, receive, MAX_CHECKPOINT_BYTES)
                checkpoint = await self._checkpoint_in(raw, runtime_id, turn_id)
                # A task of its own: a commit under way is not cancelled because it takes long or the sandbox hangs up.
                task = asyncio.ensure_future(self._checkpoint(runtime_id, checkpoint))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
                async with asyncio.timeout(_CHECKPOINT_SECONDS):
                    answer = await asyncio.shield(task)
            await respond(send, 200, answer.model_dump_json().encode())
        except Refusal as refusal:
            failure = Failure(code=refusal.code, detail=refusal.detail, retry_after_seconds=refusal.retry_after_seconds)
            await _fail(send, refusal.status, failure)
        except TimeoutError:
            log.exception("gateway:checkpoint_timed_out", runtime_id=runtime_id, request_id=turn_id[:100])
            await _fail(send, 503, Failure(code="unavailable", detail="try again", retry_after_seconds=1))
        except DomainError as error:
            failure = Failure(
                code=error.stable_code, detail=error.detail, retry_after_seconds=error.retry_after_seconds
            )
            await _fail(send, status_of(error), failure, headers_of(error))


@contextmanager
def _place_of(turn: MeteredTurn) -> Iterator[None]:
    """One of the turn's places, from before its request is read. Raises Refusal (503)."""
    if turn.asking >= MAX_CALLS_OF_A_TURN:
        raise busy(f"the turn has {MAX_CALLS_OF_A_TURN} model calls at once")
    turn.asking += 1
    try:
        yield
    finally:
        turn.asking -= 1


def _named_turn(scope: Scope) -> str:
    named: bytes = next((value for name, value in scope["headers"] if name == _TURN_HEADER), b"")
    return named.decode("latin-1")


def _values_in(raw: bytes) -> Any:
    try:
        return loads_unwritten(raw, max_values=MAX_VALUES)
    except UnboundedJSON as error:
        raise Refusal(422, "invalid_request", f"no valid checkpoint: {error}") from error


def _require_json(values: Any) -> None:
    """What can't be written as JSON could not be stored."""
    try:
        orjson.dumps(values)
    except orjson.JSONEncodeError as error:
        raise Refusal(422, "invalid_request", "no valid checkpoint: it is nested too deeply") from error


def _checkpoint_of(values: Any, turn_id: str) -> Checkpoint:
    try:
        checkpoint = Checkpoint.model_validate(values)
    except ValidationError as error:
        where = ", ".join(".".join(map(str, one["loc"])) for one in error.errors(include_input=False)[:5])
        raise Refusal(422, "invalid_request", f"no valid checkpoint: {where}"[:500]) from error
    if len(orjson.dumps(checkpoint.state)) > MAX_STATE_BYTES:
        raise Refusal(422, "invalid_request", f"the state has more than {MAX_STATE_BYTES} bytes")
    if checkpoint.request_id != turn_id:
        raise Refusal(422, "invalid_request", "the path and the body name different turns")
    return checkpoint


async def _refuse_path(scope: Scope, send: Send) -> None:
    """There is no such path. A vendor's client is told in its dialect's shape, so that it shows what was wrong."""
    asked = f"{scope['method']} {scope['path'][:100]}"
    if not scope["path"].startswith("/v1/"):
        await _fail(send, 404, Failure(code="no_such_path", detail=f"the gateway has no {asked}"))
        return
    there = ", ".join(f"POST {path}" for path in BY_PATH)
    refusal = Refusal(404, "no_such_path", f"the gateway has no {asked}; it has {there} and GET {Gateway.MODELS}")
    await refusal.send(send, asks_as(scope).error)


async def _fail(send: Send, status: int, failure: Failure, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await respond(send, status, failure.model_dump_json().encode(), headers=headers)
