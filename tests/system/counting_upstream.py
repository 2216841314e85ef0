"""A model provider that counts: it speaks the chat-completions dialect over HTTP and remembers what it counted for each call.

It obeys the demo's two lines, `use TOOL {json}` and `stream N at R/s`; like most real providers it tells its count only at
the very end of a stream.
"""

import contextlib
import json
import re
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_USE = re.compile(r"^use (\S+) (\{.*\})$", re.MULTILINE)
_STREAM = re.compile(r"^stream (\d+) at (\d+)/s$", re.MULTILINE)


@dataclass
class Counted:
    """One call, as the provider has it."""

    prompt: str
    prompt_tokens: int
    completion_tokens: int = 0
    ended: bool = False

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class CountingUpstream:
    """A context manager; `calls` are in the order they came."""

    def __init__(self) -> None:
        self.calls: list[Counted] = []
        handler = type("Handler", (_Handler,), {"upstream": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def settings(self) -> dict[str, str]:
        """A server's, that calls this provider."""
        return {
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self._server.server_port}/v1",
            "OPENAI_API_KEY": "sk-upstream-secret",
        }

    def of(self, marker: str) -> list[Counted]:
        """The calls whose prompt held this."""
        return [call for call in self.calls if marker in call.prompt]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: CountingUpstream

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._whole({"object": "list", "data": [{"id": "counting", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
        counted = Counted(prompt, prompt_tokens=100 + len(body["messages"]))
        self.upstream.calls.append(counted)
        with contextlib.suppress(ConnectionError):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self._answer(body["messages"], prompt, counted)
            self._event({"choices": [], "usage": self._usage(counted)})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
            counted.ended = True

    def _answer(self, messages: list, prompt: str, counted: Counted) -> None:
        use, stream = _USE.search(prompt), _STREAM.search(prompt)
        if use and messages[-1]["role"] == "user":
            call = {"index": 0, "id": f"call_{len(messages)}", "type": "function"}
            call["function"] = {"name": use[1], "arguments": use[2]}
            counted.completion_tokens += 7
            self._delta({"role": "assistant", "tool_calls": [call]})
            self._delta({}, "tool_calls")
            return
        count, rate = (int(stream[1]), int(stream[2])) if stream else (3, 1000)
        for index in range(count):
            self._delta({"content": f"w{index} "})
            counted.completion_tokens += 1
            time.sleep(1 / rate)
        self._delta({}, "stop")

    def _delta(self, delta: dict, finish: str | None = None) -> None:
        self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def _event(self, more: dict) -> None:
        chunk = {"id": "x", "object": "chat.completion.chunk", "model": "counting", **more}
        self._chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _usage(self, counted: Counted) -> dict:
        return {
            "prompt_tokens": counted.prompt_tokens,
            "completion_tokens": counted.completion_tokens,
            "total_tokens": counted.total_tokens,
        }

    def _whole(self, answer: dict) -> None:
        raw = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
