"""GET /v1/models: what a tenant may ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from amplifier_api_server.control_plane.model_gateway.providers import Providers
from amplifier_api_server.control_plane.model_gateway.upstream import Timeouts, Upstream
from amplifier_api_server.control_plane.settings import Models
from tests.control_plane.accounts.doors import Doors, opened
from tests.tenants.embedded import Embedded, embedded

__all__ = ["embedded"]

MODELS = Models.model_validate(
    {
        "providers": [
            {
                "name": "o",
                "base_url": "http://127.0.0.1:9/v1",
                "models": ["gpt-6-luna", "unheard-of"],
                "api_key": "sk-o",
            },
            {"name": "c", "dialect": "anthropic", "base_url": "http://127.0.0.1:9/v1", "models": ["claude-opus-5"]},
            {"name": "down", "base_url": "http://127.0.0.1:9/v1"},
        ],
        "aliases": {"smart": ["gpt-6-luna", "claude-opus-5"]},
        "tiers": {"free": ["o/*"]},
        "default": "smart",
    }
)


@pytest.fixture
async def doors(embedded: Embedded) -> AsyncIterator[Doors]:
    upstream = Upstream()
    embedded.gateway = SimpleNamespace(providers=Providers(MODELS, upstream, Timeouts(1, 1)))  # type: ignore[attr-defined]
    async with opened(embedded) as found:
        yield found
    await upstream.close()


async def test_names_dialects_capabilities_and_prices_are_told_and_no_key(doors: Doors):
    answer = await doors.admin.get("/v1/models")
    assert answer.status_code == 200
    assert "sk-o" not in answer.text
    found = {one["name"]: one for one in answer.json()["models"]}
    assert list(found) == ["claude-opus-5", "default", "gpt-6-luna", "smart", "unheard-of"]
    assert found["default"]["dialects"] == ["chat", "responses", "messages"]
    assert found["smart"]["targets"] == ["o/gpt-6-luna"]
    luna = found["gpt-6-luna"]
    assert (luna["provider"], luna["context_window"], luna["images"]) == ("o", 1_050_000, True)
    assert luna["price"]["input"] == 0.1
    assert luna["price"]["above"] == {
        "prompt_tokens": 272_000,
        "input": 0.2,
        "output": 0.75,
        "cached_input": 0.02,
        "cache_write": 0.25,
        "cache_write_long": None,
    }
    assert luna["price"]["source"].startswith("https://")
    assert found["unheard-of"]["price"] is None
    assert found["unheard-of"]["context_window"] is None
    assert found["claude-opus-5"]["dialects"] == ["messages"]


async def test_every_role_may_read_it_but_the_operator(doors: Doors):
    for role in ("developer", "readonly"):
        made = await doors.admin.post("/v1/keys", json={"name": role, "role": role})
        assert (await doors.caller(made.json()["key"]).get("/v1/models")).status_code == 200
    assert (await doors.operator.get("/v1/models")).status_code == 403


async def test_a_tier_sees_what_it_may_ask_for(doors: Doors):
    made = await doors.operator.post("/v1/tenants", json={"name": "small", "tier": "free"})
    found = (await doors.caller(made.json()["admin_key"]).get("/v1/models")).json()["models"]
    assert [one["name"] for one in found] == ["default", "gpt-6-luna", "smart", "unheard-of"]
    assert found[0]["dialects"] == ["chat", "responses"]
