"""A real agent in a real sandbox asks a person: its tool waits, and the answer by another connection decides."""

import json

import pytest

from tests.system.server import at_once, eventually

PROFILE = """---
bundle:
  name: asking
  version: 1.0.0
includes:
  - bundle: foundation:coder
hooks:
  - module: hooks-approval
    config:
      tools: {{bash: {{require_approval: true}}}}
      approval_timeout: {seconds}
---
You ask before you run anything.
"""


@pytest.fixture(scope="module")
def settings():
    return {"AMPLIFIER_SESSIONS__IDLE_TIMEOUT": "1s"}


@pytest.fixture
def session(me):
    return asking(me)


def asking(me, seconds=60):
    content = PROFILE.format(seconds=seconds)
    answer = me.call("POST", "/v1/profiles", {"name": "asking", "content": content})
    assert answer.status in (200, 201), answer.body
    return me.session("asking")


def run(command, tool="bash"):
    return f"use {tool} {json.dumps({'command': command})}"


def begin(me, session, prompt):
    answer = me.call("POST", f"/v1/sessions/{session}/execute", {"prompt": prompt, "background": True})
    assert answer.status == 202, answer.body
    return answer.headers["location"]


def requested(me, where):
    """The approval that waits."""
    found = eventually(lambda: me.get(f"{where}/approvals")["approvals"])
    assert found, me.get(where)
    return found[0]


def answered(me, where, **answer):
    path = f"{where}/approvals/{requested(me, where)['approval_id']}"
    return me.call("POST", path, answer)


def ended(me, where):
    return eventually(lambda: (view := me.get(where))["status"] not in ("running", "waiting_for_approval") and view)


def events(me, where):
    with me.open("GET", f"{where}/events") as stream:
        return stream.rest()


def shown(told, name="approval"):
    return [one.data for one in told if one.name == name]


def test_an_answer_by_rest_lets_a_tool_run_while_another_client_reads_the_stream(me, session):
    with me.stream(session, run("touch done.txt; echo it is done")) as stream:
        asked = next(one for one in stream if one.name == "approval")
        where = f"/v1/sessions/{session}/executions/{asked.request_id}"
        assert (asked.data["status"], asked.data["tool"]) == ("requested", "bash")
        assert "touch done.txt" in asked.data["prompt"]
        listed = requested(me, where)
        assert listed["approval_id"] == asked.data["approval_id"]
        answer = me.call("POST", f"{where}/approvals/{listed['approval_id']}", {"choice": "Allow once"})
        assert (answer.status, answer.json["approved"]) == (200, True)
        told = [asked, *stream.rest()]
    assert [one["status"] for one in shown(told)] == ["requested", "answered"]
    (tool,) = [one for one in shown(told, "tool_call") if one["status"] == "completed"]
    assert "it is done" in json.dumps(tool["output"])
    assert [one.id for one in events(me, where)][-len(told) :] == [one.id for one in told]
    assert me.get(f"{where}/approvals") == {"approvals": []}


def test_a_denial_makes_the_tool_fail_visibly_and_nothing_ran(me, session):
    where = begin(me, session, run("touch never.txt"))
    assert answered(me, where, approved=False).json["choice"] == "Deny"
    view = ended(me, where)
    assert (view["status"], [one["status"] for one in view["tool_calls"]]) == ("completed", ["failed"])
    assert "denied" in view["tool_calls"][0]["error"]
    assert "denied" in view["response"], "the demo model says what the tool answered"
    files = me.ask(session, 'use glob {"pattern": "*"}')
    assert "never.txt" not in json.dumps(files["tool_calls"])


def test_of_answers_at_once_one_wins(me, session):
    where = begin(me, session, run("touch once.txt"))
    path = f"{where}/approvals/{requested(me, where)['approval_id']}"
    answers = at_once([lambda yes=yes: me.call("POST", path, {"approved": yes}) for yes in (True, False) * 4])
    won = [one for one in answers if one.status == 200]
    assert len(won) == 1
    assert {one.code for one in answers if one.status != 200} == {"approval_closed"}
    view = ended(me, where)
    granted = won[0].json["approved"]
    assert [one["status"] for one in view["tool_calls"]] == ["completed" if granted else "failed"]
    assert shown(events(me, where))[-1]["approved"] is granted


def test_what_nobody_answers_is_denied(me):
    session = asking(me, seconds=0.3)
    where = begin(me, session, run("touch never.txt"))
    view = ended(me, where)
    assert [one["status"] for one in view["tool_calls"]] == ["failed"]
    assert [one["status"] for one in shown(events(me, where))] == ["requested", "timed_out"]
    closed = shown(events(me, where))[0]["approval_id"]
    assert me.call("POST", f"{where}/approvals/{closed}", {"approved": True}).code == "approval_closed"


def test_a_cancelled_execution_waits_no_more(me, session):
    where = begin(me, session, run("touch never.txt"))
    asked = requested(me, where)
    assert me.call("POST", f"{where}/cancel").json["status"] == "cancelled"
    assert [one["status"] for one in shown(events(me, where))] == ["requested", "cancelled"]
    answer = me.call("POST", f"{where}/approvals/{asked['approval_id']}", {"approved": True})
    assert answer.code == "approval_closed"


def test_a_session_that_waits_is_not_idle_and_what_was_allowed_for_good_outlives_a_suspension(me, session):
    command = run("touch always.txt; echo yes")
    where = begin(me, session, command)
    asked = requested(me, where)
    started = me.get(where)["started_at"]
    assert not eventually(lambda: me.status(session) != "active", 2.5), "its idle time-out is one second"
    assert me.get(where)["started_at"] == started
    path = f"{where}/approvals/{asked['approval_id']}"
    assert me.call("POST", path, {"choice": "Allow always"}).status == 200
    assert ended(me, where)["tool_calls"][0]["status"] == "completed"
    assert eventually(lambda: me.status(session) == "suspended")
    told = me.asked(session, command)
    assert shown(told) == []
    assert shown(told, "tool_call")[-1]["status"] == "completed"


def test_a_delegated_agents_approval_is_its_parents_to_answer(me, session):
    instruction = run("touch helped.txt")
    prompt = f"use delegate {json.dumps({'agent': 'critic', 'instruction': instruction})}"
    where = begin(me, session, prompt)
    asked = requested(me, where)
    assert (asked["agent"], asked["tool"]) == ("critic", "bash")
    assert answered(me, where, approved=True).status == 200
    view = ended(me, where)
    assert view["status"] == "completed"
    child = [one for one in shown(events(me, where), "tool_call") if one.get("agent") == "critic"]
    assert [one["status"] for one in child] == ["started", "completed"]


def test_it_is_in_the_audit_log_and_among_the_tenants_events(me, session):
    with me.open("GET", "/v1/events") as stream:
        where = begin(me, session, run("touch x"))
        approval_id = answered(me, where, approved=True).json["approval_id"]
        ended(me, where)
        told = []
        while len(told) < 2:
            event = next(stream)
            if event.name.startswith("approval."):
                told.append((event.name, event.data["data"]["approval_id"]))
    assert told == [("approval.requested", approval_id), ("approval.answered", approval_id)]
    entries = me.get("/v1/audit?limit=50")["audit_entries"]
    assert [one["target"] for one in entries if one["action"] == "answerApproval"] == [approval_id]


def test_nothing_but_a_boolean_is_a_consent(me, session):
    where = begin(me, session, run("touch done.txt"))
    for approved in ("yes", "true", "on", "t", 1, 1.0, 0, "no", [True], {"approved": True}):
        answer = answered(me, where, approved=approved)
        assert (answer.status, answer.json["code"]) == (422, "invalid_request"), approved
    assert requested(me, where)["status"] == "requested"
    assert answered(me, where, approved=False).status == 200
    assert ended(me, where)["status"] == "completed"
