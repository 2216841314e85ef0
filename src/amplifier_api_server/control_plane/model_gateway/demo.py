"""The demo: a stand-in for a model provider, for when none is configured. It is no model, and says so.

Owns a server on a free port of 127.0.0.1 that speaks the chat-completions dialect over real HTTP, so that everything
between a session and a provider runs as it would with one. What it says is in `demo_answers`. Deterministic; it refuses
to know sessions, tenants and budgets. It does not understand prompts, follow instructions, see images, or sample:
temperature, stop, logprobs, response formats and `n` are ignored.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
from collections.abc import Iterator
from typing import Any

import orjson
import structlog
from pydantic import AnyHttpUrl, SecretStr

from amplifier_api_server.control_plane.connections import Bounds, protocol_config
from amplifier_api_server.control_plane.model_gateway.acceptor import Acceptor
from amplifier_api_server.control_plane.model_gateway.answers import Receive, Scope, Send, respond
from amplifier_api_server.control_plane.model_gateway.demo_answers import Reply, reply_to, token_count
from amplifier_api_server.control_plane.settings import ModelProvider

log = structlog.get_logger(__name__)

MODEL = "demo"
_FINGERPRINT = "fp_demo_not_a_model"
_CREATED = 1_700_000_000  # a fixed time: the same prompt gets the same bytes
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
    def provider(self) -> ModelProvider:
        """The demo as a configured provider. Its key keeps other programs of the machine out."""
        return ModelProvider(
            name=MODEL,
            base_url=AnyHttpUrl(self.base_url),
            api_key=SecretStr(self._key),
            models=(MODEL,),
            continuous_usage=True,
        )

    async def stop(self) -> None:
        """Stop listening, cut what is under way."""
        if self._acceptor is not None:
            await self._acceptor.close(_CLOSE_SECONDS)
            self._acceptor = None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if (b"authorization", f"Bearer {self._key}".encode()) not in scope["headers"]:
                await _refuse(send, 401, "invalid_api_key", "this demo belongs to one server, which has its key")
            elif (scope["method"], scope["path"]) == ("GET", "/v1/models"):
                listed = {"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "demo"}
                await respond(send, 200, orjson.dumps({"object": "list", "data": [listed]}))
            elif (scope["method"], scope["path"]) == ("POST", "/v1/chat/completions"):
                await _complete(receive, send)
            else:
                await _refuse(send, 404, "not_found", "the demo has no such path")
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("demo:failed")
            await _refuse(send, 500, "internal", "the demo failed")


async def _complete(receive: Receive, send: Send) -> None:
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
        messages, tools = body["messages"], body.get("tools") or []
        bounds = [bound for name in ("max_tokens", "max_completion_tokens") if (bound := body.get(name)) is not None]
        reply = reply_to(messages, {tool["function"]["name"] for tool in tools}, min(bounds, default=None))
        prompt_tokens = sum(map(token_count, messages)) + sum(map(token_count, tools))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        await _refuse(send, 400, "invalid_request", f"no valid chat-completions request: {type(error).__name__}")
        return
    if body.get("model") != MODEL:
        await _refuse(send, 404, "model_not_found", f"the demo serves one model, {MODEL!r}")
        return
    completion = _Completion(raw, reply, prompt_tokens, body.get("stream_options") or {})
    if body.get("stream") is True:
        await _stream(completion, receive, send)
    else:
        await respond(send, 200, orjson.dumps(completion.whole()))


class _Completion:
    """A reply in the dialect's words."""

    def __init__(self, raw: bytes, reply: Reply, prompt_tokens: int, options: dict[str, Any]) -> None:
        self.reply = reply
        self._id = "chatcmpl-" + hashlib.sha256(raw).hexdigest()[:24]
        self._prompt_tokens = prompt_tokens
        self._includes_usage = bool(options.get("include_usage"))
        self._is_continuous = self._includes_usage and bool(options.get("continuous_usage_stats"))

    def whole(self) -> dict[str, Any]:
        reply = self.reply
        message: dict[str, Any] = {"role": "assistant", "content": "".join(reply.tokens) or None}
        if reply.calls:
            message["tool_calls"] = [call.as_json() for call in reply.calls]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        return self._head("chat.completion") | {"choices": [choice], "usage": self._usage(reply.token_count)}

    def deltas(self) -> Iterator[bytes]:
        """One event a token; the role comes with the first."""
        said, role = 0, {"role": "assistant"}
        for token in self.reply.tokens:
            said += 1
            yield self._chunk(role | {"content": token}, said)
            role = {}
        for index, call in enumerate(self.reply.calls):
            said += call.token_count
            yield self._chunk(role | {"tool_calls": [{"index": index, **call.as_json()}]}, said)
            role = {}

    def ending(self) -> Iterator[bytes]:
        said = self.reply.token_count
        yield self._chunk({}, said, self.reply.finish_reason)
        if self._includes_usage:
            chunk = self._head("chat.completion.chunk") | {"choices": [], "usage": self._usage(said)}
            yield b"data: " + orjson.dumps(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], said: int, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._head("chat.completion.chunk") | {"choices": [choice]}
        if self._includes_usage:
            chunk["usage"] = self._usage(said) if self._is_continuous else None
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": _CREATED,
            "model": MODEL,
            "system_fingerprint": _FINGERPRINT,
        }

    def _usage(self, completion_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self._prompt_tokens + completion_tokens,
        }


async def _stream(completion: _Completion, receive: Receive, send: Send) -> None:
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


async def _send_stream(completion: _Completion, send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
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
