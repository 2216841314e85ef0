"""A session that was suspended, or whose runtime was killed, is the same session: what it said, keeps, wrote, was made of,
and whom it delegated to.
"""

import json
import os
import signal

import pytest

from tests.system.server import alive, eventually

EXPECTED_ERRORS = ("runtime_lost",)
_PROFILE = """---
bundle:
  name: mine
  description: A programmer of ours
includes:
  - bundle: foundation:coder
agents:
  helper:
    description: Helps
    instruction: You help with {what}.
---
You work on {what} alone.
"""


@pytest.fixture(scope="module")
def settings():
    return {"AMPLIFIER_SESSIONS__IDLE_TIMEOUT": "1500ms", "AMPLIFIER_SANDBOX__IDLE_TIMEOUT": "1s"}


def suspend(server, me, session):
    """By doing nothing, until its sandbox has ended too."""
    assert eventually(lambda: me.status(session) == "suspended")
    assert eventually(lambda: me.limit("sandboxes")["used"] == 0)


def kill(server, me, session):
    pid = server.runtime_of(session)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not alive([pid]))
    assert eventually(lambda: me.status(session) == "suspended"), (
        "a turn sent to a dead sandbox is lost, and said to be"
    )


@pytest.fixture(params=[suspend, kill], ids=lambda way: way.__name__)
def interrupt(request, server, me):
    return lambda session: request.param(server, me, session)


def write(me, what):
    answer = me.call("POST", "/v1/profiles", {"name": "mine", "content": _PROFILE.format(what=what)})
    assert answer.status == 201, answer.body
    return answer.json["version"]


def delegate(me, session, **given):
    answer = me.ask(session, "use delegate " + json.dumps(given))
    (call,) = answer["tool_calls"]
    assert call["status"] == "completed", call
    return call["output"]


def agents(me, session):
    """What its own configuration says of `helper`, as its model is told."""
    refused = me.tool(session, "delegate", agent="nobody", instruction="x")
    return str(refused)


def test_all_of_it_is_there_again(me, interrupt):
    write(me, "birds")
    session = me.session("mine", project="heron")
    me.ask(session, "remember the plover")
    me.tool(session, "bash", command="mkdir -p a && echo nest > a/eggs.txt")
    me.tool(session, "todo", action="create", todos=[{"content": "count the eggs", "status": "in_progress"}])
    child = delegate(me, session, agent="helper", instruction="remember the stilt")
    view, before = me.get(f"/v1/sessions/{session}"), me.messages(session)

    interrupt(session)

    assert "nest" in me.shell(session, "cat a/eggs.txt")
    assert "count the eggs" in str(me.tool(session, "todo", action="list"))
    again = delegate(me, session, session_id=child["session_id"], instruction="and now the wader")
    assert (again["session_id"], again["turn_count"], again["agent"]) == (child["session_id"], 2, "helper")
    assert me.messages(session)[: len(before)] == before
    now = me.get(f"/v1/sessions/{session}")
    assert {name: now[name] for name in ("profile", "model", "context", "created_at")} == {
        name: view[name] for name in ("profile", "model", "context", "created_at")
    }


def test_it_keeps_the_version_of_its_profile_that_it_was_made_of(me, interrupt):
    first = write(me, "birds")
    session = me.session("mine")
    me.ask(session, "begin")
    changed = _PROFILE.format(what="boats").replace("helper:", "sailor:")
    answer = me.call("POST", "/v1/profiles", {"name": "mine", "content": changed})
    assert answer.json["version"] != first

    interrupt(session)

    told = agents(me, session)
    assert "helper" in told
    assert "sailor" not in told
    assert "sailor" in agents(me, me.session("mine")), "a new session has the new one"


def test_it_goes_on_when_its_profile_is_gone(me, interrupt):
    write(me, "birds")
    session = me.session("mine")
    me.ask(session, "begin")
    assert me.call("DELETE", "/v1/profiles/mine").status == 204

    interrupt(session)

    assert delegate(me, session, agent="helper", instruction="go on")["status"] == "success"


def test_several_children_are_there_too(me, interrupt):
    session = me.session("foundation:coder")
    first = delegate(me, session, agent="self", instruction="one")
    second = delegate(me, session, agent="critic", instruction="two", context_depth="none")

    interrupt(session)

    for child in (first, second):
        again = delegate(me, session, session_id=child["session_id"], instruction="three")
        assert again["turn_count"] == 2


def test_a_child_knows_after_it_what_it_was_told_before(me, interrupt):
    """The demo counts what it is sent: one that had lost its transcript would be sent as much as a new one."""
    words = "x " * 3000
    session = me.session("foundation:coder")
    child = delegate(me, session, agent="explorer", instruction=words, context_depth="none")
    interrupt(session)
    resumed = spent(me, session, session_id=child["session_id"], instruction="short")
    fresh = spent(me, session, agent="explorer", instruction="short", context_depth="none")
    assert resumed > fresh + 2000


def spent(me, session, **given):
    """Prompt tokens of a turn that delegates."""
    return me.ask(session, "use delegate " + json.dumps(given))["usage"]["prompt_tokens"]
