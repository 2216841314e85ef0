"""Sessions on real weights: streamed as they are made, counted as the model's own server counts them."""

import json
import time
import urllib.request

import pytest

from tests.real_model import real_model
from tests.system.server import FREE, at_once

__all__ = ["real_model"]

PROFILE_PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def settings(real_model):
    return {"OPENAI_BASE_URL": real_model.base_url, "OPENAI_API_KEY": "none-needed"}


@pytest.fixture
def me(server):
    from tests.system.evil import archive, install

    caller = server.tenant(**FREE)
    project = '[project]\nname = "short"\nversion = "1.0.0"\n[tool.amplifier.collection]\nauthor = "x"\n'
    # A base model never stops by itself, and goes on for ever about tools: none are offered, and it says little.
    profile = (
        "---\nprofile:\n  name: p\n  description: says little\n  extends: foundation:base\n"
        "providers:\n  - module: provider-openai\n    config:\n      max_tokens: 24\n      temperature: 0\n"
        "exclude:\n  tools: all\n---\nContinue.\n"
    )
    install(caller, archive({"pyproject.toml": project, "profiles/p.md": profile}))
    return caller


def direct(real_model, messages) -> dict:
    """What the model server itself counts for the same messages."""
    body = {"model": real_model.name, "messages": messages, "max_tokens": 24, "temperature": 0}
    request = urllib.request.Request(
        real_model.base_url + "/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_conversation_with_true_counts(server, me, real_model):
    session = me.session("short:p")
    messages = [{"role": "system", "content": "Continue."}]
    prompt_tokens = completion_tokens = 0
    for prompt in (PROFILE_PROMPT, "And of Spain?"):
        messages.append({"role": "user", "content": prompt})
        truth = direct(real_model, messages)["usage"]
        events = me.asked(session, prompt)
        last = events[-1]
        assert last.name == "complete", last
        assert last.data["response"] == "".join(event.data["content"] for event in events if event.name == "token")
        assert last.data["usage"]["prompt_tokens"] == truth["prompt_tokens"]
        assert 0 < last.data["usage"]["completion_tokens"] <= 24
        prompt_tokens += last.data["usage"]["prompt_tokens"]
        completion_tokens += last.data["usage"]["completion_tokens"]
        messages.append({"role": "assistant", "content": last.data["response"]})
    totals = me.usage()["totals"]
    assert (totals["prompt_tokens"], totals["completion_tokens"], totals["turns"]) == (
        prompt_tokens,
        completion_tokens,
        2,
    )
    rows = me.usage("model")["usage"]
    assert [row["key"] for row in rows if row["total_tokens"]] == [real_model.name]


def test_it_is_streamed_as_it_is_made(server, me):
    session = me.session("short:p")
    with me.stream(session, PROFILE_PROMPT) as stream:
        arrived = [(time.monotonic(), event) for event in stream]
    tokens = [at for at, event in arrived if event.name == "token"]
    assert len(tokens) >= 5
    assert tokens[-1] - tokens[0] > 0.01, "not in one piece at the end"


def test_several_at_once_are_each_counted_to_their_own(server, me):
    sessions = [me.session("short:p") for _ in range(3)]
    answers = at_once([lambda one=one: me.ask(one, PROFILE_PROMPT) for one in sessions])
    rows = {row["key"]: row for row in me.usage("session")["usage"]}
    for session, answer in zip(sessions, answers, strict=True):
        assert rows[session]["total_tokens"] == answer["usage"]["total_tokens"] > 0
        assert rows[session]["turns"] == 1


def test_ready_says_that_models_are_configured(server):
    assert server.caller().get("/ready")["models"] == "configured"
