"""Which fields of a request reach a provider: an allow list, so that none chooses another model, address or account."""

from __future__ import annotations

import pytest
from anthropic.types import message_create_params as messages_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as responses_params

from amplifier_api_server.control_plane.model_gateway.dialects import fields
from amplifier_api_server.control_plane.model_names import may_ask

from .conftest import told
from .spoken import Chat

FORBIDDEN = [
    *(
        "models",
        "fallbacks",
        "provider",
        "route",
        "transforms",
        "preset",
        "api_base",
        "api_key",
        "base_url",
        "api_version",
    ),
    *(
        "extra_headers",
        "extra_body",
        "headers",
        "best_of",
        "custom_llm_provider",
        "deployment_id",
        "fallback_credit_token",
    ),
    *(
        "use_beam_search",
        "guided_json",
        "chat_template",
        "chat_template_kwargs",
        "Models",
        " models",
        "",
        "timeout",
        "tags",
    ),
]


async def sent_of(build_house, upstream, spoken, asked, **provider):
    """What the provider gets of a request."""

    async def script(peer):
        await peer.whole(200, spoken.whole("x"))

    upstream.script = script
    house = await build_house(provider=provider)
    client = await house.runtime()
    await house.turn()
    assert (await told(client, spoken.path, asked)).status == 200
    return upstream.asked[0].json


async def test_a_field_that_is_not_the_dialects_does_not_pass(spoken_house, upstream, spoken):
    asked = spoken.ask(temperature=0.5, **{name: ["dear/model"] for name in FORBIDDEN})
    sent = await sent_of(spoken_house, upstream, spoken, asked)
    assert set(sent) - {"store"} == set(spoken.ask(temperature=0.5))
    assert sent["temperature"] == 0.5


async def test_an_operator_has_more_passed_to_a_provider(spoken_house, upstream, spoken):
    asked = spoken.ask(guided_json={"a": 1}, best_of=2, models=["x"], user="me", metadata={})
    sent = await sent_of(spoken_house, upstream, spoken, asked, extra_fields=("guided_*", "best_of", "user"))
    assert (sent["guided_json"], sent["best_of"]) == ({"a": 1}, 2)
    assert "models" not in sent
    assert "metadata" not in sent
    assert "user" not in sent or spoken.name == "messages"


async def test_the_best_of_several_answers_costs_all_of_them(build, upstream):
    async def script(peer):
        await peer.whole(200, Chat().whole("x"))

    upstream.script = script
    house = await build(provider={"extra_fields": ("best_of",)})
    client = await house.runtime()
    await house.turn(limit=10_000)
    await told(client, Chat.path, Chat().ask(best_of=10, max_tokens=9000))
    assert upstream.asked[0].json["max_tokens"] < 1000


@pytest.mark.parametrize(
    ("published", "passing", "dropped"),
    [
        (chat_params.CompletionCreateParamsBase, fields.CHAT, fields.CHAT_DROPPED),
        (responses_params.ResponseCreateParamsBase, fields.RESPONSES, fields.RESPONSES_DROPPED),
        (messages_params.MessageCreateParamsBase, fields.MESSAGES, fields.MESSAGES_DROPPED),
    ],
)
def test_what_the_vendors_clients_send_is_known(published, passing, dropped):
    assert set(published.__annotations__) - passing - dropped == set()
    assert passing & dropped == set()


@pytest.mark.parametrize(
    ("pattern", "name", "may"),
    [
        ("mini*", "mini-2024", True),
        ("mini*", "mini:online", False),
        ("mini*", "mini,dear", False),
        ("mini*", "mini@eu", False),
        ("mini*", "mini dear", False),
        ("mini*", "mini\tdear", False),
        ("mini*", "Mini", False),
        ("mini", "mini ", False),
        ("llama3:*", "llama3:8b", True),
        ("mini:free", "mini:online", False),
        ("*", "ft:mini:org", True),
        ("up/*", "ft:mini:org", True),
    ],
)
def test_a_tiers_pattern_is_not_passed_by_what_is_put_behind_a_name(pattern, name, may):
    assert may_ask((pattern,), name, "up", name, ()) is may


async def test_a_model_that_is_no_name_is_refused(spoken_house, upstream, spoken):
    house = await spoken_house()
    client = await house.runtime()
    await house.turn()
    for name in (["m"], {"a": 1}, 5, True, "", "x" * 201):
        assert (await told(client, spoken.path, spoken.ask() | {"model": name})).status == 400
    assert upstream.asked == []


async def test_a_dearer_model_that_has_answered_is_charged_as_such(build, upstream):
    served = "m"

    async def script(peer):
        await peer.whole(200, Chat().whole("x", 1000, 1000)[:-1] + f', "model": "{served}"}}'.encode())

    upstream.script = script
    costs = []
    for name in ("gpt-5", "gpt-5-mini"):
        house = await build(provider={"models": ("gpt-5-mini",)})
        client = await house.runtime()
        await house.turn()
        served = name
        await told(client, Chat.path, Chat().ask())
        [usage] = await house.turns.finish("req_1", abort=False)
        costs.append(usage.cost_microdollars)
    assert costs[0] > costs[1] > 0
