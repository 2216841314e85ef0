"""A model server that takes no time: `python -m benchmarks.model_server PORT`. It streams one word and its usage at once."""

from __future__ import annotations

import json
import sys
from typing import Any

import uvicorn

_CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fast"}
_CHOICE = {"index": 0, "finish_reason": None}
_PARTS = [
    _CHUNK | {"choices": [_CHOICE | {"delta": {"role": "assistant", "content": "done"}}]},
    _CHUNK | {"choices": [_CHOICE | {"delta": {}, "finish_reason": "stop"}]},
    _CHUNK | {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}},
]
_STREAM = "".join(f"data: {json.dumps(part)}\n\n" for part in _PARTS).encode() + b"data: [DONE]\n\n"
_MODELS = json.dumps({"object": "list", "data": [{"id": "fast", "object": "model", "owned_by": "bench"}]}).encode()


async def app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    is_chat = scope["method"] == "POST"
    kind = b"text/event-stream" if is_chat else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": _STREAM if is_chat else _MODELS})


if __name__ == "__main__":
    uvicorn.run(
        app, port=int(sys.argv[1]), http="httptools", ws="none", lifespan="off", log_config=None, access_log=False
    )
