"""A stand-in for GitHub, which can't run here: what docs.github.com says of OAuth apps ("Authorizing OAuth apps": authorize, access
token, its errors with status 200, PKCE) and of the REST API ("Get the authenticated user", "List email addresses"). Whoever comes
to its authorize page is logged in already and has consented.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT_ID, CLIENT_SECRET = "Iv1.0123456789abcdef", "a secret that GitHub made"


@dataclass
class FakeGitHub:
    """Who is logged in there, and what was asked of it."""

    url: str = ""
    user: dict[str, Any] = field(default_factory=lambda: {"id": 583231, "login": "octocat", "name": "The Octocat"})
    emails: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"email": "old@example.com", "primary": False, "verified": True},
            {"email": "octocat@example.com", "primary": True, "verified": True},
        ]
    )
    scopes: str = ""
    agents: set[str] = field(default_factory=set)
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def method(self, **more: Any) -> dict[str, Any]:
        given = {"type": "oauth2", "provider": "github", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
        urls = {
            "authorize_url": f"{self.url}/login/oauth/authorize",
            "token_url": f"{self.url}/login/oauth/access_token",
            "api_url": f"{self.url}/api",
        }
        return {**given, **urls, **more}

    def authorize(self, query: dict[str, str]) -> str:
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        code = f"code{len(self._codes)}"
        self._codes[code] = query
        self.scopes = query["scope"]
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def exchange(self, form: dict[str, str]) -> dict[str, str]:
        if (form.get("client_id"), form.get("client_secret")) != (CLIENT_ID, CLIENT_SECRET):
            return {"error": "incorrect_client_credentials", "error_description": "..."}
        asked = self._codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form.get("redirect_uri"):
            return {"error": "bad_verification_code", "error_description": "The code passed is incorrect or expired."}
        return {
            "access_token": "gho_16C7e42F292c6912E7710c838347Ae178B4a",
            "token_type": "bearer",
            "scope": self.scopes,
        }


@contextlib.contextmanager
def running() -> Iterator[FakeGitHub]:
    fake = FakeGitHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path.startswith("/api/"):
                fake.agents.add(self.headers.get("User-Agent", ""))
            if parts.path == "/login/oauth/authorize":
                self.send_response(302)
                self.send_header("Location", fake.authorize({k: v[0] for k, v in parse_qs(parts.query).items()}))
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif self.headers.get("Authorization") != "Bearer gho_16C7e42F292c6912E7710c838347Ae178B4a":
                self._json(401, {"message": "Bad credentials"})
            elif parts.path == "/api/user":
                self._json(200, fake.user)
            elif parts.path == "/api/user/emails" and "user:email" in fake.scopes:
                self._json(200, fake.emails)
            else:
                self._json(404, {"message": "Not Found"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            assert self.headers["Accept"] == "application/json", "otherwise GitHub answers with a form"
            self._json(200, fake.exchange({k: v[0] for k, v in parse_qs(body).items()}))

        def _json(self, status: int, found: Any) -> None:
            raw = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)
