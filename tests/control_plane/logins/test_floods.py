"""Strangers who have us ask login providers: as often as they like, from as many addresses, while a provider stalls or is down.

What they may take is a share: of each provider's places, of failed logins a minute, and one use of what they began.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from amplifier_api_server.control_plane.egress.client import Patience
from amplifier_api_server.control_plane.logins import begun as begun_logins
from amplifier_api_server.control_plane.logins import exchanges
from amplifier_api_server.control_plane.logins.provider_places import (
    KEPT_FOR_NEWCOMERS,
    OF_A_NETWORK,
    OF_A_PROVIDER,
    ProviderPlaces,
)
from amplifier_api_server.control_plane.logins.throttle import Throttle
from amplifier_api_server.control_plane.logins.used_states import UsedStates
from amplifier_api_server.tenants.errors import Refused, Unavailable
from tests.control_plane.logins.browser import Browser
from tests.control_plane.logins.conftest import House, company, house_in
from tests.tenants.embedded import TestClock

WELL_KNOWN = "/.well-known/openid-configuration"
TOKEN = "/token"


@dataclass
class Stalling:
    """A provider that answers each path when it is let; `asked` says which were."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    stalls: set[str] = field(default_factory=set)
    goes_on: threading.Event = field(default_factory=threading.Event)
    is_down: bool = False

    def document(self) -> dict[str, Any]:
        names = {"authorization_endpoint": "/authorize", "token_endpoint": TOKEN, "jwks_uri": "/jwks"}
        return {"issuer": self.url, **{name: self.url + path for name, path in names.items()}}

    async def until_asked(self, path: str, times: int) -> None:
        async with asyncio.timeout(60):
            while self.asked.count(path) < times:
                await asyncio.sleep(0.01)


@contextmanager
def stalling() -> Iterator[Stalling]:
    made = Stalling()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            made.asked.append(path)
            if path in made.stalls:
                made.goes_on.wait(60)
            status = 503 if made.is_down else 200 if path == WELL_KNOWN else 400
            body = json.dumps(made.document() if path == WELL_KNOWN else {"error": "invalid_grant"}).encode()
            with suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield made
    finally:
        made.goes_on.set()
        server.shutdown()
        server.server_close()
        thread.join(60)


@pytest.fixture
def provider() -> Iterator[Stalling]:
    with stalling() as made:
        yield made


@pytest.fixture
async def house(tmp_path: Path, provider: Stalling, issuer: str, monkeypatch: pytest.MonkeyPatch):
    # A provider stalls for as long as a test wants, however slow the machine is.
    monkeypatch.setattr(exchanges, "_SECONDS", 60.0)
    monkeypatch.setattr(exchanges, "_PATIENCE", Patience(idle_seconds=60.0))
    method = {"type": "oauth2", "provider": "oidc", "name": "slow", "issuer": provider.url, "client_id": "us"}
    async with house_in(tmp_path, {**method, "token_auth": "none"}, company(issuer), issuer=issuer) as made:
        yield made


async def begun(house: House, address: str = "192.0.2.7") -> tuple[Browser, str]:
    """A browser that began a login, and the address that the provider would send it back to."""
    browser = house.browser(address=address)
    location = await browser.begin("/auth/login/slow")
    state = parse_qs(urlsplit(location).query)["state"][0]
    return browser, f"/auth/callback/slow?code=x&state={state}"


async def code_of(browser: Browser, path: str) -> str:
    return (await browser.get(path)).json()["code"]


async def test_a_network_has_a_share_of_a_providers_places_and_a_stalled_one_holds_up_no_other(house, provider):
    await house.member("ada")
    provider.stalls.add(TOKEN)
    attackers = [await begun(house, f"2001:db8:0:1::{number:x}") for number in range(30)]
    waiting = [asyncio.create_task(code_of(*one)) for one in attackers]
    await provider.until_asked(TOKEN, OF_A_NETWORK)
    async with asyncio.timeout(60):
        while sum(one.done() for one in waiting) < 30 - OF_A_NETWORK:
            await asyncio.sleep(0.01)
    assert [one.result() for one in waiting if one.done()] == ["busy"] * (30 - OF_A_NETWORK)
    victim = asyncio.create_task(code_of(*await begun(house, "2001:db8:0:2::1")))
    await provider.until_asked(TOKEN, OF_A_NETWORK + 1)
    same_network = house.browser(address="2001:db8:0:1::ffff")
    assert (await same_network.log_in("ada")).status_code == 303, "by another provider"
    provider.goes_on.set()
    assert {await victim, *await asyncio.gather(*waiting)} == {"login_failed", "busy"}


async def test_what_was_refused_before_the_provider_was_asked_may_be_sent_again(house, provider):
    provider.stalls.add(TOKEN)
    held = [asyncio.create_task(code_of(*await begun(house))) for _ in range(OF_A_NETWORK)]
    await provider.until_asked(TOKEN, OF_A_NETWORK)
    browser, path = await begun(house)
    assert await code_of(browser, path) == "busy"
    provider.goes_on.set()
    await asyncio.gather(*held)
    assert await code_of(browser, path) == "login_failed"
    assert provider.asked.count(TOKEN) == OF_A_NETWORK + 1


async def test_what_was_begun_is_taken_to_the_provider_once(house, provider):
    browser, path = await begun(house)
    ((name, cookie),) = browser.begun()
    told = []
    for number in range(20):
        again = house.browser(address=f"203.0.113.{number}")
        again.client.cookies.set(name, cookie, domain="127.0.0.1", path="/")
        told.append((await again.get(path)).json())
    assert {one["code"] for one in told} == {"login_failed"}
    assert all("used already" in one["detail"] for one in told[1:])
    assert provider.asked.count(TOKEN) == 1


async def test_of_logins_that_fail_a_network_has_sixty_a_minute(house, provider):
    told = [await code_of(*await begun(house, f"2001:db8:0:1::{number:x}")) for number in range(70)]
    assert told == ["login_failed"] * 60 + ["too_many_attempts"] * 10
    assert provider.asked.count(TOKEN) == 60
    assert await code_of(*await begun(house, "2001:db8:0:2::1")) == "login_failed"
    house.embedded.clock.jump(-3600)
    house.embedded.clock.advance(60)
    assert await code_of(*await begun(house, "2001:db8:0:1::1")) == "login_failed"


async def test_logins_that_succeed_are_not_counted(house):
    for number in range(3):
        browser = house.browser()
        await house.member(f"person-{number}")
        await browser.log_in(f"person-{number}")
    throttle = house.desk.throttles.callbacks
    assert [one.tries for one in throttle._tries.values()] == [0]


async def test_a_provider_is_asked_for_its_document_once_by_all_who_wait(house, provider):
    provider.stalls.add(WELL_KNOWN)
    waiting = [asyncio.create_task(house.browser().get("/auth/login/slow")) for _ in range(50)]
    await provider.until_asked(WELL_KNOWN, 1)
    provider.goes_on.set()
    assert {one.status_code for one in await asyncio.gather(*waiting)} == {303}
    assert provider.asked == [WELL_KNOWN]


@pytest.mark.parametrize("jump", [0, -3600, 3600])
async def test_a_provider_that_is_down_is_asked_again_after_ten_seconds_and_not_before(house, provider, jump):
    provider.is_down = True
    for _ in range(2):
        answers = await asyncio.gather(*(house.browser().get("/auth/login/slow") for _ in range(50)))
        assert {(one.status_code, one.json()["code"]) for one in answers} == {(503, "login_provider_unavailable")}
    assert provider.asked == [WELL_KNOWN]
    house.embedded.clock.jump(jump)
    house.embedded.clock.advance(10)
    provider.is_down = False
    assert (await house.browser().get("/auth/login/slow")).status_code == 303
    assert provider.asked == [WELL_KNOWN] * 2


async def test_a_document_that_is_old_is_renewed_beside_the_logins(house, provider):
    await begun(house)
    provider.stalls.add(WELL_KNOWN)
    house.embedded.clock.advance(3601)
    answers = [await house.browser().get("/auth/login/slow") for _ in range(5)]
    assert {one.status_code for one in answers} == {303}
    await provider.until_asked(WELL_KNOWN, 2)


def test_the_last_places_of_a_provider_are_for_networks_that_have_none():
    places = ProviderPlaces()
    held = []

    def take(network: str, provider: str = "p") -> bool:
        place = places.taken(provider, network)
        try:
            place.__enter__()
        except Unavailable:
            return False
        held.append(place)
        return True

    taken = [sum(take(f"attacker {number}") for _ in range(20)) for number in range(6)]
    assert taken == [OF_A_NETWORK] * 6
    assert len(held) == OF_A_PROVIDER - KEPT_FOR_NEWCOMERS
    assert [take(f"victim {number}") for number in range(KEPT_FOR_NEWCOMERS + 1)] == [True] * KEPT_FOR_NEWCOMERS + [
        False
    ]
    assert take("attacker 0", "another")
    for place in held:
        place.__exit__(None, None, None)
    assert all(not one for one in places._held.values())


def test_used_states_are_bounded_and_nobody_pushes_out_anothers():
    clock = TestClock()
    used = UsedStates(clock, most=10)
    assert used.use("mine", "me")
    assert all(used.use(f"flood {number}", "them") for number in range(1000))
    assert not used.use("mine", "me")
    assert not used.use("mine", "them")
    assert not used.use("flood 999", "them")
    assert len(used._used) == 10
    clock.advance(begun_logins.LIFETIME.total_seconds())
    assert used.use("mine", "me")
    assert len(used._used) == 1
    assert used._of_network.total() == 1


def test_a_throttle_is_bounded_and_counts_before_the_work(monkeypatch):
    monkeypatch.setattr("amplifier_api_server.control_plane.logins.throttle._MAX_KNOWN", 100)
    clock = TestClock()
    throttle = Throttle(clock, most=3, seconds=60.0, what="tries")
    for _ in range(3):
        throttle.take("a")
    with pytest.raises(Refused):
        throttle.take("a")
    throttle.give_back("a")
    throttle.take("a")
    for jump in (-3600, 86_400):
        clock.jump(jump)
        with pytest.raises(Refused) as refused:
            throttle.take("a")
        assert refused.value.retry_after_seconds == 60
    clock.advance(60)
    throttle.take("a")
    for number in range(1000):
        throttle.take(f"network {number}")
    throttle.give_back("nobody")
    assert len(throttle._tries) == 100
