"""Tools that run at the provider: refused in every dialect unless the operator allows them by name, and told clearly."""

from __future__ import annotations

import json

import pytest

from amplifier_api_server.control_plane.model_gateway.dialects import CHAT, MESSAGES, RESPONSES

from .conftest import told
from .spoken import Chat, Messages, Responses

FUNCTION = {"type": "function", "name": "f", "parameters": {}}
CUSTOM = {"name": "f", "input_schema": {"type": "object"}}
SERVER = [
    (Chat(), {"web_search_options": {}}, "web_search_options"),
    (Chat(), {"tools": [{"type": "web_search"}]}, "web_search"),
    (Chat(), {"tools": [{"google_search": {}}]}, "google_search"),
    (Chat(), {"plugins": [{"id": "web"}]}, "plugins"),
    (Chat(), {"data_sources": [{"type": "azure_search"}]}, "data_sources"),
    (Responses(), {"tools": [FUNCTION, {"type": "web_search"}]}, "web_search"),
    (Responses(), {"tools": [{"type": "mcp", "server_url": "https://exfil.example"}]}, "mcp"),
    (Responses(), {"tools": [{"type": "Web_Search"}]}, "Web_Search"),
    (Responses(), {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}, "shell"),
    (Responses(), {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]}, "mcp"),
    (Responses(), {"input": [{"type": "tool_search_output", "tools": [{"type": "mcp"}]}]}, "mcp"),
    (Responses(), {"prompt": {"id": "pmpt_1"}}, "prompt"),
    (Messages(), {"tools": [CUSTOM, {"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
    (Messages(), {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}, "web_fetch_20250910"),
    (Messages(), {"tools": [{"type": "code_execution_20250825", "name": "x"}]}, "code_execution_20250825"),
    (Messages(), {"mcp_servers": [{"type": "url", "url": "https://exfil.example"}]}, "mcp_servers"),
]
OWN = [
    (Chat(), {"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {"name": "c"}}]}),
    (
        Responses(),
        {
            "tools": [
                FUNCTION,
                *({"type": kind} for kind in ("custom", "local_shell", "apply_patch", "computer_use_preview")),
                {"type": "shell", "environment": {"type": "local"}},
                {"type": "namespace", "name": "n", "tools": [FUNCTION]},
            ]
        },
    ),
    (
        Messages(),
        {
            "mcp_servers": [],
            "tools": [
                CUSTOM,
                {"type": "custom", **CUSTOM},
                {"type": "bash_20250124", "name": "bash"},
                {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
                {"type": "memory_20250818", "name": "memory"},
            ],
        },
    ),
]


def answering_whole(spoken):
    async def script(peer) -> None:
        await peer.whole(200, spoken.whole("yes"))

    return script


async def begun(build, spoken, **models):
    house = await build(provider={"dialect": spoken.dialect}, **models)
    await house.turn()
    return await house.runtime()


@pytest.mark.parametrize(("spoken", "more", "name"), SERVER, ids=[f"{one.name}-{name}" for one, _, name in SERVER])
async def test_what_would_run_at_the_provider_is_refused_before_it_is_asked(build, upstream, spoken, more, name):
    client = await begun(build, spoken)
    answer = await told(client, spoken.path, spoken.ask() | more)
    assert answer.status == 403
    assert (answer.json["code"], answer.json["error"]["code"]) == ("server_tool_not_allowed",) * 2
    assert repr(name) in answer.json["detail"]
    assert answer.headers["x-should-retry"] == "false"
    assert upstream.asked == []


@pytest.mark.parametrize(("spoken", "more", "name"), SERVER, ids=[f"{one.name}-{name}" for one, _, name in SERVER])
async def test_what_the_operator_allows_by_its_name_passes_as_it_came(build, upstream, spoken, more, name):
    client = await begun(build, spoken, server_tools=("nothing", name[:-1] + "?"))
    upstream.script = answering_whole(spoken)
    answer = await told(client, spoken.path, spoken.ask() | more)
    assert answer.status == 200, answer.body
    sent = upstream.asked[0].json
    assert {field: sent[field] for field in more} == more


@pytest.mark.parametrize(("spoken", "more"), OWN, ids=[one.name for one, _ in OWN])
async def test_what_the_sandbox_runs_itself_passes(build, upstream, spoken, more):
    client = await begun(build, spoken)
    upstream.script = answering_whole(spoken)
    answer = await told(client, spoken.path, spoken.ask() | more)
    assert answer.status == 200, answer.body
    assert upstream.asked[0].json["tools"] == more["tools"]


async def test_a_count_of_tokens_connects_to_no_server_either(build, upstream):
    client = await begun(build, Messages())
    body = Messages().ask() | {"mcp_servers": [{"type": "url", "url": "https://exfil.example"}]}
    answer = await told(client, "/v1/messages/count_tokens", body)
    assert (answer.status, answer.json["code"]) == (403, "server_tool_not_allowed")
    assert upstream.asked == []


@pytest.mark.parametrize("tools", [None, "x", {}, [None], [[]], [{}], [{"type": 7}], [{"type": None}], [{"type": {}}]])
def test_whatever_tools_are_they_are_read(tools):
    for dialect, body in ((CHAT, Chat().ask()), (RESPONSES, Responses().ask()), (MESSAGES, Messages().ask())):
        dialect.parse(json.dumps(body | {"tools": tools}).encode(), ())
