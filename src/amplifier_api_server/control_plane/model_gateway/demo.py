"""The demo: a stand-in for a model provider, for when none is configured. It is no model, and says so.

Owns a server on a free port of 127.0.0.1 that speaks all three dialects over real HTTP, so that everything between a
session and a provider runs as it would with one. What it says is in `demo_answers`, how a dialect says it in a file for
each. Deterministic; it refuses to know sessions, tenants and budgets. It does not understand prompts, follow
instructions, see images, or sample: temperature, stop, logprobs, response formats and `n` are ignored.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import orjson
import structlog
from pydantic import AnyHttpUrl, SecretStr

from amplifier_api_server.control_plane.connections import Bounds, protocol_config
from amplifier_api_server.control_plane.model_gateway.acceptor import Acceptor
from amplifier_api_server.control_plane.model_gateway.answers import Receive, Scope, Send, respond
from amplifier_api_server.control_plane.model_gateway.demo_answers import Reply
from amplifier_api_server.control_plane.model_gateway.demo_chat import CREATED, MODEL, ChatCompletion
from amplifier_api_server.control_plane.model_gateway.demo_messages import MessagesCompletion
from amplifier_api_server.control_plane.model_gateway.demo_responses import ResponsesCompletion
from amplifier_api_server.control_plane.settings import ModelProvider

log = structlog.get_logger(__name__)

__all__ = ["MODEL", "Demo"]

_MAX_BODY_BYTES = 64 * 1024 * 1024
_TOKENS_A_BREATH = 32  # as fast as it can, but not so that nothing else in the process runs
_CLOSE_SECONDS = 2.0


class Demo:
    """The server. `start` it, ask it as `provider` says, `stop` it."""

    def __init__(self) -> None:
        self._key = secrets.token_urlsafe(24)
        self._acceptor: Acceptor | None = None
        self.base_url = ""

    async def start(self) -> str:
        """Listen; the base URL."""
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        self._acceptor = Acceptor(listening, protocol_config(self._answer), {}, Bounds(connections=4096))
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self.base_url

    @property
    def providers(self) -> tuple[ModelProvider, ...]:
        """The demo as configured providers, of both vendors' dialects. Its key keeps other programs of the machine out."""
        base_url, key = AnyHttpUrl(self.base_url), SecretStr(self._key)
        return (
            ModelProvider(name=MODEL, base_url=base_url, api_key=key, models=(MODEL,), continuous_usage=True),
            ModelProvider(
                name=f"{MODEL}-messages", dialect="anthropic", base_url=base_url, api_key=key, models=(MODEL,)
            ),
        )

    async def stop(self) -> None:
        """Stop listening, cut what is under way."""
        if self._acceptor is not None:
            await self._acceptor.close(_CLOSE_SECONDS)
            self._acceptor = None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            keys = {(b"authorization", f"Bearer {self._key}".encode()), (b"x-api-key", self._key.encode())}
            if keys.isdisjoint(map(tuple, scope["headers"])):
                await _refuse(send, 401, "invalid_api_key", "this demo belongs to one server, which has its key")
            elif (scope["method"], scope["path"]) == ("GET", "/v1/models"):
                listed = {"id": MODEL, "object": "model", "created": CREATED, "owned_by": "demo"}
                await respond(send, 200, orjson.dumps({"object": "list", "data": [listed]}))
            elif scope["method"] == "POST" and (scope["path"] in _COMPLETIONS or scope["path"] == _COUNT_TOKENS):
                await _complete(scope["path"], receive, send)
            else:
                await _refuse(send, 404, "not_found", "the demo has no such path")
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("demo:failed")
            await _refuse(send, 500, "internal", "the demo failed")


class Completion(Protocol):
    """A reply in a dialect's words."""

    @property
    def reply(self) -> Reply: ...
    def whole(self) -> dict[str, Any]: ...
    def beginning(self) -> Iterator[bytes]:
        """Events before the first token."""

    def deltas(self) -> Iterator[bytes]:
        """One for each token, then one for each call."""

    def ending(self) -> Iterator[bytes]: ...


_COMPLETIONS: Mapping[str, Callable[[bytes, dict[str, Any]], Completion]] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/responses": ResponsesCompletion,
    "/v1/messages": MessagesCompletion,
}
_COUNT_TOKENS = "/v1/messages/count_tokens"


async def _complete(path: str, receive: Receive, send: Send) -> None:
    raw = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        raw += message.get("body", b"")
        if len(raw) > _MAX_BODY_BYTES:
            await _refuse(send, 413, "too_large", "the request is too large")
            return
        if not message.get("more_body", False):
            break
    try:
        body = orjson.loads(raw)
        if path == _COUNT_TOKENS:
            await respond(send, 200, orjson.dumps(MessagesCompletion(raw, body).counted()))
            return
        completion = _COMPLETIONS[path](raw, body)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        await _refuse(send, 400, "invalid_request", f"no valid request of this dialect: {type(error).__name__}")
        return
    if body.get("model") != MODEL:
        await _refuse(send, 404, "model_not_found", f"the demo serves one model, {MODEL!r}")
        return
    if body.get("stream") is True:
        await _stream(completion, receive, send)
    else:
        await respond(send, 200, orjson.dumps(completion.whole()))


async def _stream(completion: Completion, receive: Receive, send: Send) -> None:
    """The reply, each token at its time after the first: a late one does not make the next late."""
    sender = asyncio.create_task(_send_stream(completion, send))
    hangup = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait([sender, hangup], return_when=asyncio.FIRST_COMPLETED)
        if sender.done():
            sender.result()
    finally:
        sender.cancel()
        hangup.cancel()
        await asyncio.wait([sender, hangup])


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_stream(completion: Completion, send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    beginning = b"".join(completion.beginning())
    if beginning:
        await send({"type": "http.response.body", "body": beginning, "more_body": True})
    loop = asyncio.get_running_loop()
    start, rate, paced_from = loop.time(), completion.reply.tokens_a_second, completion.reply.paced_from
    for index, event in enumerate(completion.deltas()):
        if rate is not None and index > paced_from:
            await asyncio.sleep(start + (index - paced_from) / rate - loop.time())
        elif index % _TOKENS_A_BREATH == 0:
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b"".join(completion.ending()), "more_body": False})


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    await respond(send, status, orjson.dumps(body))
