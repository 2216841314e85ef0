"""Which provider serves which model's name."""

from __future__ import annotations

import json
import re

import pytest
from pydantic import SecretStr

from amplifier_api_server.control_plane.model_gateway.answers import Refusal
from amplifier_api_server.control_plane.model_gateway.providers import (
    Providers,
    headers_for,
    target_of,
    url_for,
)
from amplifier_api_server.control_plane.model_gateway.upstream import Timeouts, Upstream
from amplifier_api_server.control_plane.settings import ModelProvider, Models, SettingsError, load

from .conftest import CHAT, KEY, ask, naming
from .scripted_upstream import whole_answer


def provider(name: str, *models: str, **more) -> ModelProvider:
    return ModelProvider(name=name, base_url="http://127.0.0.1:9/v1/", models=models, **more)


def providers(*given: ModelProvider, keys=None, **more) -> Providers:
    settings = Models(providers=given, **more)
    return Providers(settings, Upstream(), Timeouts(1, 1), keys=keys)


async def targets(known: Providers, name: str, dialect="chat", tier: str = "default", tenant_id: str = "ten_1"):
    """As "provider/model", in order."""
    route = await known.route(tenant_id=tenant_id, tier=tier, model=name, dialect=dialect)
    return [f"{one.provider.name}/{one.model}" for one in route.targets]


async def refusal(known: Providers, name: str, dialect="chat", tier: str = "default", tenant_id: str = "ten_1"):
    """Status and code."""
    with pytest.raises(Refusal) as refused:
        await targets(known, name, dialect, tier, tenant_id)
    return refused.value.status, refused.value.code


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("default", "a/x"),
        ("x", "a/x"),
        ("y", "b/y"),
        ("b/x", "b/x"),
        ("a/x", "a/x"),
        ("org/z", "b/org/z"),
        ("b/org/z", "b/org/z"),
        ("a/y", None),
        ("nothing", None),
        ("a/", None),
    ],
)
async def test_names(name, expected):
    known = providers(provider("a", "x"), provider("b", "x", "y", "org/z"))
    if expected is None:
        assert await refusal(known, name) == (404, "model_not_found")
    else:
        assert await targets(known, name) == [expected]


async def test_a_provider_without_a_list_takes_what_no_list_has():
    known = providers(provider("open"), provider("listed", "x"))
    assert await targets(known, "x") == ["listed/x"]
    assert await targets(known, "anything/at-all") == ["open/anything/at-all"]
    assert await targets(known, "open/x") == ["open/x"]


async def test_the_configured_default_is_served():
    known = providers(provider("a", "x"), provider("b", "y"), default="b/y")
    assert await targets(known, "default") == ["b/y"]


ANTHROPIC = {"dialect": "anthropic"}


async def test_a_call_goes_only_where_its_dialect_is_spoken():
    known = providers(provider("o", "x"), provider("old", "y", responses=False), provider("c", "z", **ANTHROPIC))
    assert await targets(known, "x", "responses") == ["o/x"]
    assert await targets(known, "z", "messages") == ["c/z"]
    for name, dialect in (("z", "chat"), ("x", "messages"), ("y", "responses"), ("c/z", "responses")):
        assert await refusal(known, name, dialect) == (404, "model_not_found"), (name, dialect)
    with pytest.raises(Refusal, match=r"only in: messages"):
        await targets(known, "z", "chat")


@pytest.mark.parametrize("default", [None, "o/x"])
async def test_each_dialect_has_a_default(default):
    known = providers(provider("o", "x"), provider("c", "z", **ANTHROPIC), default=default)
    assert await targets(known, "default") == ["o/x"]
    assert await targets(known, "default", "messages") == ["c/z"]


async def test_an_alias_is_its_models_in_order_in_the_dialect_of_the_call():
    known = providers(
        provider("o", "x", "y"),
        provider("c", "z", **ANTHROPIC),
        aliases={"smart": ("x", "c/z", "more"), "more": ("o/y", "o/x")},
        default="smart",
    )
    assert await targets(known, "smart") == ["o/x", "o/y"]
    assert await targets(known, "smart", "messages") == ["c/z"]
    assert await targets(known, "default", "messages") == ["c/z"]


async def test_a_provider_without_a_list_does_not_take_what_is_another_dialects():
    known = providers(provider("open"), provider("c", "z", **ANTHROPIC), aliases={"smart": ("x", "z", "c/z")})
    assert await targets(known, "smart") == ["open/x"]
    assert await targets(known, "smart", "messages") == ["c/z"]
    assert await refusal(known, "c/z") == (404, "model_not_found")
    assert await refusal(known, "z") == (404, "model_not_found")
    assert await targets(known, "open/z") == ["open/z"]


async def test_a_tier_may_ask_for_what_its_patterns_name():
    known = providers(
        provider("o", "mini-1", "big"),
        aliases={"smart": ("big", "mini-1"), "cheap": ("big",)},
        tiers={"free": ("o/mini*", "cheap")},
        default="smart",
    )
    assert await targets(known, "big", tier="pro") == ["o/big"]
    assert await targets(known, "mini-1", tier="free") == ["o/mini-1"]
    assert await refusal(known, "big", tier="free") == (403, "model_not_allowed")
    assert await refusal(known, "o/big", tier="free") == (403, "model_not_allowed")
    assert await targets(known, "smart", tier="free") == ["o/mini-1"]  # what is left of it
    assert await targets(known, "default", tier="free") == ["o/mini-1"]
    assert await targets(known, "cheap", tier="free") == ["o/big"]  # the alias is named


async def test_a_tier_without_a_configured_default_gets_the_first_model_that_it_may_ask_for():
    known = providers(provider("a", "big"), provider("b", "huge", "small"), tiers={"free": ("small",)})
    assert await targets(known, "default", tier="free") == ["b/small"]
    assert await targets(known, "default") == ["a/big"]


async def test_a_pattern_for_one_provider_says_nothing_of_another_that_serves_the_name():
    known = providers(provider("openai", "x"), provider("proxy"), tiers={"free": ("openai/*",)})
    assert await targets(known, "openai/y", tier="pro") == ["proxy/openai/y"]
    assert await refusal(known, "openai/y", tier="free") == (403, "model_not_allowed")
    assert await targets(known, "x", tier="free") == ["openai/x"]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"aliases": {"a": ["b"], "b": ["c"], "c": ["a"]}}, "a -> b -> c -> a"),
        ({"aliases": {"a": ["a"]}}, "a -> a"),
        ({"aliases": {"a": ["nobody-has-it"]}}, "nobody-has-it"),
        ({"aliases": {"a": []}}, "at least one"),
        ({"aliases": {"default": ["x"]}}, "models.default"),
        ({"aliases": {"a": ["default"]}}, "name the model"),
        ({"default": "nobody-has-it"}, "nobody-has-it"),
        ({"tiers": {"fre": ["*"]}}, "no such tier"),
    ],
)
def test_a_name_that_stands_for_nothing_stops_the_start(given, what):
    listed = {"name": "a", "base_url": "http://x/v1", "models": ["x"]}
    with pytest.raises(SettingsError, match=re.escape(what)):
        load(None, {}, models={"providers": [listed], **given})


@pytest.mark.parametrize(
    "address", [None, "https://api.anthropic.com", "https://api.anthropic.com/", "https://api.anthropic.com/v1"]
)
async def test_the_vendors_variables_make_their_providers(address):
    environ = {"OPENAI_API_KEY": "sk-o", "ANTHROPIC_API_KEY": "sk-a"} | (
        {"ANTHROPIC_BASE_URL": address} if address else {}
    )
    known = Providers(load(None, environ).models, Upstream(), Timeouts(1, 1))
    assert await targets(known, "gpt-5", "responses") == ["openai/gpt-5"]
    assert await targets(known, "claude-opus-5", "messages") == ["anthropic/claude-opus-5"]
    route = await known.route(tenant_id="ten_1", tier="pro", model="claude-opus-5", dialect="messages")
    assert url_for(route.targets[0], "/messages") == "https://api.anthropic.com/v1/messages"
    assert headers_for(route.targets[0], "messages")["x-api-key"] == "sk-a"
    assert route.targets[0].price is not None


def test_two_providers_of_one_name_stop_the_start():
    listed = {"name": "a", "base_url": "http://x/v1"}
    with pytest.raises(SettingsError, match="needs its own"):
        load(None, {}, models={"providers": [listed, listed]})


class OwnKeys:
    """Tenants' own keys, as (tenant, provider) -> key."""

    def __init__(self, **keys: str) -> None:
        self.keys = keys

    async def key_of(self, tenant_id, provider):
        key = self.keys.get(f"{tenant_id}_{provider}")
        return SecretStr(key) if key else None


async def test_a_tenants_own_key_goes_out_for_that_tenant_alone():
    known = providers(
        provider("o", "x", api_key="the-operators", tenant_keys="allowed"),
        provider("mine", "y", api_key="the-operators", tenant_keys="required"),
        provider("theirs", "z", api_key="the-operators"),
        keys=OwnKeys(a_o="key-of-a-for-o", a_mine="key-of-a-for-mine", a_theirs="never-sent"),
    )

    async def sent(tenant_id: str, name: str):
        route = await known.route(tenant_id=tenant_id, tier="pro", model=name, dialect="chat")
        target = route.targets[0]
        assert "key-of" not in repr(route)
        return headers_for(target, "chat")["Authorization"].removeprefix("Bearer "), target.is_own_key

    assert await sent("a", "x") == ("key-of-a-for-o", True)
    assert await sent("b", "x") == ("the-operators", False)
    assert await sent("a", "y") == ("key-of-a-for-mine", True)
    assert await sent("a", "z") == ("the-operators", False)
    assert await refusal(known, "y", tenant_id="b") == (403, "provider_key_required")


async def test_a_fallback_that_needs_a_key_which_is_not_there_is_left_out():
    known = providers(
        provider("mine", "y", tenant_keys="required"),
        provider("o", "x"),
        aliases={"smart": ("mine/y", "o/x")},
        keys=OwnKeys(a_mine="key-of-a-for-mine"),
    )
    assert await targets(known, "smart", tenant_id="a") == ["mine/y", "o/x"]
    assert await targets(known, "smart", tenant_id="b") == ["o/x"]
    assert await targets(known, "default", tenant_id="b") == ["o/x"]


@pytest.mark.parametrize(
    ("given", "dialect", "name", "value"),
    [
        ({}, "chat", "Authorization", f"Bearer {KEY}"),
        ({"key_header": "api-key"}, "responses", "api-key", KEY),
        (ANTHROPIC, "messages", "x-api-key", KEY),
        (ANTHROPIC | {"key_header": "authorization"}, "messages", "Authorization", f"Bearer {KEY}"),
    ],
)
def test_a_key_goes_out_in_the_one_header_that_its_provider_wants(given, dialect, name, value):
    headers = headers_for(target_of(provider("a", api_key=KEY, **given)), dialect)
    assert headers[name] == value
    assert [one for one in headers.values() if KEY in one] == [value]
    assert ("anthropic-version" in headers) is (dialect == "messages")


def test_an_address_has_one_slash_and_the_query_that_the_provider_wants():
    assert url_for(target_of(provider("a")), "/messages") == "http://127.0.0.1:9/v1/messages"
    azure = provider("a", query={"api-version": "2026 01&x"})
    assert url_for(target_of(azure), "/responses") == "http://127.0.0.1:9/v1/responses?api-version=2026+01%26x"


async def test_what_is_listed_is_what_can_be_asked_for():
    known = providers(
        provider("o", "gpt-5", "x"),
        provider("second", "gpt-5", tenant_keys="required"),
        provider("c", "claude-sonnet-4-5", **ANTHROPIC),
        aliases={"smart": ("gpt-5", "claude-sonnet-4-5", "x")},
        tiers={"free": ("o/x",)},
    )
    listed = {one.name: one for one in await known.models(tenant_id="ten_1", tier="pro")}
    assert list(listed) == ["default", "smart", "gpt-5", "x", "second/gpt-5", "claude-sonnet-4-5"]
    for name, one in listed.items():
        for dialect in ("chat", "responses", "messages"):
            if dialect in one.dialects and not one.needs_own_key:
                await targets(known, name, dialect)
            else:
                await refusal(known, name, dialect)
    assert [name for name, one in listed.items() if one.needs_own_key] == ["second/gpt-5"]
    assert [name for name, one in listed.items() if one.is_alias] == ["default", "smart"]
    assert listed["smart"].targets == ("o/gpt-5", "o/x")
    assert listed["smart"].dialects == ("chat", "responses", "messages")
    assert listed["gpt-5"].known.context_window == 400_000
    assert listed["x"].known.context_window is None
    assert [one.name for one in await known.models(tenant_id="ten_1", tier="free")] == ["default", "smart", "x"]


async def test_an_alias_is_as_large_as_the_least_of_its_targets():
    known = providers(provider("o", "gpt-5", "gpt-4o"), aliases={"smart": ("gpt-5", "gpt-4o")})
    listed = {one.name: one.known for one in await known.models(tenant_id="ten_1", tier="pro")}
    assert (listed["smart"].context_window, listed["smart"].max_output_tokens) == (128_000, 16_384)


async def test_an_unlisted_default_is_what_the_provider_lists_first(build, upstream):
    house = await build(provider={"models": ()})

    async def script(peer):
        if peer.asked.path == "/v1/models":
            await peer.whole(200, json.dumps({"data": [{"id": "first"}, {"id": "second"}, 7]}).encode())
        else:
            await peer.whole(200, whole_answer("x", 1, 1))

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


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (None, "provider_unavailable", "the model provider up can't be reached"),
        (503, "provider_unavailable", "the model provider up answered 503"),
        (401, "provider_auth", "the model provider up does not accept the operator's account"),
    ],
)
async def test_a_provider_that_can_not_list_its_models_says_what_is_wrong_with_it(build, upstream, status, code, words):
    down = {} if status else {"base_url": "http://127.0.0.1:9/v1"}
    house = await build(provider={"models": ()} | down)

    async def script(peer):
        await peer.whole(status, b"{}")

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    for _ in range(2):  # the second is told what is remembered
        got = await client.post(CHAT, json=ask(), headers=naming())
        assert (got.status_code, got.json()["code"], got.json()["detail"]) == (502, code, words)


@pytest.mark.parametrize("answer", [(200, b"[]"), (200, b"<html>"), (200, b'{"data": []}')])
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
