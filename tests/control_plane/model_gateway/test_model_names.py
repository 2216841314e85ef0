"""Which provider serves which model's name."""

from __future__ import annotations

import json

import pytest
from pydantic import SecretStr

from amplifier_api_server.control_plane.model_gateway.answers import Refusal
from amplifier_api_server.control_plane.model_gateway.providers import Providers
from amplifier_api_server.control_plane.model_gateway.upstream import Timeouts, Upstream
from amplifier_api_server.control_plane.settings import ModelProvider

from .conftest import CHAT, KEY, ask, naming


def provider(name: str, *models: str) -> ModelProvider:
    return ModelProvider(name=name, base_url="http://127.0.0.1:9/v1/", models=models)


def providers(*given: ModelProvider, default: str | None = None) -> Providers:
    return Providers(given, Upstream(), Timeouts(1, 1), default=default)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("default", ("a", "x")),
        ("x", ("a", "x")),
        ("y", ("b", "y")),
        ("b/x", ("b", "x")),
        ("a/x", ("a", "x")),
        ("org/z", ("b", "org/z")),
        ("b/org/z", ("b", "org/z")),
        ("a/y", None),
        ("nothing", None),
        ("a/", None),
    ],
)
async def test_names(name, expected):
    known = providers(provider("a", "x"), provider("b", "x", "y", "org/z"))
    if expected is None:
        with pytest.raises(Refusal) as refused:
            await known.resolve(name)
        assert (refused.value.status, refused.value.code) == (404, "model_not_found")
    else:
        target = await known.resolve(name)
        assert (target.provider.name, target.model) == expected


async def test_a_provider_without_a_list_takes_what_no_list_has():
    known = providers(provider("open"), provider("listed", "x"))
    assert (await known.resolve("x")).provider.name == "listed"
    assert (await known.resolve("anything/at-all")).model == "anything/at-all"
    assert (await known.resolve("open/x")).provider.name == "open"


async def test_the_configured_default_is_served():
    known = providers(provider("a", "x"), provider("b", "y"), default="b/y")
    assert (await known.resolve("default")).model == "y"


async def test_the_address_has_one_slash():
    target = await providers(provider("a", "x")).resolve("x")
    assert target.chat_url == "http://127.0.0.1:9/v1/chat/completions"


async def test_an_unlisted_default_is_what_the_provider_lists_first(build, upstream):
    house = await build(provider={"models": ()})

    async def script(peer):
        if peer.asked.path == "/v1/models":
            await peer.whole(200, json.dumps({"data": [{"id": "first"}, {"id": "second"}, 7]}).encode())
        else:
            await peer.whole(200, b'{"choices": []}')

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    for _ in range(2):
        assert (await client.post(CHAT, json=ask(), headers=naming())).status_code == 200
    assert [asked.path for asked in upstream.asked] == ["/v1/models", *["/v1/chat/completions"] * 2]
    assert upstream.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert upstream.asked[1].json["model"] == "first"
    listed = (await client.get("/v1/models")).json()["data"]
    assert [one["id"] for one in listed] == ["default", "first", "second"]


@pytest.mark.parametrize("answer", [(500, b"{}"), (200, b"[]"), (200, b"<html>"), (200, b'{"data": []}')])
async def test_a_provider_that_lists_nothing_is_named(build, upstream, answer):
    house = await build(provider={"models": ()})

    async def script(peer):
        await peer.whole(*answer)

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, json=ask(), headers=naming())
    assert got.status_code in {404, 502}
    assert "models.default" in got.json()["detail"]
    assert (await client.get("/v1/models")).status_code == 200


async def test_a_model_nobody_serves_is_404(house):
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, json=ask() | {"model": "gpt-9"}, headers=naming())
    assert (got.status_code, got.json()["error"]["code"]) == (404, "model_not_found")


def test_no_key_is_in_what_a_target_shows():
    shown = repr(ModelProvider(name="a", base_url="http://x/v1", api_key=SecretStr(KEY)))
    assert KEY not in shown
