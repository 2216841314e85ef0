"""Forks, exports and imports, over runtimes that say what a test scripts."""

import asyncio
import json

import pytest

from amplifier_api_server.control_plane.sessions.transcripts import checked
from tests.hostile_runtime import attacked


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


@pytest.fixture
async def me(plane):
    async with plane.client() as client:
        yield client


@pytest.fixture
async def other(plane):
    """Another tenant's caller."""
    async with plane.client(plane.operator_key) as operator:
        made = await operator.post("/v1/tenants", json={"name": "other", "tier": "enterprise"})
    async with plane.client(made.json()["admin_key"]) as client:
        yield client


def said(number, **more):
    return [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": f"answer {number}"} | more,
    ]


def answering(plane):
    """Turn n adds `said(n)` and leaves the state {"turn": n}."""
    counts: dict[str, int] = {}

    async def answer(request):
        number = counts[request.session_id] = counts.get(request.session_id, 0) + 1
        told = await request.runtime.hand_over(
            request,
            base=2 * (number - 1),
            messages=said(number),
            state={"turn": number},
            response=f"answer {number}",
        )
        await request.reply(200, told.json()["result"])

    plane.fleet.answers["POST", "turn"] = answer


def opened(plane):
    """What every session is opened with from now on."""
    bodies = []

    async def note(request):
        bodies.append(request.body)
        await request.reply(200, {"plan": {"a": 1}, "model": "m"})

    plane.fleet.answers["PUT", "session"] = note
    return bodies


async def with_turns(plane, me, count):
    answering(plane)
    session = await plane.session()
    ids = []
    for _ in range(count):
        answer = await me.post(f"/v1/sessions/{session}/execute", json={"prompt": "x"})
        assert answer.status_code == 200, answer.text
        ids.append(answer.json()["request_id"])
    return session, ids


async def contents(me, session):
    answer = await me.get(f"/v1/sessions/{session}/messages", params={"limit": 200})
    return [one["content"] for one in answer.json()["messages"]]


async def test_a_fork_goes_on_from_the_execution_that_was_named_with_its_state(plane, me):
    session, ids = await with_turns(plane, me, 3)
    made = await me.post(f"/v1/sessions/{session}/fork", json={"request_id": ids[1], "title": "another way"})
    assert made.status_code == 201, made.text
    fork = made.json()
    assert (fork["status"], fork["title"], fork["message_count"], fork["turn_count"]) == (
        "suspended",
        "another way",
        4,
        2,
    )
    assert fork["forked_from"] == {"session_id": session, "request_id": ids[1]}
    assert await contents(me, fork["session_id"]) == ["question 1", "answer 1", "question 2", "answer 2"]
    bodies = opened(plane)
    await me.post(f"/v1/sessions/{fork['session_id']}/execute", json={"prompt": "x"})
    (body,) = bodies
    assert (body["plan"], body["state"], body["turn_number"]) == ({"a": 1}, {"turn": 2}, 2)
    assert [one["content"] for one in body["transcript"]] == ["question 1", "answer 1", "question 2", "answer 2"]
    assert len(await contents(me, session)) == 6, "the source is as it was"


async def test_a_fork_without_an_execution_takes_everything(plane, me):
    session, _ = await with_turns(plane, me, 2)
    fork = (await me.post(f"/v1/sessions/{session}/fork")).json()
    assert (fork["message_count"], fork["turn_count"]) == (4, 2)
    assert fork["forked_from"] == {"session_id": session, "request_id": None}


async def test_a_closed_session_can_be_forked(plane, me):
    session, _ = await with_turns(plane, me, 1)
    await me.delete(f"/v1/sessions/{session}")
    made = await me.post(f"/v1/sessions/{session}/fork", json={})
    assert made.status_code == 201, made.text
    assert await contents(me, made.json()["session_id"]) == ["question 1", "answer 1"]


async def test_files_are_not_copied_while_an_execution_runs_and_the_rest_is(plane, me):
    session, _ = await with_turns(plane, me, 1)
    go = asyncio.Event()

    async def wait(request):
        await go.wait()
        told = await request.runtime.hand_over(request, base=2, messages=said(2))
        await request.reply(200, told.json()["result"])

    plane.fleet.answers["POST", "turn"] = wait
    running = asyncio.create_task(plane.execute(session))
    while not plane.app.services.turns.live.all():
        await asyncio.sleep(0.01)
    (turn,) = plane.app.services.turns.live.all()
    refused = await me.post(f"/v1/sessions/{session}/fork", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "turn_running")
    unended = await me.post(f"/v1/sessions/{session}/fork", json={"request_id": turn.id, "files": False})
    assert (unended.status_code, unended.json()["code"]) == (409, "execution_not_ended")
    made = await me.post(f"/v1/sessions/{session}/fork", json={"files": False})
    assert made.status_code == 201, made.text
    go.set()
    assert (await running).status_code == 200


async def test_a_fork_that_failed_holds_no_place(plane, me, monkeypatch):
    session, _ = await with_turns(plane, me, 1)

    async def copy(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(plane.app.services.fleet.launcher, "copy", copy)
    before = (await me.get("/v1/limits")).json()["limits"]
    assert (await me.post(f"/v1/sessions/{session}/fork", json={})).status_code == 500
    after = (await me.get("/v1/limits")).json()["limits"]
    held = {one["name"]: one["used"] for one in before} | {}
    assert {one["name"]: one["used"] for one in after}["sessions_per_user"] == held["sessions_per_user"]
    assert len((await me.get("/v1/sessions")).json()["sessions"]) == 1


async def test_another_tenants_session_can_be_neither_forked_nor_exported_nor_renamed(plane, me, other):
    session, ids = await with_turns(plane, me, 1)
    for answer in (
        await other.post(f"/v1/sessions/{session}/fork", json={}),
        await other.post(f"/v1/sessions/{session}/fork", json={"request_id": ids[0]}),
        await other.get(f"/v1/sessions/{session}/export"),
        await other.get(f"/v1/sessions/{session}/executions"),
        await other.patch(f"/v1/sessions/{session}", json={"title": "mine"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")


async def test_an_export_can_be_imported_again(plane, me, other):
    session, ids = await with_turns(plane, me, 2)
    await me.patch(f"/v1/sessions/{session}", json={"title": "Birds"})
    exported = await me.get(f"/v1/sessions/{session}/export")
    assert exported.status_code == 200, exported.text
    document = exported.json()
    assert [one["request_id"] for one in document["messages"]] == [ids[0], ids[0], ids[1], ids[1]]
    compiling(plane)
    made = await other.post("/v1/sessions/import", json=document)
    assert made.status_code == 201, made.text
    assert (made.json()["title"], made.json()["status"]) == ("Birds", "suspended")
    there = made.json()["session_id"]
    assert await contents(other, there) == ["question 1", "answer 1", "question 2", "answer 2"]
    again = (await other.get(f"/v1/sessions/{there}/export")).json()
    strip = [{k: v for k, v in one.items() if k != "created_at"} for one in again["messages"]]
    assert strip == [{k: v for k, v in one.items() if k != "created_at"} for one in document["messages"]]


def compiling(plane):
    async def compile_(request):
        spec = {"name": request.body["profile"]}
        await request.reply(200, {"spec": spec, "plan": {"compiled": True}, "model": "m", "warnings": []})

    plane.fleet.answers["POST", "compile"] = compile_


CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "tool": "bash", "arguments": {}}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "ok"}
USER, DONE = {"role": "user", "content": "x"}, {"role": "assistant", "content": "done"}


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([USER], "messages"),
        ([{"role": "system", "content": "obey"}, DONE], "messages.0.role"),
        ([USER, CALL, DONE], "messages.2"),
        ([USER, CALL], "messages"),
        ([USER, RESULT, DONE], "messages.1.tool_call_id"),
        ([USER, CALL, RESULT, RESULT, DONE], "messages.3.tool_call_id"),
        ([USER | {"tool_calls": CALL["tool_calls"]}, RESULT, DONE], "messages.0.tool_calls"),
        ([CALL | {"tool_calls": [{"id": 1}]}, DONE], "messages.0.tool_calls"),
        ([CALL | {"tool_calls": [{"id": ["1"]}]}, DONE], "messages.0.tool_calls"),
        ([CALL | {"tool_calls": "1"}, DONE], "messages.0.tool_calls"),
        ([USER, CALL, RESULT | {"tool_call_id": ["1"]}, DONE], "messages.2.tool_call_id"),
        ([USER, CALL, RESULT | {"tool_call_id": {"a": 1}}, DONE], "messages.2.tool_call_id"),
        ([USER | {"role": ["user"]}, DONE], "messages.0.role"),
        ([USER | {"content": 5}, DONE], "messages.0.content"),
        ([USER | {"content": None}, DONE], "messages.0.content"),
        ([USER | {"content": {}}, DONE], "messages.0.content"),
        ([{"role": "user"}, DONE], "messages.0.content"),
        ([USER, DONE | {"content": ["done"]}], "messages.1.content.0"),
        ([USER, DONE | {"content": [{"text": "x"}]}], "messages.1.content.0.type"),
        ([USER, DONE | {"content": [{"type": "video"}]}], "messages.1.content.0.type"),
        ([USER, DONE | {"content": [{"type": ["text"]}]}], "messages.1.content.0.type"),
        ([USER, DONE | {"content": [{"type": "text", "text": 5}]}], "messages.1.content.0.text"),
        ([USER, DONE | {"content": [{"type": "tool_call", "id": "1", "name": "x"}]}], "messages.1.content.0.input"),
        ([USER | {"name": 5}, DONE], "messages.0.name"),
        ([USER | {"tool_call_id": 5}, DONE], "messages.0.tool_call_id"),
        ([USER | {"metadata": []}, DONE], "messages.0.metadata"),
        ([CALL | {"tool_calls": [{"id": "1"}, {"id": "1"}]}, RESULT, DONE], "messages.0.tool_calls"),
        ([USER, CALL | {"tool_calls": [{"id": "1", "arguments": {}}]}, RESULT, DONE], "messages.1.tool_calls"),
        ([USER, CALL | {"tool_calls": [{"id": "1", "tool": 5}]}, RESULT, DONE], "messages.1.tool_calls"),
        (
            [USER, CALL | {"tool_calls": [{"id": "1", "tool": "x", "arguments": 5}]}, RESULT, DONE],
            "messages.1.tool_calls",
        ),
        ([USER | {"request_id": 5}, DONE], "messages.0.request_id"),
        ([USER | {"request_id": "../x"}, DONE], "messages.0.request_id"),
        ([USER | {"seq": "0"}, DONE], "messages.0.seq"),
        ([USER | {"seq": -1}, DONE], "messages.0.seq"),
        ([USER | {"seq": True}, DONE], "messages.0.seq"),
        ([USER | {"seq": 7}, DONE | {"seq": 7}], "messages.1.seq"),
        ([USER | {"created_at": "yesterday"}, DONE], "messages.0.created_at"),
        ([USER | {"created_at": 1764500000}, DONE], "messages.0.created_at"),
        ([USER | {"created_at": "2026-02-30T00:00:00Z"}, DONE], "messages.0.created_at"),
        ([USER | {"created_at": "2026-01-01T00:00:00"}, DONE], "messages.0.created_at"),
    ],
)
async def test_a_transcript_that_no_session_could_go_on_from_is_refused(plane, me, messages, field):
    document = {"format": "amplifier-session/1", "session": {"profile": "foundation:base"}, "messages": messages}
    answer = await me.post("/v1/sessions/import", json=document)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_transcript"), answer.text
    assert answer.json()["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"fromat": "x"}, "fromat"),
        ({"session": {"profile": "foundation:base", "titel": "x"}}, "session.titel"),
        ({"session": {"profile": "foundation:base", "created_at": "yesterday"}}, "session.created_at"),
        ({"session": {"profile": "foundation:base", "created_at": 5}}, "session.created_at"),
        ({"session": {"profile": 5}}, "session.profile"),
        ({"session": []}, "session"),
        ({"messages": {}}, "messages"),
        ({"messages": ["x"]}, "messages.0"),
        ({"format": "amplifier-session/2"}, "format"),
    ],
)
async def test_a_document_that_was_edited_wrongly_is_refused_with_its_place(plane, me, document, field):
    whole = {"format": "amplifier-session/1", "session": {"profile": "foundation:base"}, "messages": [USER, DONE]}
    answer = await me.post("/v1/sessions/import", json=whole | document)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    assert answer.json()["errors"][0]["field"] == field


def test_calls_in_every_form_of_the_ecosystem_are_taken():
    calls = [
        {"id": "1", "tool": "bash", "arguments": {}},
        {"id": "2", "name": "bash", "arguments": "{}"},
        {"id": "3", "type": "function", "function": {"name": "bash", "arguments": "{}"}},
    ]
    messages = [USER, CALL | {"tool_calls": calls}, *(RESULT | {"tool_call_id": one["id"]} for one in calls), DONE]
    assert [body for _, body in checked(messages, 10_000)] == messages


async def test_of_what_is_wrong_with_a_transcript_a_few_things_are_told(plane, me):
    document = {"format": "amplifier-session/1", "session": {"profile": "foundation:base"}}
    messages = [USER, *({"role": n, "content": [[]] * 50, "metadata": 1, "tool_calls": 1} for n in range(50)), DONE]
    answer = await me.post("/v1/sessions/import", json=document | {"messages": messages})
    assert answer.status_code == 422
    errors = answer.json()["errors"]
    assert (len(errors), errors[0]["field"], errors[1]["field"]) == (10, "messages.1.role", "messages.1.content.0")
    named = [USER, DONE | {"content": [{"type": "text", "text": "x", "visibility": "x" * 10_000}]}]
    answer = await me.post("/v1/sessions/import", json=document | {"messages": named})
    assert (answer.status_code, len(answer.text) < 2_000) == (422, True)


def _deep(levels):
    found = inner = {}
    for _ in range(levels):
        inner["a"] = inner = {}
    return found


@pytest.mark.parametrize("strange", [_deep(120), _deep(252), {"lone": "\\ud800"}])
async def test_a_message_that_no_sandbox_could_read_is_refused(plane, me, strange):
    document = {"format": "amplifier-session/1", "session": {"profile": "foundation:base"}}
    text = json.dumps(document | {"messages": [USER, DONE | {"x": strange}]}).replace("\\\\ud800", "\\ud800")
    answer = await me.post("/v1/sessions/import", content=text, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) in ((422, "invalid_transcript"), (400, "invalid_json")), (
        answer.text
    )


async def test_a_transcript_of_a_million_empty_lists_is_refused_before_it_is_made_of_objects(plane, me):
    lists = "[" + "[]," * 1_000_001 + "[]]"
    document = {"format": "amplifier-session/1", "session": {"profile": "foundation:base"}, "messages": [USER, DONE]}
    text = json.dumps(document).replace('"done"', f'"done", "x": {lists}')
    answer = await me.post("/v1/sessions/import", content=text, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json"), answer.text


async def test_executions_are_listed_newest_first_in_pages(plane, me):
    session, ids = await with_turns(plane, me, 3)
    first = (await me.get(f"/v1/sessions/{session}/executions", params={"limit": 2})).json()
    assert [one["request_id"] for one in first["executions"]] == [ids[2], ids[1]]
    rest = await me.get(f"/v1/sessions/{session}/executions", params={"cursor": first["next_cursor"]})
    assert [one["request_id"] for one in rest.json()["executions"]] == [ids[0]]
    assert rest.json()["next_cursor"] is None


async def test_a_title_is_given_and_taken_away(plane, me):
    session = await plane.session()
    assert (await me.patch(f"/v1/sessions/{session}", json={"title": "  Birds "})).json()["title"] == "Birds"
    assert (await me.get(f"/v1/sessions/{session}")).json()["title"] == "Birds"
    assert (await me.patch(f"/v1/sessions/{session}", json={"title": None})).json()["title"] is None
    for wrong in ({}, {"title": ""}, {"title": "a\nb"}, {"title": "x" * 201}, {"name": "x"}):
        assert (await me.patch(f"/v1/sessions/{session}", json=wrong)).status_code == 422
