"""The client that fetches what tenants name: to checked addresses alone, at each redirect anew."""

import asyncio

import pytest

from amplifier_api_server.control_plane.egress.addresses import HostRules, NotAllowed, TooSlow, Unreachable
from amplifier_api_server.control_plane.egress.certificates import context_of
from amplifier_api_server.control_plane.egress.client import Client, Patience
from tests.git_server import GitServer


@pytest.fixture
def server(tmp_path):
    with GitServer(tmp_path / "server") as running:
        running.files["/page"] = ("text/plain", b"hello")
        yield running


@pytest.fixture
def client(server):
    rules = HostRules(private=(f"git.test:{server.port}", f"other.test:{server.port}"))
    return Client(rules, lambda: context_of(server.ca_file), resolve=server.resolve)


async def body_of(client, url, **options):
    async with client.get(url, **options) as answer:
        parts = []
        while chunk := await answer.read():
            parts.append(chunk)
        return answer.status, answer.place.url, b"".join(parts)


async def test_a_page_is_fetched(server, client):
    url = server.url("page", host="git.test")
    assert await body_of(client, url) == (200, url, b"hello")


async def test_a_redirect_is_followed_to_another_host_that_is_allowed(server, client):
    server.redirects["/old"] = server.url("page", host="other.test")
    assert (await body_of(client, server.url("old", host="git.test")))[1] == server.url("page", host="other.test")


async def test_a_relative_redirect_is_followed(server, client):
    server.redirects["/old"] = "page?x=1"
    assert (await body_of(client, server.url("old", host="git.test")))[1] == server.url("page?x=1", host="git.test")


@pytest.mark.parametrize(
    "target",
    [
        "https://169.254.169.254/latest/meta-data/",
        "https://[::ffff:169.254.169.254]/",
        "https://2852039166/",
        "https://private.test/",
        "https://user:secret@git.test/",
        "file:///etc/passwd",
        "gopher://git.test/",
        "https://git.test:22/",
        "//169.254.169.254/",
        "https://[::1",
    ],
)
async def test_a_redirect_to_what_is_not_public_is_refused(server, client, target):
    server.redirects["/old"] = target
    with pytest.raises(NotAllowed):
        await body_of(client, server.url("old", host="git.test"), schemes=("https", "http"))
    assert server.asked == ["/old"]


async def test_a_redirect_from_https_to_http_is_refused(server, client):
    server.redirects["/old"] = server.url("page", host="git.test").replace("https", "http")
    with pytest.raises(NotAllowed):
        await body_of(client, server.url("old", host="git.test"), schemes=("https", "http"))


async def test_redirects_without_end_are_refused(server, client):
    server.redirects["/round"] = "/round"
    with pytest.raises(NotAllowed):
        await body_of(client, server.url("round", host="git.test"), patience=Patience(max_redirects=3))
    assert len(server.asked) == 4


async def test_a_name_is_resolved_once_and_what_was_checked_is_what_is_connected_to(server):
    """Rebinding: the first answer is public and passes, the second would be this machine."""
    asked = []

    async def resolve(host, port):
        asked.append(host)
        return ["192.0.2.1" if len(asked) > 1 else "1.1.1.1"]

    connected = []

    async def create_connection(make, address, port, **_):
        connected.append(address)
        raise OSError("not from here")

    client = Client(HostRules(), lambda: context_of(server.ca_file), resolve=resolve)
    loop = asyncio.get_running_loop()
    original, loop.create_connection = loop.create_connection, create_connection
    try:
        with pytest.raises(Unreachable):
            await body_of(client, "https://rebinding.test/")
    finally:
        loop.create_connection = original
    assert asked == ["rebinding.test"]
    assert connected == ["1.1.1.1"]


async def test_each_redirect_is_resolved_and_checked_again(server):
    answers = iter(["127.0.0.1", "169.254.169.254"])

    async def resolve(host, port):
        return [next(answers)]

    server.redirects["/old"] = "https://elsewhere.test/"
    rules = HostRules(private=(f"git.test:{server.port}",))
    with pytest.raises(NotAllowed):
        await body_of(
            Client(rules, lambda: context_of(server.ca_file), resolve=resolve), server.url("old", host="git.test")
        )


async def test_a_certificate_that_nobody_trusts_is_refused(server):
    rules = HostRules(private=(f"git.test:{server.port}",))
    with pytest.raises(Unreachable, match="not trusted"):
        await body_of(Client(rules, lambda: context_of(None), resolve=server.resolve), server.url("", host="git.test"))


async def test_a_certificate_of_another_name_is_refused(server):
    rules = HostRules(private=(f"a.b.test:{server.port}",))
    client = Client(rules, lambda: context_of(server.ca_file), resolve=server.resolve)
    with pytest.raises(Unreachable, match="not trusted"):
        await body_of(client, server.url("", host="a.b.test"))


async def test_no_proxy_of_the_environment_is_taken(server, client, monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await body_of(client, server.url("page", host="git.test")))[0] == 200


async def test_a_silent_server_is_left(server, client):
    def silent(handler):
        handler.server.is_ending.wait(60)

    server.handlers["/silent"] = silent
    with pytest.raises(TooSlow):
        await body_of(client, server.url("silent", host="git.test"), patience=Patience(idle_seconds=0.2))


@pytest.mark.parametrize("raw", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n"])
async def test_what_is_no_http_is_unreachable(server, client, raw):
    server.handlers["/odd"] = lambda handler: handler.wfile.write(raw)
    with pytest.raises(Unreachable):
        await body_of(client, server.url("odd", host="git.test"))


async def test_a_body_that_breaks_off_is_unreachable(server, client):
    server.handlers["/cut"] = lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc")
    with pytest.raises(Unreachable):
        await body_of(client, server.url("cut", host="git.test"))
