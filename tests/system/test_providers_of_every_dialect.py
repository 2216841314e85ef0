"""Sessions with each provider, from the caller through sandbox and gateway to a model server and back."""

import pytest

_PROFILE = """---
bundle:
  name: {name}
  description: d
session:
  orchestrator: {{module: loop-basic}}
  context: {{module: context-simple, config: {{max_tokens: 2000}}}}
providers:
  - module: {module}
    config: {config}
tools:
  - module: tool-todo
  - module: tool-bash
---
You are brief.
"""
PROVIDERS = {
    "chat": ("provider-openai", "{}"),
    "responses": ("provider-openai", "{api: responses, reasoning_effort: low}"),
    "messages": ("provider-anthropic", "{extended_thinking: true}"),
    "vllm": ("provider-vllm", "{}"),
}
TURNS = 40


@pytest.fixture(params=list(PROVIDERS))
def profile(request, me):
    module, config = PROVIDERS[request.param]
    content = _PROFILE.format(name=request.param, module=module, config=config)
    answer = me.call("POST", "/v1/profiles", {"name": request.param, "content": content})
    assert answer.status == 201, answer.body
    return request.param


def test_a_session_speaks_calls_tools_and_is_counted(me, profile):
    session = me.session(profile)
    events = me.asked(session, 'use bash {"command": "echo $((6*7))"}\nuse todo {"action": "list"}')
    assert [one.name for one in events if one.name == "tool_call"] == ["tool_call"] * 4
    assert {one.data["status"] for one in events if one.name == "tool_call"} == {"started", "completed"}
    assert events[-1].name == "complete"
    assert "42" in events[-1].data["response"]
    assert events[-1].data["usage"]["total_tokens"] > 0
    assert "does not think" not in "".join(one.data["content"] for one in events if one.name == "token")
    assert me.ask(session, "and now?")["response"]


def test_a_conversation_longer_than_the_window_goes_on_and_its_record_stays_whole(me, profile):
    session = me.session(profile)
    for number in range(TURNS):
        assert me.ask(session, f"{number}: " + "words " * 60)["response"]
    events = me.asked(session, "stream 5")
    assert events[-1].name == "complete"
    said = me.texts(session)
    assert all(f"{number}: words" in said for number in range(TURNS))
    assert "older part of a conversation" not in said
