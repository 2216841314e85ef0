"""The SDK door: vendors' SDKs in a sandbox reach the gateway as the running turn of their session, and nothing else."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.runtime import sdk_door
from amplifier_api_server.runtime.gateway import Gateway
from amplifier_api_server.runtime.sdk_door import SdkDoor
from tests.runtime.bundle_trees import Trees
from tests.runtime.conftest import Driver
from tests.runtime.fake_gateway import FakeGateway, calls, says
from tests.runtime.outside_modules import odd_image
from tests.runtime.processes import Process, started_runtime


class Caller:
    turn: str | None = "req_heron"

    def running_turn_id(self) -> str | None:
        return self.turn


class Echo:
    """A gateway that says what it was sent; `release` lets its answer's second half go."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.hung_up = asyncio.Event()
        self.release = asyncio.Event()
        self.answer = b"HTTP/1.1 200 OK\r\nx-request-id: abc\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"
        self.rest = b"6\r\nsecond\r\n0\r\n\r\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            fields = {k.lower(): v for k, _, v in (line.partition(": ") for line in head.split("\r\n"))}
            self.bodies.append(await self._body(reader, fields))
            writer.write(self.answer)
            gone = asyncio.ensure_future(reader.read(1))
            release = asyncio.ensure_future(self.release.wait())
            await asyncio.wait({gone, release}, return_when=asyncio.FIRST_COMPLETED)
            release.cancel()
            if gone.done():
                self.hung_up.set()
            gone.cancel()
            writer.write(self.rest)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            writer.transport.abort()

    @staticmethod
    async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
        if fields.get("transfer-encoding") != "chunked":
            return await reader.readexactly(int(fields.get("content-length", 0)))
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return body


@pytest.fixture
async def echo(short_tmp: Path) -> AsyncIterator[Echo]:
    one = Echo()
    server = await asyncio.start_unix_server(one.serve, path=str(short_tmp / "g"))
    yield one
    one.release.set()
    server.close()
    await server.wait_closed()


@pytest.fixture
async def door(echo: Echo, short_tmp: Path) -> AsyncIterator[SdkDoor]:
    gateway = Gateway(str(short_tmp / "g"))
    one = SdkDoor(gateway)
    yield one
    await one.close()
    await gateway.close()


class Open:
    def __init__(self, door: SdkDoor, caller: Caller, base: str) -> None:
        self.door, self.caller, self.base = door, caller, base
        rest = base.removeprefix("http://")
        address, _, path = rest.partition("/")
        self.port, self.path = int(address.partition(":")[2]), f"/{path}"

    async def send(self, head: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.replace("BASE", self.path).replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        return reader, writer

    async def whole(self, head: str, body: bytes = b"") -> tuple[int, str, bytes]:
        reader, writer = await self.send(head, body)
        async with asyncio.timeout(60):
            answer = await reader.read()
        writer.transport.abort()
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), head.decode(), rest


@pytest.fixture
async def at(door: SdkDoor) -> Open:
    caller = Caller()
    environment = await door.environment(door.register(caller))
    assert environment["OPENAI_BASE_URL"] == environment["ANTHROPIC_BASE_URL"] + "/v1"
    return Open(door, caller, environment["ANTHROPIC_BASE_URL"])


POST = "POST BASE/v1/chat/completions HTTP/1.1\nhost: x\ncontent-length: 4"


async def test_a_call_goes_on_as_its_sessions_turn_without_the_callers_word_on_that(echo: Echo, at: Open):
    echo.release.set()
    more = "\nauthorization: Bearer x\nx-api-key: y\nX-Amplifier-Turn: req_other\nanthropic-beta: a\nanthropic-beta: b"
    status, head, body = await at.whole(POST + more, b"data")
    assert (status, body) == (200, b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n")
    assert "x-request-id: abc" in head
    (seen,) = echo.heads
    assert seen.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert "x-amplifier-turn: req_heron" in seen
    assert "anthropic-beta: a, b" in seen
    assert not [word for word in ("bearer", "x-api-key", "req_other") if word in seen.lower()]
    assert echo.bodies == [b"data"]


async def test_an_answer_passes_as_it_comes(echo: Echo, at: Open):
    reader, writer = await at.send(POST, b"data")
    async with asyncio.timeout(60):
        await reader.readuntil(b"first\r\n")
        echo.release.set()
        assert await reader.read() == b"6\r\nsecond\r\n0\r\n\r\n"
    writer.transport.abort()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_long_body_passes_whole(echo: Echo, at: Open, chunked: bool):
    echo.release.set()
    body = bytes(range(256)) * 40_000
    if chunked:
        pieces = [body[at_byte : at_byte + 100_000] for at_byte in range(0, len(body), 100_000)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        await at.whole("POST BASE/v1/responses HTTP/1.1\nhost: x\ntransfer-encoding: chunked", framed)
    else:
        await at.whole(f"POST BASE/v1/responses HTTP/1.1\nhost: x\ncontent-length: {len(body)}", body)
    assert echo.bodies == [body]


async def test_nothing_follows_the_one_request_of_a_connection(echo: Echo, at: Open):
    echo.release.set()
    smuggled = b"POST /turns/req_other/checkpoint HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    await at.whole(POST, b"data" + smuggled)
    await at.whole(POST, b"data" + smuggled.replace(b"/turns", b"/s/x/turns"))
    assert [head.split()[1] for head in echo.heads] == ["/v1/chat/completions"] * 2
    assert echo.bodies == [b"data"] * 2


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/turns/req_heron/checkpoint",
        "BASE/turns/req_heron/checkpoint",
        "BASE/fetch",
        "BASE/v1/../turns/req_heron/checkpoint",
        "BASE//turns/x/checkpoint",
        "BASE/v1/models/../../fetch",
        "BASE/v1/%2e%2e/fetch",
        "http://gateway/fetch",
    ],
)
async def test_only_the_models_paths_are_passed_on(echo: Echo, at: Open, path: str):
    status, _, body = await at.whole(f"POST {path} HTTP/1.1\nhost: x\ncontent-length: 0")
    assert (status, echo.heads) == (404, [])
    assert json.loads(body)["error"]["code"] == "no_such_path"


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_without_a_turn_it_is_refused_so_that_no_sdk_tries_again(echo: Echo, at: Open, dialect: str):
    at.caller.turn = None
    more = "\nanthropic-version: 2023-06-01" if dialect == "anthropic" else ""
    status, head, body = await at.whole(POST + more, b"data")
    assert (status, echo.heads) == (403, [])
    assert "x-should-retry: false" in head
    error = json.loads(body)["error"]
    assert (error["type"] if dialect == "anthropic" else error["code"]) in ("permission_error", "no_turn")


async def test_another_token_opens_nothing_and_a_sessions_ends_with_it(echo: Echo, at: Open):
    guessed = POST.replace("BASE", "/s/" + "a" * 32)
    assert (await at.whole(guessed, b"data"))[0] == 403
    at.caller = None  # type: ignore[assignment]
    assert (await at.whole(POST, b"data"))[0] == 403
    assert echo.heads == []


async def test_a_caller_that_hangs_up_ends_its_call_at_the_gateway(echo: Echo, at: Open):
    reader, writer = await at.send(POST, b"data")
    async with asyncio.timeout(60):
        await reader.readuntil(b"first\r\n")
        writer.transport.abort()
        await echo.hung_up.wait()


async def test_an_answer_that_breaks_off_is_seen_to_break_off(echo: Echo, at: Open):
    echo.rest = b""
    reader, writer = await at.send(POST, b"data")
    async with asyncio.timeout(60):
        await reader.readuntil(b"first\r\n")
        echo.release.set()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readuntil(b"0\r\n\r\n")
    writer.transport.abort()


async def test_an_answer_that_comes_before_the_body_was_sent_is_passed_on(echo: Echo, at: Open, monkeypatch):
    async def early(reader: asyncio.StreamReader, _: dict[str, str]) -> bytes:
        return b""

    monkeypatch.setattr(echo, "_body", early)
    echo.answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\n\r\nbig!"
    echo.rest = b""
    reader, writer = await at.send("POST BASE/v1/messages HTTP/1.1\nhost: x\ncontent-length: 1000000", b"a" * 1000)
    async with asyncio.timeout(60):
        assert (await reader.readuntil(b"\r\n")).split()[1] == b"413"
    writer.transport.abort()


@pytest.mark.parametrize("head", ["NONSENSE\nx", "GET BASE/v1/models HTTP/1.1\nhost: x\nx-long: " + "a" * 200_000])
async def test_what_is_no_request_is_refused(echo: Echo, at: Open, head: str):
    assert (await at.whole(head))[0] in (400, 431)
    assert echo.heads == []


async def test_connections_are_bounded(echo: Echo, at: Open, monkeypatch):
    monkeypatch.setattr(sdk_door, "MAX_CONNECTIONS", 2)
    held = [await at.send(POST, b"data") for _ in range(2)]
    for reader, _ in held:
        async with asyncio.timeout(60):
            await reader.readuntil(b"first\r\n")
    reader, writer = await at.send(POST, b"data")
    async with asyncio.timeout(60):
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass  # as good an end without an answer
    for _, one in [*held, (reader, writer)]:
        one.transport.abort()


async def test_nothing_listens_until_somebody_could_use_it(runtime: Driver):
    assert runtime.app is not None
    await runtime.open()
    await runtime.ask()
    assert runtime.app._door._server is None
    runtime.gateway.scripts.extend([calls(("bash", {"command": "echo $OPENAI_BASE_URL"})), says("done")])
    await runtime.ask()
    assert runtime.app._door._server is not None


# In a real process, with the vendors' own SDKs.


@pytest.fixture
def started(short_tmp: Path, gateway: FakeGateway) -> Iterator[Process]:
    with started_runtime(short_tmp, gateway) as process:
        yield process


IN_BASH = """
import openai
said = openai.OpenAI(max_retries=0).chat.completions.create(
    model='default', messages=[{'role': 'user', 'content': 'tweet'}], stream=True)
print(''.join(chunk.choices[0].delta.content or '' for chunk in said if chunk.choices))
"""
IN_A_MODULE = """
import openai
async def main():
    said = await openai.AsyncOpenAI(max_retries=0).chat.completions.create(
        model='default', messages=[{'role': 'user', 'content': 'tweet'}], stream=True)
    found['said'] = ''.join([chunk.choices[0].delta.content or '' async for chunk in said if chunk.choices])
"""


@pytest.mark.parametrize("way", ["bash", "module"])
async def test_the_openai_sdk_works_unconfigured(started: Process, way: str):
    runtime = started.driver
    await runtime.claim()
    image = odd_image(Trees(runtime.installed))
    await runtime.open(profile="watch:watch", images=[image.model_dump()])
    given: Any = (
        ("bash", {"command": f'{sys.executable} -c "{IN_BASH}"'}) if way == "bash" else ("odd", {"code": IN_A_MODULE})
    )
    runtime.gateway.scripts.extend([calls(given), says("from", " the gateway"), says("done")])
    events = await runtime.stream(request_id="req_a")
    call = [event.data for event in events if event.name == "tool_call"][-1]
    assert call["status"] == "completed", call
    assert "from the gateway" in json.dumps(call["output"]), call
    assert runtime.gateway.requests[1]["messages"] == [{"role": "user", "content": "tweet"}]
    assert runtime.gateway.turn_headers == ["req_a"] * 3
