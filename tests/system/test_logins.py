"""Logins at a real server, by a real OpenID Connect provider: streams that end with them, and the command line."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
from urllib.parse import urlencode

import pytest

from tests.control_plane.logins.browser import HTML
from tests.oidc_provider.process import SECRET
from tests.system.server import Caller, Stream

COMMAND = "from amplifier_api_server.control_plane.cli import app; app()"


@pytest.fixture(scope="module")
def settings(issuer):
    return by_company(issuer)


def by_company(issuer: str) -> dict[str, str]:
    """Settings of a server at which people log in by the provider."""
    method = {"type": "oauth2", "provider": "oidc", "name": "company", "issuer": issuer, "client_id": "amplifier"}
    methods = [{"type": "api_key"}, {**method, "signup": "tenant", "signup_tier": "enterprise"}]
    return {"AMPLIFIER_AUTH__METHODS": json.dumps(methods), "COMPANY_CLIENT_SECRET": SECRET}


class ByCookie(Caller):
    """What a page of ours asks."""

    def __init__(self, port: int, cookie: str, token: str) -> None:
        super().__init__(port)
        self._own = {"Cookie": f"amplifier={cookie}", "X-CSRF-Token": token, "Origin": f"http://127.0.0.1:{port}"}

    def _send(self, method, path, body, headers):
        return super()._send(method, path, body, {**self._own, **headers})


async def page_of(server, browser, who: str) -> ByCookie:
    assert (await browser.log_in(who)).status_code == 303
    session = await browser.session()
    return ByCookie(server.port, browser.client.cookies["amplifier"], session["csrf_token"])


def cut(stream: Stream) -> None:
    """It is cut off while its execution runs on, maybe in the middle of a chunk."""
    with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
        stream.cut()


async def test_who_logs_in_works_with_sessions_and_loses_their_streams_at_logout(server, browser):
    mine = await page_of(server, browser, "ada")
    session = await asyncio.to_thread(mine.session)
    assert (await asyncio.to_thread(mine.ask, session, "hello"))["response"]
    with await asyncio.to_thread(mine.stream, session, "stream 2000 at 40/s") as stream:
        await asyncio.to_thread(stream.take, 3)
        assert (await browser.post("/auth/logout")).status_code == 204
        await asyncio.to_thread(cut, stream)
    assert (await asyncio.to_thread(mine.call, "GET", "/v1/sessions")).status == 401


async def test_a_form_of_another_site_does_nothing(server, browser):
    mine = await page_of(server, browser, "grace")
    for headers in ({"X-CSRF-Token": "x"}, {"Origin": "https://evil.example"}):
        answer = await asyncio.to_thread(mine.call, "POST", "/v1/sessions", {"profile": "foundation:base"}, headers)
        assert (answer.status, answer.code) == (403, "csrf_failed")


# The command line.


@contextlib.contextmanager
def command(home, *arguments: str):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AMPLIFIER_", "XDG_"))}
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        env=environment | {"XDG_CONFIG_HOME": str(home)},
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told(home, *arguments: str) -> tuple[int, str]:
    with command(home, *arguments) as process:
        text, _ = process.communicate(timeout=90)
        return process.returncode, text


async def decided(browser, page_url: str, decision: str) -> str:
    page = await browser.client.get(page_url, headers=HTML)
    form = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.text))
    headers = {**HTML, "Origin": browser.home, "Content-Type": "application/x-www-form-urlencoded"}
    body = urlencode({**form, "decision": decision})
    answer = await browser.client.post(f"{browser.home}/auth/device/decide", content=body, headers=headers)
    return page.text + answer.text


async def test_the_command_line_logs_in_says_who_it_is_and_logs_out(server, browser, tmp_path):
    await page_of(server, browser, "linus")
    home, address = tmp_path, f"http://127.0.0.1:{server.port}"
    with command(home, "login", "--server", address, "--name", "a <b>machine</b>") as process:
        url = re.search(r"Open (\S+)", await asyncio.to_thread(process.stdout.readline))[1]
        code = re.search(r"this code: (\S+)", await asyncio.to_thread(process.stdout.readline))[1]
        shown = await decided(browser, url, "approve")
        assert code in shown
        assert "a &lt;b&gt;machine" in shown
        rest, _ = await asyncio.to_thread(process.communicate, timeout=90)
        assert process.returncode == 0, rest
    path = home / "amplifier-api-server" / "credentials.json"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    kept = json.loads(path.read_text())["servers"][address]
    assert kept["api_key"] not in rest
    assert Caller(server.port, kept["api_key"]).get("/v1/me")["member"]["name"] == "linus of the company"
    status, text = await asyncio.to_thread(told, home, "whoami")
    assert status == 0 and "linus of the company" in text, text  # noqa: PT018 - one answer
    assert await asyncio.to_thread(told, home, "token") == (0, f"{kept['api_key']}\n")
    status, text = await asyncio.to_thread(told, home, "logout")
    assert status == 0 and "is revoked" in text, text  # noqa: PT018 - one answer
    assert Caller(server.port, kept["api_key"]).call("GET", "/v1/me").status == 401
    assert json.loads(path.read_text())["servers"] == {}


async def test_the_command_line_is_told_no(server, browser, tmp_path):
    await page_of(server, browser, "margaret")
    with command(tmp_path, "login", "--server", f"http://127.0.0.1:{server.port}") as process:
        url = re.search(r"Open (\S+)", await asyncio.to_thread(process.stdout.readline))[1]
        await decided(browser, url, "deny")
        rest, _ = await asyncio.to_thread(process.communicate, timeout=90)
    assert process.returncode == 1
    assert "a person said no" in rest
    assert not (tmp_path / "amplifier-api-server").exists()


@pytest.mark.parametrize(
    "address", ["http://api.example.com", "ftp://127.0.0.1", "http://127.0.0.1@evil.example", "https://x/y"]
)
def test_the_command_line_sends_nothing_by_plain_http_or_to_what_is_no_server(tmp_path, address):
    status, text = told(tmp_path, "login", "--server", address)
    assert status == 1
    assert "--server" in text and "Traceback" not in text  # noqa: PT018 - one answer


@pytest.mark.parametrize("command", ["whoami", "token"])
def test_whoever_is_not_logged_in_is_told_how(tmp_path, command):
    status, text = told(tmp_path, command)
    assert (status, "amplifier-api-server login --server" in text) == (1, True)


def test_the_command_line_uses_no_file_that_others_can_read(tmp_path):
    path = tmp_path / "amplifier-api-server" / "credentials.json"
    path.parent.mkdir()
    path.write_text('{"servers": {}}')
    path.chmod(0o644)
    status, text = told(tmp_path, "whoami", "--server", "http://127.0.0.1:9")
    assert (status, "chmod 600" in text) == (1, True)
    path.chmod(0o600)
    path.write_text("nonsense")
    status, text = told(tmp_path, "whoami", "--server", "http://127.0.0.1:9")
    assert (status, "can't be read" in text, "Traceback" in text) == (1, True, False)
