from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.runtime.gateway import Gateway
from amplifier_api_server.runtime.http_server import HttpServer, Request, Response
from amplifier_api_server.runtime.modules import tool_web
from amplifier_api_server.runtime.modules.tool_web.page import text_of
from amplifier_api_server.runtime.protocol import Claim
from amplifier_api_server.runtime.tools import Bench
from amplifier_api_server.runtime.turn_port import CAPABILITY, Services, Turn, TurnPort

PAGE = """<html><head><title>Birds</title><style>b{}</style><script>alert("no")</script></head>
<body><h1>Birds</h1><p>A <b>robin</b> &amp; a
wren.</p><ul><li>one<li>two</ul><a href="https://example.com/x">more</a></body>"""


class Web:
    """The control plane's side: what is asked for, and what it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.answer: tuple[int, Any] = (200, {"url": "https://example.com/", "status": 200, "content": ""})

    async def handle(self, request: Request) -> Response:
        self.asked.append((request.headers["x-amplifier-turn"], json.loads(request.body)))
        return Response(self.answer[0], json.dumps(self.answer[1]).encode())

    def serves(self, content: str, content_type: str = "text/html; charset=utf-8", **more: Any) -> None:
        self.answer = (
            200,
            {"url": "https://example.com/", "status": 200, "content": content, "content_type": content_type} | more,
        )


@pytest.fixture
async def web(tmp_path: Path):
    web = Web()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "g"))
    listener.listen()
    server = HttpServer(web.handle)
    await server.listen(listener)
    gateway = Gateway(str(tmp_path / "g"))
    services = Services(Claim(runtime_id="run_1", tenant_id="ten_1"), gateway, tmp_path, tmp_path)
    port = TurnPort(services, tmp_path)
    port.turn = Turn("req_1", lambda: None)
    bench = Bench({CAPABILITY: port, "session.working_dir": str(tmp_path)})
    await tool_web.mount(bench, {})

    async def fetch(**given: Any) -> Any:
        result = await bench.tools["web_fetch"].execute(given)
        return result.output if result.success else result.error["message"]

    web.fetch = fetch
    yield web
    await gateway.close()
    await server.close(grace_seconds=0.1)


async def test_a_page_is_fetched_for_the_turn_and_read_as_text(web: Web):
    web.serves(PAGE)
    found = await web.fetch(url="https://example.com/")
    assert web.asked[0][0] == "req_1"
    assert web.asked[0][1]["url"] == "https://example.com/"
    assert found["content"] == "Birds\n\nBirds\n\nA robin & a wren.\n\n- one\n- two\nmore (https://example.com/x)"
    assert "alert" not in found["content"]


async def test_what_is_no_page_stays_as_it_is(web: Web):
    web.serves('{"a": "<b>"}', "application/json")
    assert (await web.fetch(url="https://example.com/"))["content"] == '{"a": "<b>"}'


async def test_a_long_page_comes_in_pieces_that_join_to_the_whole(web: Web):
    text = "".join(f"{number} " for number in range(50_000))
    web.serves(text, "text/plain")
    found, offset = "", 0
    while offset is not None:
        piece = await web.fetch(url="https://example.com/", offset=offset)
        found += piece["content"]
        offset = piece.get("next_offset")
    assert found == text


async def test_a_page_can_be_saved(web: Web, tmp_path: Path):
    web.serves("x" * 5_000, "text/plain")
    found = await web.fetch(url="https://example.com/", save_to_file="pages/a.txt")
    assert (len(found["content"]), found["saved_to"]) == (1_000, "pages/a.txt")
    assert (tmp_path / "pages" / "a.txt").read_text() == "x" * 5_000
    assert "outside" in await web.fetch(url="https://example.com/", save_to_file="../a.txt")


async def test_a_refusal_is_the_models_to_read(web: Web):
    web.answer = (403, {"code": "web_not_allowed", "detail": "10.0.0.1 is no public address"})
    assert await web.fetch(url="http://10.0.0.1/") == "10.0.0.1 is no public address"
    web.answer = (502, {"nonsense": True})
    assert "could not be fetched (502)" in await web.fetch(url="https://example.com/")


async def test_wrong_inputs_say_what_is_wrong(web: Web):
    assert await web.fetch() == "url is missing"
    assert await web.fetch(url="x" * 5_000) == "url is too long"
    assert await web.fetch(url="x", offset=-1) == "offset should be at least 0"
    assert web.asked == []


@given(st.text())
def test_any_text_is_taken_for_a_page(html: str):
    assert isinstance(text_of(html), str)
