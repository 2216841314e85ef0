"""A client of GraphQL's WebSocket, as its protocol (graphql-transport-ws) has one: one connection, many operations."""

import json
from typing import Any, Self

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

STREAM = """subscription($s: ID!, $r: ID!, $a: ID) {
  executionStream(sessionId: $s, requestId: $r, after: $a) {
    id type content requestId usage { totalTokens } toolCall { tool status } problem
  }
}"""


class GraphqlSocket:
    """Opened, and initialised where `payload` is given."""

    def __init__(self, port: int, payload: Any = None, headers: dict[str, str] | None = None, **more: Any) -> None:
        options: dict[str, Any] = {
            "subprotocols": ["graphql-transport-ws"],
            "open_timeout": 60,
            "max_size": None,
            "legacy": True,
        }
        self.raw: ClientConnection = connect(
            f"ws://127.0.0.1:{port}/graphql", additional_headers=headers, **(options | more)
        )
        if payload is not None:
            self.send(type="connection_init", payload=payload)
            assert self.receive() == {"type": "connection_ack"}

    def send(self, **message: Any) -> None:
        self.raw.send(json.dumps(message))

    def receive(self, seconds: float = 60) -> Any:
        return json.loads(self.raw.recv(timeout=seconds))

    def subscribe(self, name: str, query: str, **variables: Any) -> None:
        self.send(id=name, type="subscribe", payload={"query": query, "variables": variables})

    def follow(self, name: str, session: str, request_id: str, after: str | None = None) -> None:
        self.subscribe(name, STREAM, s=session, r=request_id, a=after)

    def rest(self, name: str) -> list[Any]:
        """Every `next` of an operation, to its `complete`."""
        found = []
        while (message := self.receive())["type"] != "complete":
            assert (message["id"], message["type"]) == (name, "next"), message
            found.append(message["payload"]["data"]["executionStream"])
        assert message["id"] == name
        return found

    def closed(self, seconds: float = 60) -> tuple[int, str]:
        """How the server closed it; what came before is passed over."""
        with pytest.raises(ConnectionClosed) as caught:
            self._read_on(seconds)
        assert caught.value.rcvd is not None
        return caught.value.rcvd.code, caught.value.rcvd.reason

    def _read_on(self, seconds: float) -> None:
        while True:
            self.raw.recv(timeout=seconds)

    def close(self) -> None:
        self.raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
