"""One-shot executions: a session is made, runs one prompt, and is closed, whichever way that ends and whoever goes away."""

import asyncio

import pytest

from amplifier_api_server.control_plane.limits.admission import Place
from amplifier_api_server.control_plane.sessions import sweeps
from amplifier_api_server.control_plane.sessions.turns import Turns
from amplifier_api_server.tenants.errors import Unavailable
from amplifier_api_server.tenants.ids import new_session_id, new_turn_id
from amplifier_api_server.tenants.repository import sessions as repository
from tests.control_plane.sessions.test_background import ended, until
from tests.doors.honest import turn as three_words
from tests.hostile_runtime import NOTHING, attacked

ONCE = {"profile": "foundation:base", "prompt": "hi"}


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


@pytest.fixture
async def me(plane):
    async with plane.client() as client:
        yield client


async def once(me, *, key=None, **more):
    return await me.post("/v1/executions", json=ONCE | more, headers={"Idempotency-Key": key} if key else {})


async def used(me):
    limits = {one["name"]: one["used"] for one in (await me.get("/v1/limits")).json()["limits"]}
    return limits["sessions_per_user"], limits["concurrent_sessions"]


async def nothing_is_left(plane, me):
    """No place is taken, no session is open, in no runtime, and nothing waits."""
    assert await used(me) == (0, 0)
    assert (await me.get("/v1/sessions")).json()["sessions"] == []

    async def look():
        is_cleared = not any(plane.app.services.fleet.sessions.values())
        return is_cleared and (await plane.left()) == NOTHING

    await until(look)


async def test_it_answers_with_both_ids_and_leaves_a_closed_session_with_its_transcript(plane, me):
    answer = await once(me, context={"project": "birds"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["response"] == "done"
    assert answer.headers["location"] == f"/v1/sessions/{body['session_id']}/executions/{body['request_id']}"
    session = (await me.get(f"/v1/sessions/{body['session_id']}")).json()
    assert (session["status"], session["context"], session["turn_count"]) == ("closed", {"project": "birds"}, 1)
    assert (await me.get(answer.headers["location"])).json()["status"] == "completed"
    await nothing_is_left(plane, me)


async def test_its_session_is_closed_before_the_end_is_told(plane, me):
    """Whoever reads the end has the place for the next one: the limit is one session, and one follows the other."""

    async def close_slowly(request):
        await slow.wait()
        await request.reply(204)

    slow = asyncio.Event()
    plane.fleet.answers["DELETE", "session"] = close_slowly
    made = await me.post("/v1/keys", json={"name": "one", "role": "developer", "limits": {"concurrent_sessions": 1}})
    async with plane.client(made.json()["key"]) as one:
        for _ in range(3):
            answer = await once(one)
            assert answer.status_code == 200, answer.text
            assert (await one.get(f"/v1/sessions/{answer.json()['session_id']}")).json()["status"] == "closed"
    slow.set()
    await nothing_is_left(plane, me)


async def test_a_stream_says_with_its_first_byte_where_it_is_and_can_be_read_again(plane, me):
    plane.fleet.answers["POST", "turn"] = three_words
    answer = await once(me, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    where = answer.headers["location"]
    assert where.split("/")[3] in answer.text.rpartition("event: complete")[2], "the last event names its session"
    assert (await me.get(f"{where}/events")).text == answer.text
    await nothing_is_left(plane, me)


async def test_in_the_background_it_is_followed_and_cancelled_as_any_other(plane, me):
    async def hang(request):
        await request.hang()

    answer = await once(me, background=True)
    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert (await ended(me, answer.headers["location"]))["status"] == "completed"
    plane.fleet.answers["POST", "turn"] = hang
    where = (await once(me, background=True)).headers["location"]
    assert (await me.post(f"{where}/cancel")).json()["status"] == "cancelled"
    assert (await me.get(where.partition("/executions")[0])).json()["status"] == "closed"
    await nothing_is_left(plane, me)


async def refuse_to_open(plane, _monkeypatch):
    async def refuse(request):
        await request.reply(422, {"code": "module_failed", "detail": "tool-x is not what it was"})

    plane.fleet.answers["PUT", "session"] = refuse


async def fail_to_write_the_session(_plane, monkeypatch):
    async def fail(*_):
        raise Unavailable("the database is busy")

    monkeypatch.setattr(repository, "add", fail)


async def fail_to_write_the_turn(_plane, monkeypatch):
    async def fail(*_):
        raise Unavailable("the server is stopping", code="stopping")

    monkeypatch.setattr(Turns, "_record", fail)


async def refuse_the_turn(plane, _monkeypatch):
    async def refuse(request):
        await request.reply(500, {"code": "x", "detail": "x"})

    plane.fleet.answers["POST", "turn"] = refuse


async def fail_the_turn(plane, _monkeypatch):
    async def fail(request):
        failure = {"code": "model_failed", "detail": "no model"}
        answer = await request.runtime.hand_over(request, status="failed", failure=failure)
        await request.reply(200, answer.json()["result"])

    plane.fleet.answers["POST", "turn"] = fail


@pytest.mark.parametrize("how", ["answer", "stream", "background"])
@pytest.mark.parametrize(
    ("step", "status"),
    [
        (refuse_to_open, 422),
        (fail_to_write_the_session, 503),
        (fail_to_write_the_turn, 503),
        (refuse_the_turn, 502),
        (fail_the_turn, 502),
    ],
)
async def test_whichever_step_fails_nothing_is_left_open(plane, me, monkeypatch, step, status, how):
    await step(plane, monkeypatch)
    answer = await once(me, **({} if how == "answer" else {how: True}))
    is_later = how == "background" and step in {refuse_the_turn, fail_the_turn}
    if is_later:
        assert (await ended(me, answer.headers["location"]))["status"] == "failed"
    elif how != "stream" or step is not fail_the_turn:  # which has no stream here
        assert answer.status_code == status, answer.text
    await nothing_is_left(plane, me)


async def test_what_is_asked_for_wrongly_or_is_more_than_allowed_makes_nothing(plane, me):
    answer = await once(me, profile="foundation:none")
    assert (answer.status_code, answer.json()["code"]) == (404, "profile_not_found")
    assert (await me.post("/v1/executions", json={"prompt": "hi"})).status_code == 422
    assert (await once(me, stream=True, background=True)).status_code == 422
    made = await me.post("/v1/keys", json={"name": "none", "role": "developer", "limits": {"tokens_per_day": 0}})
    async with plane.client(made.json()["key"]) as poor:
        answer = await once(poor)
        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
    assert not any("PUT session" in runtime.seen for runtime in plane.fleet.runtimes.values())
    await nothing_is_left(plane, me)


async def test_who_has_as_many_open_sessions_as_they_may_is_told_of_it_and_goes_on_with_it(plane, me):
    """Sessions that nobody uses any more would hold up an automation for a day."""
    made = await me.post("/v1/keys", json={"name": "two", "role": "developer", "limits": {"sessions_per_user": 2}})
    async with plane.client(made.json()["key"]) as two:
        body = {"profile": "foundation:base"}
        answers = [await two.post("/v1/sessions", json=body) for _ in range(3)]
        assert [one.status_code for one in answers] == [201, 201, 429]
        refused = answers[-1].json()
        assert "POST /v1/executions" in refused["detail"]
        assert set(refused["holders"]) == {one.json()["session_id"] for one in answers[:2]}
        assert "retry-after" not in answers[-1].headers, "waiting does not help"
        assert (await once(two)).status_code == 200
        limits = {one["name"]: one["used"] for one in (await two.get("/v1/limits")).json()["limits"]}
        assert (limits["sessions_per_user"], limits["tenant_sessions"]) == (2, 2)


@pytest.mark.parametrize(("held", "lacks"), [("execute", "create"), ("create", "execute")])
async def test_it_takes_the_permissions_of_both_and_counts_as_one_request(plane, me, held, lacks):
    await me.post("/v1/roles", json={"name": "half", "permissions": [f"sessions:{held}"]})
    made = await me.post("/v1/keys", json={"name": "half", "role": "half"})
    async with plane.client(made.json()["key"]) as half:
        answer = await once(half)
        assert (answer.status_code, answer.json()["permission"]) == (403, f"sessions:{lacks}")
    made = await me.post("/v1/keys", json={"name": "few", "role": "developer", "limits": {"requests_per_minute": 2}})
    async with plane.client(made.json()["key"]) as few:
        assert [(await once(few)).status_code for _ in range(3)] == [200, 200, 429]


async def test_repeated_with_its_key_it_is_the_same_one(plane, me):
    plane.fleet.answers["POST", "turn"] = three_words
    first = await once(me, key="a", stream=True)
    again = await once(me, key="a", stream=True)
    assert (again.text, again.headers["location"]) == (first.text, first.headers["location"])
    assert again.headers["idempotent-replayed"] == "true"
    whole = await once(me, key="b")
    assert (await once(me, key="b")).json() == whole.json()
    assert (await once(me, key="b", prompt="ho")).json()["code"] == "idempotency_key_reused"
    assert (await once(me, key="c", profile="foundation:none")).status_code == 404
    assert (await once(me, key="c", profile="foundation:none")).status_code == 404
    opened = sum(runtime.seen.count("PUT session") for runtime in plane.fleet.runtimes.values())
    assert opened == 2
    await nothing_is_left(plane, me)


async def test_who_goes_away_ends_nothing_and_leaves_nothing_open(plane, me):
    asked, go = asyncio.Event(), asyncio.Event()

    async def wait(request):
        asked.set()
        await go.wait()
        await three_words(request)

    plane.fleet.answers["POST", "turn"] = wait
    messages = asyncio.Queue()
    body = b'{"profile": "foundation:base", "prompt": "hi"}'
    await messages.put({"type": "http.request", "body": body, "more_body": False})
    headers = [
        (b"x-api-key", plane.key.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"content-type", b"application/json"),
    ]
    scope = {"type": "http", "method": "POST", "path": "/v1/executions", "raw_path": b"/v1/executions"}

    async def send(message):
        raise AssertionError(f"nobody is there for {message}")

    running = asyncio.create_task(plane.app.asgi(scope | {"headers": headers, "query_string": b""}, messages.get, send))
    await asked.wait()
    await messages.put({"type": "http.disconnect"})
    await asyncio.wait_for(running, 5)
    go.set()

    async def look():
        return (await me.get("/v1/sessions")).json()["sessions"] == []

    await until(look)
    (session,) = (await me.get("/v1/sessions", params={"status": "closed"})).json()["sessions"]
    assert session["turn_count"] == 1
    await nothing_is_left(plane, me)


async def test_a_server_that_ends_in_between_closes_it_when_it_is_back(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "_LEFT_AFTER", sweeps._LEFT_AFTER * 0)

    async def hang(request):
        await request.hang()

    async with attacked(tmp_path) as first, first.client() as me:
        first.fleet.answers["POST", "turn"] = hang
        where = (await once(me, background=True)).headers["location"]
        # One whose execution was not recorded before the server ended.
        uses = first.app.services
        principal = await uses.authenticator.authenticate([(b"x-api-key", first.key.encode())])
        place = Place(new_session_id(), principal.member_id, is_new=True)
        await uses.sessions.make(principal, place, "foundation:base", {}, new_turn_id())
    async with attacked(tmp_path) as second, second.client() as me:
        assert (await me.get(where)).json()["problem"]["code"] == "runtime_lost"
        for session in (where.split("/")[3], place.session_id):

            async def look(session=session):
                return (await me.get(f"/v1/sessions/{session}")).json()["status"] == "closed"

            await until(look)
        await nothing_is_left(second, me)


async def test_by_graphql_too(plane, me):
    query = """mutation {
      one: executeOnce(profile: "foundation:base", prompt: "hi", idempotencyKey: "k") { sessionId requestId response }
      again: executeOnce(profile: "foundation:base", prompt: "hi", idempotencyKey: "k") { sessionId requestId response }
      later: startExecutionOnce(profile: "foundation:base", prompt: "hi") { sessionId requestId }
      none: executeOnce(profile: "foundation:none", prompt: "hi") { sessionId }
    }"""
    answer = (await me.post("/graphql", json={"query": query})).json()
    assert [one["extensions"]["code"] for one in answer["errors"]] == ["profile_not_found"]
    query = query.replace("none:", "#")
    data = (await me.post("/graphql", json={"query": query})).json()["data"]
    assert data["one"] == data["again"]
    assert data["one"]["response"] == "done"
    later = data["later"]
    view = await ended(me, f"/v1/sessions/{later['sessionId']}/executions/{later['requestId']}")
    assert view["status"] == "completed"
    await nothing_is_left(plane, me)
