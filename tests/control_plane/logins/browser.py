"""A person's browser, scripted: cookies, redirects, and the forms of the provider's pages."""

import re
from html import unescape
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2

HOME = "http://127.0.0.1:8000"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class Browser:
    """One profile of a browser. `home` is the server under test; everything else is asked over the network."""

    def __init__(self, asgi: Any = None, home: str = HOME, address: str = "192.0.2.7") -> None:
        self.home = home
        mounts = {home: httpx2.ASGITransport(app=asgi, client=(address, 50000))} if asgi is not None else {}
        self.client = httpx2.AsyncClient(
            mounts=mounts, trust_env=False, timeout=20, headers={"User-Agent": "Browser/1"}
        )

    async def get(self, path: str, **more: Any) -> httpx2.Response:
        return await self.client.get(urljoin(self.home, path), **more)

    async def post(self, path: str, **more: Any) -> httpx2.Response:
        """As a page of ours does: with its origin and its token."""
        headers = {"Origin": self.home, "Sec-Fetch-Site": "same-origin", **more.pop("headers", {})}
        if "X-CSRF-Token" not in headers and (await self.get("/auth/session")).status_code == 200:
            headers["X-CSRF-Token"] = (await self.session())["csrf_token"]
        return await self.client.post(urljoin(self.home, path), headers=headers, **more)

    async def session(self) -> dict[str, Any]:
        answer = await self.get("/auth/session")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def begin(self, path: str) -> str:
        """Where the provider is asked."""
        answer = await self.get(path)
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    async def until_callback(self, location: str, who: str = "ada", *, consents: bool = True) -> str:
        """Log in at the provider as `who`, and consent or not; the address that it sends us back to."""
        for _ in range(20):
            if urlsplit(location).path.startswith("/auth/callback/"):
                return location
            answer = await self.client.get(location)
            if answer.status_code in (302, 303):
                location = urljoin(location, answer.headers["location"])
                continue
            assert answer.status_code == 200, answer.text
            if not consents:
                location = urljoin(location, re.search(r'href="([^"]+/abort)"', answer.text)[1])
                continue
            action = unescape(re.search(r'<form[^>]* action="([^"]+)"', answer.text)[1])
            form = dict(re.findall(r'<input[^>]* name="([^"]+)"[^>]* value="([^"]*)"', answer.text))
            if 'name="login"' in answer.text:
                form |= {"login": who, "password": "x"}
            answer = await self.client.post(urljoin(location, action), data=form)
            location = urljoin(location, answer.headers["location"])
        raise AssertionError(f"no callback after 20 steps: {location}")

    async def log_in(self, who: str = "ada", method: str = "company", following: str = "") -> httpx2.Response:
        """All of it; our last answer."""
        self.client.cookies.delete("_session", None) if "_session" in self.client.cookies else None
        location = await self.begin(f"/auth/login/{method}{following}")
        return await self.get(await self.until_callback(location, who))

    def begun(self) -> list[tuple[str, str]]:
        """The cookies of the logins that were begun: their names and values."""
        return [(one.name, one.value) for one in self.client.cookies.jar if one.name.startswith("amplifier-login-")]

    def replace_begun(self, value: str) -> None:
        """Of the only one."""
        ((name, _),) = self.begun()
        self.client.cookies.delete(name)
        self.client.cookies.set(name, value, domain="127.0.0.1", path="/")

    async def close(self) -> None:
        await self.client.aclose()
