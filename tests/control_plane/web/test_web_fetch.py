"""Pages for tools: asked for over a runtime's own socket, by a turn that runs, within the operator's and the tenant's rules."""

import asyncio
import contextlib
import gzip
import threading
import zlib

import httpx2
import pytest

from amplifier_api_server.control_plane.accounts import service as accounts
from amplifier_api_server.control_plane.clock import SystemClock
from amplifier_api_server.control_plane.egress.client import USER_AGENT
from amplifier_api_server.control_plane.limits.memory import MemoryLimits
from amplifier_api_server.control_plane.model_gateway.gateway import ModelGateway
from amplifier_api_server.control_plane.model_gateway.listeners import GatewayListeners
from amplifier_api_server.control_plane.model_gateway.turns import MeteredTurn, RunningTurns
from amplifier_api_server.control_plane.settings import Models, Settings
from amplifier_api_server.control_plane.web import door as door_module
from amplifier_api_server.control_plane.web import service
from amplifier_api_server.control_plane.web.door import WebDoor
from amplifier_api_server.control_plane.web.pages import Pages
from amplifier_api_server.control_plane.web.policy import policy_of
from tests.git_server import GitServer
from tests.tenants.embedded import embedded

__all__ = ["embedded"]


class Web:
    """A gateway that fetches pages, one tenant's runtime on its socket, and the web that there is."""

    def __init__(self, server, embedded, client, turns, tenant_id):
        self.server, self.embedded, self.client, self.turns, self.tenant_id = server, embedded, client, turns, tenant_id

    async def ask(self, url, *, turn="req_1", **more):
        return await self.client.post("/fetch", json={"url": url, **more}, headers={"X-Amplifier-Turn": turn})

    async def get(self, path, **more):
        return await self.ask(self.server.url(path, host="git.test"), **more)

    async def set_policy(self, **lists):
        policy = policy_of(lists.get("allow", ["*"]), lists.get("deny", []))
        await service.replace(self.embedded, self.tenant_id, policy, "cli")


@pytest.fixture
def server(tmp_path):
    with GitServer(tmp_path / "server") as running:
        running.files["/page"] = ("text/html; charset=utf-8", "<p>grüß</p>".encode())
        yield running


@pytest.fixture
async def build(tmp_path, server, embedded):
    async with contextlib.AsyncExitStack() as stack:

        async def build(**web):
            values = {
                "private_hosts": [f"git.test:{server.port}", f"other.test:{server.port}"],
                "max_response": 100_000,
                "timeout": "5s",
                **web,
            }
            settings = Settings.model_validate({"web": values, "collections": {"ca_file": str(server.ca_file)}})
            turns = RunningTurns(MemoryLimits(SystemClock()))
            pages = Pages(settings, embedded.database, resolve=server.resolve)
            gateway = ModelGateway(Models(), turns, None, web=WebDoor(pages))
            listeners = GatewayListeners(tmp_path / "sockets", gateway)
            stack.push_async_callback(listeners.close_all)
            transport = httpx2.AsyncHTTPTransport(uds=await listeners.open("run_1"))
            client = httpx2.AsyncClient(transport=transport, base_url="http://gateway", timeout=90)
            await stack.enter_async_context(client)
            made = await accounts.create(embedded, "cli", name="T", tier="default", limits=None)
            turns.begin(MeteredTurn(made.row.id, "mem_1", "sess_1", "req_1", "run_1"))
            return Web(server, embedded, client, turns, made.row.id)

        yield build


@pytest.fixture
async def web(build):
    return await build()


def code(answer, status):
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"code", "detail", "retry_after_seconds"}, "a plain protocol.Failure"
    return answer.json()["code"]


async def test_a_page_is_fetched_as_text(web):
    answer = await web.get("page")
    assert answer.json() == {
        "url": web.server.url("page", host="git.test"),
        "status": 200,
        "content_type": "text/html; charset=utf-8",
        "content": "<p>grüß</p>",
        "is_cut": False,
    }


async def test_a_page_that_is_not_there_is_an_answer_too(web):
    web.server.handlers["/gone"] = lambda handler: handler.answer(404, b"not here", content_type="text/plain")
    assert ((await web.get("gone")).json()["status"], (await web.get("gone")).json()["content"]) == (404, "not here")


async def test_only_a_turn_that_runs_in_this_runtime_may_fetch(web):
    assert code(await web.get("page", turn="req_other"), 403) == "no_turn"
    assert code(await web.get("page", turn=""), 403) == "no_turn"
    await web.turns.finish("req_1", abort=True)
    assert code(await web.get("page"), 403) == "no_turn"
    assert web.server.asked == []


async def test_nothing_of_the_caller_or_the_server_is_sent_along(web):
    sent = {}
    web.server.handlers["/who"] = lambda handler: (
        sent.update(handler.headers),
        handler.answer(200, b"x", content_type="text/plain"),
    )
    web.server.handlers["/set"] = lambda handler: handler.answer(302, b"", Set_Cookie="a=b", location="/who")
    await web.get("set")
    assert {name.lower() for name in sent} == {
        "host",
        "user-agent",
        "accept",
        "accept-language",
        "accept-encoding",
        "connection",
    }
    assert sent["User-Agent"] == USER_AGENT


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://169.254.169.254/latest/meta-data/iam/",
        "http://[::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://0251.0376.0251.0376/",
        "http://127.1/",
        "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",
        "http://private.test/",
        "http://git.test:22/",
        "http://user:secret@git.test/",
        "file:///etc/passwd",
        "ftp://git.test/",
        "gopher://git.test/_GET",
        "javascript:alert(1)",
        "",
        "git.test",
    ],
)
async def test_nothing_but_the_public_web_is_fetched(web, url):
    assert code(await web.ask(url), 403) == "web_not_allowed"
    assert web.server.asked == []


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/", "https://private.test/", "http://git.test/", "file:///etc/passwd"]
)
async def test_no_redirect_leads_off_the_public_web_or_to_http(web, target):
    web.server.redirects["/old"] = target
    assert code(await web.get("old"), 403) == "web_not_allowed"


async def test_a_tenants_list_narrows_what_may_be_fetched_at_each_redirect(web):
    await web.set_policy(allow=["git.test"])
    web.server.redirects["/away"] = web.server.url("page", host="other.test")
    assert (await web.get("page")).status_code == 200
    assert code(await web.get("away"), 403) == "web_not_allowed"
    assert code(await web.ask(web.server.url("page", host="other.test")), 403) == "web_not_allowed"
    await web.set_policy(deny=["git.test"])
    assert code(await web.get("page"), 403) == "web_not_allowed"
    assert (await web.ask(web.server.url("page", host="other.test"))).status_code == 200


async def test_a_tenants_list_opens_nothing_that_the_operator_keeps_shut(build):
    web = await build(deny=["git.test"])
    await web.set_policy(allow=["git.test", "127.0.0.1", "localhost"])
    assert code(await web.get("page"), 403) == "web_not_allowed"
    assert code(await web.ask(web.server.url("page", host="127.0.0.1")), 403) == "web_not_allowed"


async def test_lists_that_can_not_be_read_allow_nothing(web):
    from amplifier_api_server.tenants.repository import tenants

    async with web.embedded.database.write() as db:
        await tenants.change(db, web.tenant_id, web.embedded.clock.now(), web={"allow": "everything"})
    assert code(await web.get("page"), 403) == "web_not_allowed"


async def test_an_operator_can_switch_it_off(build):
    web = await build(enabled=False)
    assert code(await web.get("page"), 403) == "web_disabled"


@pytest.mark.parametrize(
    "kind", ["image/png", "application/octet-stream", "application/pdf", "application/zip", "video/mp4"]
)
async def test_what_is_no_text_is_refused(web, kind):
    web.server.files["/file"] = (kind, b"\x89PNG")
    assert code(await web.get("file"), 422) == "web_unsupported"


@pytest.mark.parametrize(
    "kind", ["application/json", "application/ld+json", "application/xhtml+xml", "text/markdown", "TEXT/PLAIN"]
)
async def test_text_of_many_kinds_is_taken(web, kind):
    web.server.files["/file"] = (kind, b"{}")
    assert (await web.get("file")).json()["content"] == "{}"


@pytest.mark.parametrize(
    ("kind", "raw", "text"),
    [
        ("text/plain; charset=ISO-8859-1", "é“".encode("cp1252"), "é“"),
        ("text/plain; charset=shift_jis", "日本".encode("shift_jis"), "日本"),
        ("text/plain", b"\xff\xfe" + "é".encode("utf-16-le"), "é"),
        ("text/plain", b"\xef\xbb\xbfa", "a"),
        ("text/html", '<meta charset="koi8-r">да'.encode("koi8-r"), '<meta charset="koi8-r">да'),
        ("text/xml", '<?xml version="1.0" encoding="iso-8859-1"?>é'.encode("latin-1"), None),
        ("text/plain; charset=nonsense", "é".encode(), "é"),
        ("text/plain; charset=punycode", b"a-b", "a-b"),
        ("text/plain; charset=unicode_escape", rb"\x41", r"\x41"),
        ("text/plain; charset=rot13", b"abc", "abc"),
        ("text/plain; charset=utf-8", b"a\xffb", "a�b"),
    ],
)
async def test_text_is_read_in_its_character_set_and_in_no_dangerous_one(web, kind, raw, text):
    web.server.files["/file"] = (kind, raw)
    assert (await web.get("file")).json()["content"] == (text or raw.decode("latin-1"))


async def test_a_long_page_is_cut_where_the_caller_or_the_operator_says(web):
    web.server.files["/long"] = ("text/plain", "é".encode() * 200_000)
    cut = (await web.get("long", max_bytes=11)).json()
    assert (cut["content"], cut["is_cut"]) == ("ééééé", True)
    assert len((await web.get("long", max_bytes=30_000_000)).json()["content"]) == 50_000


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw"])
async def test_a_compressed_bomb_is_read_as_far_as_is_wanted(web, encoding):
    bomb = b"\0" * 50_000_000
    raw = {"gzip": lambda: gzip.compress(bomb, 1), "deflate": lambda: zlib.compress(bomb, 1)}.get(
        encoding, lambda: zlib.compress(bomb, 1)[2:-4]
    )()
    name = "deflate" if encoding == "raw" else encoding
    web.server.handlers["/bomb"] = lambda handler: handler.answer(
        200, raw, content_type="text/plain", content_encoding=name
    )
    fetched = (await web.get("bomb", max_bytes=1000)).json()
    assert (len(fetched["content"]), fetched["is_cut"]) == (1000, True)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
async def test_an_encoding_that_nobody_asked_for_is_refused(web, encoding):
    web.server.handlers["/odd"] = lambda handler: handler.answer(
        200, b"x", content_type="text/plain", content_encoding=encoding
    )
    assert code(await web.get("odd"), 422) == "web_unsupported"


async def test_a_body_that_never_ends_is_cut_and_one_that_drips_is_left(build):
    web = await build(timeout="1s", max_response=10_000)

    def endless(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        with contextlib.suppress(OSError):
            while not handler.server.is_ending.is_set():
                handler.wfile.write(b"x" * 1000)

    def dripping(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        with contextlib.suppress(OSError):
            while not handler.server.is_ending.wait(0.1):
                handler.wfile.write(b"x")

    web.server.handlers["/endless"], web.server.handlers["/dripping"] = endless, dripping
    assert (await web.get("endless")).json()["is_cut"] is True
    assert code(await web.get("dripping"), 503) == "web_timeout"


async def test_a_host_that_is_not_there_is_answered_as_one_that_is_not_public(web):
    """But for the name, which the caller gave."""
    nowhere, private = await web.ask("https://nowhere.example/"), await web.ask("https://private.test/")
    assert code(nowhere, 403) == code(private, 403) == "web_not_allowed"
    assert nowhere.text.replace("nowhere.example", "private.test") == private.text


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"url": 1}', b'{"url": "https://git.test/", "more": 1}', b'{"url": "x", "max_bytes": 0}'],
)
async def test_what_is_no_fetch_is_refused(web, body):
    answer = await web.client.post("/fetch", content=body, headers={"X-Amplifier-Turn": "req_1"})
    assert code(answer, 422) == "invalid_request"


async def test_a_request_that_is_too_large_is_refused(web):
    answer = await web.client.post("/fetch", content=b"x" * 40_000, headers={"X-Amplifier-Turn": "req_1"})
    assert code(answer, 413) == "too_large"


async def test_one_turn_fetches_only_so_many_pages_at_once_and_in_all(web, monkeypatch):
    entered, release = threading.Semaphore(0), threading.Event()

    def held(handler):
        entered.release()
        release.wait(60)
        handler.answer(200, b"x", content_type="text/plain")

    web.server.handlers["/held"] = held
    running = [asyncio.ensure_future(web.get("held")) for _ in range(door_module.MAX_AT_ONCE_OF_A_TURN)]
    for _ in running:
        assert await asyncio.to_thread(entered.acquire, timeout=10)
    assert code(await web.get("page"), 503) == "busy"
    release.set()
    assert [answer.status_code for answer in await asyncio.gather(*running)] == [200] * len(running)
    monkeypatch.setattr(door_module, "MAX_OF_A_TURN", len(running) + 1)
    assert (await web.get("page")).status_code == 200
    assert code(await web.get("page"), 403) == "web_not_allowed"


async def test_all_turns_together_fetch_only_so_many(build):
    web = await build(max_concurrent=1)
    entered, release = threading.Event(), threading.Event()

    def held(handler):
        entered.set()
        release.wait(60)
        handler.answer(200, b"x", content_type="text/plain")

    web.server.handlers["/held"] = held
    running = asyncio.ensure_future(web.get("held"))
    await asyncio.to_thread(entered.wait, 10)
    assert code(await web.get("page"), 503) == "busy"
    release.set()
    assert (await running).status_code == 200


async def test_a_sandbox_that_hangs_up_ends_its_fetch(web):
    entered, left = threading.Event(), threading.Event()

    def watched(handler):
        entered.set()
        with contextlib.suppress(OSError):
            handler.connection.settimeout(10)
            handler.connection.recv(1)
        left.set()

    web.server.handlers["/held"] = watched
    running = asyncio.ensure_future(web.get("held"))
    await asyncio.to_thread(entered.wait, 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await asyncio.to_thread(left.wait, 4), "before the fetch's own time is over"
