"""A model server that takes no time: `python -m benchmarks.model_server PORT`. It streams one word and its usage at once.

A prompt that ends in `stream N at R/s` gets N words instead, R a second, each at its time; R = 0 is as fast as it goes.
By WebSocket it takes `{"prompt": ...}` and sends each word as a message, then one that says that it was the last.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn

_CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fast"}
_CHOICE = {"index": 0, "finish_reason": None}
_ASKED = re.compile(rb"stream (\d+) at (\d+)/s")
_MODELS = json.dumps({"object": "list", "data": [{"id": "fast", "object": "model", "owned_by": "bench"}]}).encode()


def _event(**part: Any) -> bytes:
    return f"data: {json.dumps(_CHUNK | part)}\n\n".encode()


_WORD = _event(choices=[_CHOICE | {"delta": {"role": "assistant", "content": "done "}}])


def _ending(words: int) -> bytes:
    usage = {"prompt_tokens": 10, "completion_tokens": words, "total_tokens": 10 + words}
    stop = _event(choices=[_CHOICE | {"delta": {}, "finish_reason": "stop"}])
    return stop + _event(choices=[], usage=usage) + b"data: [DONE]\n\n"


_STREAM = _WORD + _ending(1)
_PLAIN_WORD = json.dumps({"type": "token", "content": "done "})
_PLAIN_END = json.dumps({"type": "complete"})


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await _talk(receive, send)
        return
    body = b""
    while (message := await receive()).get("more_body"):
        body += message.get("body", b"")
    body += message.get("body", b"")
    is_chat = scope["method"] == "POST"
    kind = b"text/event-stream" if is_chat else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    asked = _ASKED.findall(body) if is_chat else []
    if asked:
        async for piece in _paced(int(asked[-1][0]), int(asked[-1][1])):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    await send({"type": "http.response.body", "body": _STREAM if is_chat else _MODELS})


async def _talk(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        words, rate = map(int, (_ASKED.findall(message["text"].encode()) or [(1, 0)])[-1])
        async for _ in _times(words, rate):
            await send({"type": "websocket.send", "text": _PLAIN_WORD})
        await send({"type": "websocket.send", "text": _PLAIN_END})


async def _paced(words: int, rate: int) -> AsyncIterator[bytes]:
    async for _ in _times(words, rate):
        yield _WORD
    yield _ending(words)


async def _times(words: int, rate: int) -> AsyncIterator[int]:
    """Each word at its time after the first: a late one does not make the next late."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for number in range(words):
        if rate:
            await asyncio.sleep(begun + number / rate - loop.time())
        elif number % 32 == 0:
            await asyncio.sleep(0)
        yield number


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
    )
