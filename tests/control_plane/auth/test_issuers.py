"""What an issuer is asked, when, and what becomes of its tokens while it does not answer."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from structlog.testing import capture_logs

from amplifier_api_server.control_plane.auth import issuers
from amplifier_api_server.tenants.errors import DomainError, Unauthenticated, Unavailable
from tests.control_plane.auth.conftest import House, believing
from tests.control_plane.auth.issuer import Issuer, published, rsa
from tests.tenants.embedded import embedded_in


async def test_a_hot_token_asks_nobody(house: House):
    token = house.token()
    await house.enter(token)
    asked, queries = len(house.issuer.asked), 0

    def counted(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal queries
        queries += statement.startswith("SELECT")

    event.listen(house.embedded.database._read_engine.sync_engine, "before_cursor_execute", counted)
    first = await house.enter(token)
    assert all([await house.enter(token) is first for _ in range(50)])
    assert (len(house.issuer.asked), queries) == (asked, 0)


async def test_keys_are_fetched_once_for_all_who_wait(house: House):
    house.issuer.may_answer.clear()
    waiting = [asyncio.create_task(house.enter(house.token(jti=str(n)))) for n in range(20)]
    while not house.issuer.asked:
        await asyncio.sleep(0)
    house.issuer.may_answer.set()
    await asyncio.gather(*waiting)
    assert house.issuer.asked == ["/.well-known/openid-configuration", "/jwks"]


async def test_a_new_key_is_good_as_soon_as_a_token_names_it(house: House):
    await house.enter(house.token())
    house.embedded.clock.advance(11)
    house.issuer.keys.append(published(rsa("two"), "k2"))
    assert (await house.enter(house.token(header={"kid": "k2"}, key=rsa("two")))).role == "developer"


@pytest.mark.parametrize("jump", [-3600, -2 * 86_400])
async def test_a_new_key_is_fetched_as_soon_when_the_machines_clock_went_back(house: House, jump: float):
    await house.enter(house.token())
    house.embedded.clock.jump(jump)
    house.embedded.clock.advance(11)
    house.issuer.keys.append(published(rsa("two"), "k2"))
    assert (await house.enter(house.token(header={"kid": "k2"}, key=rsa("two")))).role == "developer"


@pytest.mark.parametrize("jump", [-3600, -2 * 86_400])
async def test_a_withdrawn_key_is_noticed_as_soon_when_the_machines_clock_went_back(house: House, jump: float):
    """By `jwks_ttl`, and not an hour later."""
    token = house.token(exp=int(house.embedded.clock.now().timestamp()) + 7200)
    await house.enter(token)
    house.embedded.clock.jump(jump)
    house.issuer.keys[:] = [published(rsa("two"), "k2")]
    house.embedded.clock.advance(601)
    await house.enter(house.token(header={"kid": "k2"}, key=rsa("two")))
    with pytest.raises(Unauthenticated):
        await house.enter(token)


async def test_invented_kids_make_no_storm(house: House):
    await house.enter(house.token())
    house.embedded.clock.advance(11)
    house.issuer.asked.clear()
    for number in range(50):
        with pytest.raises(Unauthenticated):
            await house.enter(house.token(header={"kid": f"invented-{number}"}))
    assert house.issuer.asked == ["/.well-known/openid-configuration", "/jwks"]


async def test_a_withdrawn_key_is_good_no_more_however_hot_its_token_is(house: House):
    token = house.token(exp=int(house.embedded.clock.now().timestamp()) + 7200)
    await house.enter(token)
    house.issuer.keys = [published(rsa("two"), "k2")]
    house.embedded.clock.advance(601)
    await house.enter(token)  # believed while the news is fetched beside
    issuer_keys = house.embedded.authenticator._tokens._issuers[house.issuer.url]
    await asyncio.wait_for(issuer_keys._fetching.finished(), 60)
    with pytest.raises(Unauthenticated):
        await house.enter(token)


async def test_an_issuer_that_is_down_is_believed_for_a_while_and_not_longer(house: House):
    now = int(house.embedded.clock.now().timestamp())
    token = house.token(exp=now + 7 * 86400)
    await house.enter(token)
    house.issuer.is_down = True
    for hours in (1, 22):
        house.embedded.clock.advance(hours * 3600)
        await house.enter(token)
        assert (await house.enter(house.token(jti=str(hours)))).role == "developer"
        await house.embedded.authenticator._tokens._issuers[house.issuer.url]._fetching.finished()
    house.embedded.clock.advance(3600)
    for one in (token, house.token(jti="late")):
        with pytest.raises(Unavailable) as refused:
            await house.enter(one)
        assert refused.value.stable_code == "issuer_unavailable"
    house.issuer.is_down = False
    house.embedded.clock.advance(11)
    await house.enter(token)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/.well-known/openid-configuration", b"{"),
        ("/.well-known/openid-configuration", b"[]"),
        ("/jwks", b"{}"),
        ("/jwks", b'{"keys": []}'),
        ("/jwks", b'{"keys": {"a": 1}}'),
    ],
)
async def test_documents_that_are_wrong_are_not_keys(house: House, path: str, body: bytes):
    house.issuer.answers[path] = body
    with pytest.raises(Unavailable) as refused:
        await house.enter(house.token())
    assert refused.value.stable_code == "issuer_unavailable"
    house.issuer.answers.clear()
    house.embedded.clock.advance(11)
    await house.enter(house.token())


async def test_a_document_that_is_too_long_is_not_read_to_its_end(house: House):
    good = json.dumps({"keys": house.issuer.keys}).encode()
    house.issuer.answers["/jwks"] = good + b" " * (600 * 1024)
    with pytest.raises(Unavailable):
        await house.enter(house.token())
    house.issuer.answers["/jwks"] = good + b" " * (100 * 1024)
    house.embedded.clock.advance(11)
    await house.enter(house.token())


async def test_another_issuer_s_discovery_document_leads_to_no_keys(house: House):
    house.issuer.says_issuer = "https://other.example.com"
    with pytest.raises(Unavailable):
        await house.enter(house.token())
    assert "/jwks" not in house.issuer.asked


async def test_keys_are_not_fetched_from_where_a_discovery_document_should_not_lead(house: House):
    for url in (
        "http://169.254.169.254/keys",
        "http://keys.example.com/jwks",
        "file:///etc/passwd",
        "https://10.0.0.1/",
    ):
        document = {"issuer": house.issuer.url, "jwks_uri": url}
        house.issuer.answers["/.well-known/openid-configuration"] = json.dumps(document).encode()
        house.embedded.clock.advance(11)
        with capture_logs() as logged, pytest.raises(DomainError) as refused:
            await house.enter(house.token())
        assert refused.value.stable_code == "issuer_unavailable"
        [why] = [line["why"] for line in logged if line["event"] == "an issuer's keys can't be fetched"]
        assert "should be an https address" in why or "public" in why, why


async def test_an_issuer_that_does_not_answer_is_waited_for_no_longer_than_that(house: House, monkeypatch):
    monkeypatch.setattr(issuers, "_FETCH_SECONDS", 0.05)
    house.issuer.may_answer.clear()
    with pytest.raises(Unavailable):
        await house.enter(house.token())


async def test_where_the_keys_are_can_be_said(tmp_path: Path, issuer: Issuer):
    async with embedded_in(tmp_path, auth=believing(issuer, jwks_url=issuer.url + "/jwks")) as made:
        house = House(made, issuer, await made.tenant())
        await house.enter(house.token())
    assert issuer.asked == ["/jwks"]


async def test_a_kind_of_token_can_be_asked_for(tmp_path: Path, issuer: Issuer):
    async with embedded_in(tmp_path, auth=believing(issuer, token_types=["at+jwt"], leeway=timedelta(0))) as made:
        house = House(made, issuer, await made.tenant())
        await house.enter(house.token(header={"typ": "application/at+JWT"}))
        for kind in (None, "JWT"):
            with pytest.raises(Unauthenticated):
                await house.enter(house.token(header={"typ": kind}))
