"""A WebSocket client for the tests here: one connection to `/ws`, read message by message."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

EVENTS = frozenset({"token", "tool_call", "approval", "complete"})


def is_event(message: dict[str, Any]) -> bool:
    """An execution's event, and no answer to a message."""
    return message["type"] in EVENTS or (message["type"] == "error" and "event_id" in message)


@dataclass
class Socket:
    """`auth` says who is there; `ask` sends a message and gives its answer, keeping what else comes for `next`."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)
    path: str = "/ws"
    timeout_seconds: float = 60
    kept: list[dict[str, Any]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.wire: ClientConnection = connect(
            f"ws://127.0.0.1:{self.port}{self.path}",
            additional_headers=self.headers,
            max_size=None,
            open_timeout=self.timeout_seconds,
            close_timeout=3,
            compression=None,
            legacy=True,  # it is closed by `close`
        )

    @classmethod
    def of(cls, caller: Any, **more: Any) -> Socket:
        """Connected, and known as this caller."""
        one = cls(caller.port, **more)
        assert one.ask("auth", token=caller.key)["type"] == "auth.ok"
        return one

    def send(self, kind: str, **members: Any) -> None:
        self.wire.send(json.dumps({"type": kind, **members}))

    def ask(self, kind: str, **members: Any) -> dict[str, Any]:
        """The answer to a message."""
        message_id = members.pop("id", None) or f"m{next(self._numbers)}"
        self.send(kind, id=message_id, **members)
        while True:
            found = self._receive(self.timeout_seconds)
            if found.get("id") == message_id and not is_event(found):
                return found
            self.kept.append(found)

    def next(self, timeout_seconds: float | None = None) -> dict[str, Any]:
        """The next message, of those that are kept or else of those that come."""
        return self.kept.pop(0) if self.kept else self._receive(timeout_seconds or self.timeout_seconds)

    def take(self, count: int) -> list[dict[str, Any]]:
        return [self.next() for _ in range(count)]

    def events_of(self, request_id: str) -> list[dict[str, Any]]:
        """The events of an execution up to its last; what else comes is left."""
        found, left = [], []
        while not found or found[-1]["type"] not in {"complete", "error"}:
            one = self.next()
            (found if one.get("request_id") == request_id and is_event(one) else left).append(one)
        self.kept = left + self.kept
        return found

    def _receive(self, timeout_seconds: float) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.wire.recv(timeout_seconds))
        return found

    def closed(self, timeout_seconds: float = 60) -> tuple[int | None, str | None]:
        """The code and the reason that the server closes with; what came before is kept."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.kept.append(self._receive(timeout_seconds))
        return self.wire.close_code, self.wire.close_reason

    def session(self, profile: str = "foundation:base", **more: Any) -> str:
        answer = self.ask("session.create", profile=profile, **more)
        assert answer["type"] == "session.created", answer
        found: str = answer["session_id"]
        return found

    def execute(self, session_id: str, prompt: str, **more: Any) -> str:
        """Begin an execution; its events follow."""
        answer = self.ask("execute", session_id=session_id, prompt=prompt, **more)
        assert answer["type"] == "execution.started", answer
        found: str = answer["request_id"]
        return found

    def close(self) -> None:
        self.wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def number(event: dict[str, Any]) -> int:
    return int(event["event_id"].rpartition(":")[2])
