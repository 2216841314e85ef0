"""Calls on the wire: TLS, proxies, and connections that are kept."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from urllib.parse import urlsplit

import pytest

from amplifier_api_server.control_plane.model_gateway.proxies import proxy_for
from amplifier_api_server.control_plane.model_gateway.upstream import Timeouts, Unreachable, Upstream

from .scripted_upstream import Peer

# Of a throwaway key, for provider.test and 127.0.0.1, for a hundred years: it protects nothing.
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBlTCCATugAwIBAgIUNZkwnAodYyYhSGKM6oYW+T9fBl8wCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjMwNzI3MDlaGA8yMTI2MTAzMDA3Mjcw
OVowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCHZ
FVLE1q+ypVQyPVtpCnOyQAOVf8r6k1cVdqxiMC0tqlQjaOaAbb/klRS4F8qenb8g
1JMMpWy8zKGE7Nnhq3ujczBxMB0GA1UdDgQWBBRH0zk/iuYbk8gk0Q1MQCJYFEWF
7DAfBgNVHSMEGDAWgBRH0zk/iuYbk8gk0Q1MQCJYFEWF7DAPBgNVHRMBAf8EBTAD
AQH/MB4GA1UdEQQXMBWCDXByb3ZpZGVyLnRlc3SHBH8AAAEwCgYIKoZIzj0EAwID
SAAwRQIhANVSz9RqDpbPQCHNBYSrW06Jomt95ZKeUPC8YgiRqXBcAiA6DAuGMWjJ
KnMi3aUfp0rtzCxj6F2Xm51y/0NT6XbCyQ==
-----END CERTIFICATE-----
"""
PRIVATE_KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg1D+U2s1UK8IVZjEM
qrc+uol/W7YyRW107VDGd1YwFz2hRANCAAQh2RVSxNavsqVUMj1baQpzskADlX/K
+pNXFXasYjAtLapUI2jmgG2/5JUUuBfKnp2/INSTDKVsvMyhhOzZ4at7
-----END PRIVATE KEY-----
"""
TIMEOUTS = Timeouts(5, 5)


@pytest.fixture
def tls_server(tmp_path):
    (tmp_path / "tls.pem").write_text(CERTIFICATE + PRIVATE_KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem")
    return context


@pytest.fixture
def trusting():
    return ssl.create_default_context(cadata=CERTIFICATE)


async def hello(reader, writer) -> None:
    """Answer each request with its own path."""
    peer = Peer(reader, writer)
    while asked := await peer.read_request():
        await peer.whole(200, asked.path.encode())


async def ask(upstream: Upstream, url: str) -> bytes:
    answer = await upstream.call("GET", url, {}, b"", TIMEOUTS)
    body = b""
    while part := await answer.read():
        body += part
    answer.close()
    return body


@contextlib.asynccontextmanager
async def serving(serve, **options):
    """A server whose every connection ends with it."""
    tasks, writers = [], []

    async def tracked(reader, writer):
        tasks.append(asyncio.current_task())
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)

    async with await asyncio.start_server(tracked, "127.0.0.1", 0, **options) as server:
        yield server
        for task in tasks:
            task.cancel()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)


def port_of(server: asyncio.Server) -> int:
    return server.sockets[0].getsockname()[1]


async def test_https_is_spoken_and_the_connection_kept(tls_server, trusting):
    seen = []

    async def counting(reader, writer):
        seen.append(1)
        await hello(reader, writer)

    async with serving(counting, ssl=tls_server) as server:
        upstream = Upstream(ssl_context=trusting, environ={})
        for path in ("/a", "/b?c=d"):
            assert await ask(upstream, f"https://127.0.0.1:{port_of(server)}{path}") == path.encode()
        assert len(seen) == 1
        await upstream.close()


async def test_a_certificate_that_nobody_vouches_for_is_refused(tls_server):
    async with serving(hello, ssl=tls_server) as server:
        upstream = Upstream(environ={})
        with pytest.raises(Unreachable, match="certificate"):
            await ask(upstream, f"https://127.0.0.1:{port_of(server)}/")
        await upstream.close()


def proxying(target_port: int, heads: list[str]):
    """A forward proxy that takes every CONNECT to one port."""

    async def pipe(reader, writer):
        try:
            while part := await reader.read(65536):
                writer.write(part)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def serve(reader, writer):
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        if not heads[-1].startswith("CONNECT"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain")
            return
        if "Basic dTpw" not in heads[-1]:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", target_port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))

    return serve


async def test_https_goes_through_the_operators_proxy(tls_server, trusting):
    heads: list[str] = []
    async with (
        serving(hello, ssl=tls_server) as server,
        serving(proxying(port_of(server), heads)) as proxy,
    ):
        upstream = Upstream(ssl_context=trusting, environ={"HTTPS_PROXY": f"http://u:p@127.0.0.1:{port_of(proxy)}"})
        for path in ("/a", "/b"):
            assert await ask(upstream, f"https://provider.test{path}") == path.encode()
        assert len(heads) == 1
        assert heads[0].startswith("CONNECT provider.test:443 HTTP/1.1\r\n")
        await upstream.close()


async def test_a_proxy_that_refuses_is_named_in_the_error(trusting):
    heads: list[str] = []
    async with serving(proxying(1, heads)) as proxy:
        upstream = Upstream(ssl_context=trusting, environ={"https_proxy": f"127.0.0.1:{port_of(proxy)}"})
        with pytest.raises(Unreachable, match="407"):
            await ask(upstream, "https://provider.test/")
        await upstream.close()


async def test_http_through_a_proxy_names_the_whole_address():
    heads: list[str] = []
    async with serving(proxying(1, heads)) as proxy:
        upstream = Upstream(environ={"http_proxy": f"http://u:p@127.0.0.1:{port_of(proxy)}"})
        assert await ask(upstream, "http://provider.test/a?b") == b"plain"
        assert heads[0].startswith("GET http://provider.test/a?b HTTP/1.1\r\nHost: provider.test\r\n")
        assert "Proxy-Authorization: Basic dTpw" in heads[0]
        await upstream.close()


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("https://api.example.com/v1", {}, None),
        ("https://api.example.com/v1", {"HTTPS_PROXY": "http://p:3128"}, ("p", 3128)),
        ("https://api.example.com/v1", {"ALL_PROXY": "p:3128"}, ("p", 3128)),
        ("http://api.example.com/v1", {"HTTPS_PROXY": "http://p:3128"}, None),
        ("https://api.example.com/v1", {"HTTPS_PROXY": "http://p", "NO_PROXY": "foo, .example.com"}, None),
        ("https://api.example.com/v1", {"HTTPS_PROXY": "http://p", "NO_PROXY": "example.com"}, None),
        ("https://api.example.com/v1", {"HTTPS_PROXY": "http://p", "NO_PROXY": "ample.com"}, ("p", 80)),
        ("https://api.example.com/v1", {"HTTPS_PROXY": "http://p", "NO_PROXY": "*"}, None),
        ("http://127.0.0.1:8000/v1", {"HTTP_PROXY": "http://p"}, None),
        ("http://localhost:8000/v1", {"ALL_PROXY": "http://p"}, None),
        ("http://[::1]:8000/v1", {"ALL_PROXY": "http://p"}, None),
    ],
)
def test_which_calls_take_the_proxy(url, environ, proxy):
    found = proxy_for(urlsplit(url), environ)
    assert (found and (found.host, found.port)) == proxy


def test_a_proxy_that_can_not_be_used_is_said():
    with pytest.raises(OSError, match="socks5"):
        proxy_for(urlsplit("https://x"), {"HTTPS_PROXY": "socks5://p"})


async def test_a_body_without_a_length_ends_with_its_connection():
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        writer.close()

    async with serving(serve) as server:
        upstream = Upstream(environ={})
        assert await ask(upstream, f"http://127.0.0.1:{port_of(server)}/") == b"all of it"
        await upstream.close()


async def test_what_comes_unasked_on_a_kept_connection_is_no_answer_to_the_next():
    async def serve(reader, writer):
        peer = Peer(reader, writer)
        await peer.read_request()
        await peer.whole(200, b"first")
        await asyncio.sleep(0.02)
        await peer.whole(200, b"smuggled")
        while await peer.read_request():
            await peer.whole(200, b"second")

    async with serving(serve) as server:
        upstream = Upstream(environ={})
        url = f"http://127.0.0.1:{port_of(server)}/"
        assert await ask(upstream, url) == b"first"
        await asyncio.sleep(0.06)
        assert await ask(upstream, url) == b"first"
        await upstream.close()


async def test_an_informational_answer_is_not_the_answer():
    async def serve(reader, writer):
        peer = Peer(reader, writer)
        await peer.read_request()
        await peer.raw(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        await peer.whole(200, b"real")
        writer.close()

    async with serving(serve) as server:
        upstream = Upstream(environ={})
        assert await ask(upstream, f"http://127.0.0.1:{port_of(server)}/") == b"real"
        await upstream.close()
