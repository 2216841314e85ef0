"""One caller on every door: what it was answered is told in the same shape, whichever it came by.

`Callers` has three doors for one key. A refusal is its problem object, without what is of the one request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx2
from websockets.asyncio.client import ClientConnection, connect

SECONDS = 20.0


@dataclass(frozen=True)
class Outcome:
    """`problem` is None for what was not refused."""

    problem: dict[str, Any] | None = None
    data: Any = None

    @property
    def code(self) -> str | None:
        return self.problem["code"] if self.problem is not None else None


def refused(problem: Mapping[str, Any]) -> Outcome:
    """A problem as all doors should tell it; on a WebSocket it says besides which session its message named."""
    own = ("request_id", "session_id", "instance")
    return Outcome({name: value for name, value in problem.items() if name not in own})


class Rest:
    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client

    async def ask(
        self, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None, **headers: str
    ) -> Outcome:
        """What is answered; of a stream no more than that there is one."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        more = {"json": body} if body is not None else {}
        async with self.client.stream(method, path, headers=sent, params=query or {}, **more) as answer:
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                return Outcome()
            await answer.aread()
        if answer.status_code < 400:
            is_json = answer.headers.get("content-type", "").startswith("application/json")
            return Outcome(data=answer.json() if is_json else None)
        problem = answer.json()
        assert problem["status"] == answer.status_code, problem
        return refused(problem)

    async def events(self, path: str, after: str | None = None) -> AsyncIterator[tuple[str, str, Any]]:
        """(id, name, data) of each event of a stream."""
        headers = {"Last-Event-ID": after} if after else {}
        async with self.client.stream("GET", path, headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for event in _events_of(answer):
                yield event


class Graphql:
    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client

    async def ask(self, document: str, **variables: Any) -> Outcome:
        """Of a subscription, the first thing that it says."""
        body = {"query": document, "variables": variables}
        if document.lstrip().startswith("subscription"):
            async with self.client.stream(
                "POST", "/graphql", json=body, headers={"Accept": "text/event-stream"}
            ) as answer:
                if answer.status_code == 200:
                    async for _, name, data in _events_of(answer):
                        return _graphql_outcome(data) if name == "next" else Outcome()
                    return Outcome()
                await answer.aread()
        else:
            answer = await self.client.post("/graphql", json=body)
        if answer.headers["content-type"].startswith("application/problem+json"):
            return refused(answer.json())
        return _graphql_outcome(answer.json())

    async def events(self, document: str, **variables: Any) -> AsyncIterator[Any]:
        """What each `next` holds."""
        body = {"query": document, "variables": variables}
        async with self.client.stream("POST", "/graphql", json=body, headers={"Accept": "text/event-stream"}) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for _, name, data in _events_of(answer):
                if name == "next":
                    assert "errors" not in data, data
                    yield data["data"]


class Socket:
    """A connection to `/ws` that is known already. Messages that answer nobody who waits are in `heard`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for text in self._connection:
                message = json.loads(text)
                waiting = self._waiting.pop(message.get("id"), None)
                if waiting is not None:
                    waiting.set_result(message)
                else:
                    self.heard.put_nowait(message)
        finally:
            for one in self._waiting.values():
                one.cancel()

    async def ask(self, kind: str, **members: Any) -> Outcome:
        """The first answer to a message."""
        number = next(self._ids)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        await self._connection.send(json.dumps({"type": kind, "id": number, **members}))
        async with asyncio.timeout(SECONDS):
            message = await answer
        message.pop("id")
        if message.pop("type") != "error":
            return Outcome(data=message)
        return refused({"type": f"/errors/{message['code']}", **message})  # its own says what message it is

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(SECONDS):
            return await self.heard.get()

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._connection.close()


@dataclass
class Callers:
    """One key on three doors."""

    rest: Rest
    graphql: Graphql
    socket: Socket
    _stack: AsyncExitStack

    @classmethod
    async def known(cls, port: int, key: str) -> Self:
        stack = AsyncExitStack()
        client = await stack.enter_async_context(
            httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": key}, timeout=SECONDS, trust_env=False
            )
        )
        socket = await stack.enter_async_context(_socket(port, key))
        return cls(Rest(client), Graphql(client), socket, stack)

    async def close(self) -> None:
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@asynccontextmanager
async def _socket(port: int, key: str) -> AsyncIterator[Socket]:
    connection = await connect(f"ws://127.0.0.1:{port}/ws", proxy=None, max_size=64 * 2**20)
    socket = Socket(connection)
    try:
        outcome = await socket.ask("auth", token=key)
        assert outcome.problem is None, outcome
        yield socket
    finally:
        await socket.close()


def _graphql_outcome(body: dict[str, Any]) -> Outcome:
    errors = body.get("errors")
    return refused(errors[0]["extensions"]) if errors else Outcome(data=body["data"])


async def _events_of(answer: httpx2.Response) -> AsyncIterator[tuple[str, str, Any]]:
    identifier, name, data = "", "message", ""
    async for line in answer.aiter_lines():
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if name != "message":
                yield identifier, name, json.loads(data) if data else None
            name, data = "message", ""
        elif field == "id":
            identifier = value
        elif field == "event":
            name = value
        elif field == "data":
            data += value
