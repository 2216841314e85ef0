"""Providers that answer wrongly, too much, too slowly or for others: nobody is logged in, and everybody is told."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.control_plane.logins.conftest import House, house_in


@dataclass
class Misbehaving:
    """Answers by path: (status, body). A body that is a dict goes out as JSON."""

    url: str = ""
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def document(self, **more: Any) -> dict[str, Any]:
        ends = {
            name: f"{self.url}/{name}" for name in ("authorization_endpoint", "token_endpoint", "userinfo_endpoint")
        }
        return {"issuer": self.url, **ends, "jwks_uri": f"{self.url}/jwks", **more}


@pytest.fixture
def provider() -> Iterator[Misbehaving]:
    made = Misbehaving()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            made.asked.append(self.path)
            status, body = made.answers.get(urlsplit(self.path).path, (404, {}))
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            with contextlib.suppress(OSError):  # who reads no further is what is tested
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", str(body))
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


@pytest.fixture
async def house(tmp_path, provider):
    method = {"type": "oauth2", "provider": "oidc", "name": "company", "issuer": provider.url, "client_id": "us"}
    async with house_in(tmp_path, {**method, "token_auth": "none"}, issuer=provider.url) as made:
        yield made


WELL_KNOWN = "/.well-known/openid-configuration"


async def outcome(house: House, query: str = "code=x") -> tuple[int, str]:
    """What becomes of a login: of its start, or of its end."""
    browser = house.browser()
    answer = await browser.get("/auth/login/company")
    if answer.status_code == 303:
        state = parse_qs(urlsplit(answer.headers["location"]).query)["state"][0]
        answer = await browser.get(f"/auth/callback/company?{query}&state={state}")
    assert (await browser.get("/auth/session")).status_code == 401
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (500, {}, "login_provider_unavailable"),
        (404, {}, "login_failed"),
        (200, b"<html>", "login_failed"),
        (200, b"[]", "login_failed"),
        (200, {"issuer": "https://elsewhere.example"}, "login_failed"),
        (200, b" " * 600_000, "login_failed"),
        (302, "http://169.254.169.254/latest/meta-data", "login_provider_unavailable"),
    ],
)
async def test_a_discovery_document_that_is_none(house, provider, status, body, code):
    provider.answers[WELL_KNOWN] = (status, body)
    assert (await outcome(house))[1] == code


@pytest.mark.parametrize(
    "endpoint", ["http://login.example.com/token", "file:///etc/passwd", 7, None, "https://u:p@x.example/"]
)
async def test_an_endpoint_that_is_no_place_for_a_secret(house, provider, endpoint):
    provider.answers[WELL_KNOWN] = (200, provider.document(token_endpoint=endpoint))
    assert await outcome(house) == (403, "login_failed")
    assert provider.asked == [WELL_KNOWN]


@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "127.0.0.1:9", "[::1]:9"])
async def test_no_document_leads_us_to_what_is_not_public(house, provider, host):
    provider.answers[WELL_KNOWN] = (200, provider.document(token_endpoint=f"http://{host}/token"))
    assert await outcome(house) == (503, "login_provider_unavailable")


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (500, {}, "login_provider_unavailable"),
        (400, {"error": "invalid_grant"}, "login_failed"),
        (200, {"error": "invalid_grant"}, "login_failed"),
        (200, b"access_token=x", "login_failed"),
        (200, ["x"], "login_failed"),
        (200, {}, "login_failed"),
        (200, {"access_token": "x", "token_type": "mac", "id_token": "a.b.c"}, "login_failed"),
        (200, {"access_token": "x", "token_type": "bearer"}, "login_failed"),
        (200, {"access_token": "x", "token_type": "bearer", "id_token": 7}, "login_failed"),
        (200, {"access_token": "x", "token_type": "bearer", "id_token": "a.b.c"}, "login_failed"),
        (200, b" " * 600_000, "login_failed"),
    ],
)
async def test_tokens_that_are_none(house, provider, status, body, code):
    provider.answers = {WELL_KNOWN: (200, provider.document()), "/token_endpoint": (status, body)}
    assert (await outcome(house))[1] == code


async def test_keys_that_are_not_there(house, provider):
    token = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.e30.AAAA"
    tokens = {"access_token": "x", "token_type": "bearer", "id_token": token}
    provider.answers = {WELL_KNOWN: (200, provider.document()), "/token_endpoint": (200, tokens)}
    assert await outcome(house) == (503, "issuer_unavailable")


async def test_a_provider_that_promises_its_name_has_to_give_it(house, provider):
    document = provider.document(authorization_response_iss_parameter_supported=True)
    provider.answers = {WELL_KNOWN: (200, document)}
    assert await outcome(house) == (403, "login_failed")
    assert "/token_endpoint" not in provider.asked, "the code went nowhere"


@pytest.mark.parametrize(
    "query", ["", "code=", "error=server_error", "code=x&iss=https%3A%2F%2Felsewhere.example", "code=x&code=y"]
)
async def test_answers_without_a_code(house, provider, query):
    provider.answers = {WELL_KNOWN: (200, provider.document())}
    status, code = await outcome(house, query)
    assert status in (403, 422)
    assert code in ("login_failed", "login_denied", "invalid_request")
    assert "/token_endpoint" not in provider.asked
