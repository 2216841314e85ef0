"""The WebSocket door of a real server: what a client of it sees, from its first message to its last."""

import contextlib
import json
import time
from socket import MSG_PEEK, SO_RCVBUF, SOL_SOCKET
from socket import create_connection as connection_to

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.control_plane.test_upgraded import frame, upgrade
from tests.system.server import FREE, Caller, at_once, eventually
from tests.system.socket_client import Socket, is_event, number
from tests.system.test_approvals import asking, run
from tests.system.test_event_streams import watch

EXPECTED_ERRORS = ("turn_cancelled",)


@pytest.fixture(scope="module")
def settings():
    return {"AMPLIFIER_WEBSOCKET__AUTH_TIMEOUT": "2s", "AMPLIFIER_WEBSOCKET__UNREAD_TIMEOUT": "2s"}


@pytest.fixture
def socket(me):
    with Socket.of(me) as one:
        yield one


def test_the_example_of_the_specification_works_as_it_stands(me):
    with Socket(me.port) as ws:
        ws.send("auth", token=me.key)
        assert ws.next()["type"] == "auth.ok"
        ws.send("session.create", profile="foundation:base")
        created = ws.next()
        assert created["type"] == "session.created"
        ws.send("execute", session_id=created["session_id"], prompt="Analyze this code...")
        seen = [ws.next()]
        while seen[-1]["type"] not in {"complete", "error"}:
            seen.append(ws.next())
    started, *events = seen
    assert started["type"] == "execution.started"
    assert {one["type"] for one in events} == {"token", "complete"}
    assert "".join(one["content"] for one in events[:-1]) == events[-1]["response"]
    assert [number(one) for one in events] == list(range(1, len(events) + 1))
    assert all(one["session_id"] == created["session_id"] for one in events)
    assert all(one["request_id"] == started["request_id"] for one in events)
    assert not any("id" in one for one in seen), "none was given"


def test_every_answer_has_the_id_of_its_message(socket):
    session = socket.session()
    assert socket.ask("ping", id=7) == {"type": "pong", "id": 7}
    request_id = socket.execute(session, "hello", id="mine")
    assert {event["id"] for event in socket.events_of(request_id)} == {"mine"}
    assert socket.ask("session.get", id="x", session_id="sess_none")["id"] == "x"
    assert socket.ask("nonsense", id="y")["id"] == "y"


def test_tool_calls_are_told_as_on_rest(socket, me):
    session = socket.session()
    request_id = socket.execute(session, 'use bash {"command": "echo hello"}')
    told = [one for one in socket.events_of(request_id) if one["type"] == "tool_call"]
    assert [one["status"] for one in told] == ["started", "completed"]
    with watch(me, session, request_id) as stream:
        rest = [event.data for event in stream.rest() if event.name == "tool_call"]
    own = {"type", "id", "session_id", "request_id", "event_id"}
    assert [{name: value for name, value in one.items() if name not in own} for one in told] == rest


def test_a_session_goes_through_its_life(socket):
    session = socket.session(context={"project": "birds"})
    assert socket.ask("session.get", session_id=session)["context"] == {"project": "birds"}
    assert socket.ask("session.update", session_id=session, title="Birds")["title"] == "Birds"
    socket.events_of(socket.execute(session, "hello"))
    fork = socket.ask("session.fork", session_id=session)
    assert fork["type"] == "session.forked"
    assert fork["message_count"] == 2
    listed = socket.ask("session.list", limit=10)
    assert {one["session_id"] for one in listed["sessions"]} == {session, fork["session_id"]}
    assert socket.ask("session.close", session_id=session) == {
        "type": "session.closed",
        "id": socket_id(socket),
        "session_id": session,
    }
    refused = socket.ask("execute", session_id=session, prompt="hello")
    assert (refused["type"], refused["status"], refused["code"]) == ("error", 410, "session_closed")
    assert "event_id" not in refused


def socket_id(socket):
    """The id that the last message had."""
    return f"m{int(repr(socket._numbers)[6:-1]) - 1}"


def test_many_sessions_and_turns_at_once_on_one_connection(socket):
    sessions = [socket.session() for _ in range(6)]
    requests = [socket.execute(one, "stream 40 at 100/s", id=one) for one in sessions]
    events = {request_id: [] for request_id in requests}
    while not all(found and found[-1]["type"] == "complete" for found in events.values()):
        one = socket.next()
        events[one["request_id"]].append(one)
    for session, request_id in zip(sessions, requests, strict=True):
        assert [number(one) for one in events[request_id]] == list(range(1, 42))
        assert {(one["session_id"], one["id"]) for one in events[request_id]} == {(session, session)}


def test_a_running_execution_is_cancelled(socket):
    session = socket.session()
    request_id = socket.execute(session, "stream 500 at 50/s")
    socket.next()
    answer = socket.ask("cancel", session_id=session, request_id=request_id)
    assert (answer["type"], answer["status"], answer["session_id"]) == ("cancelled", "cancelled", session)
    last = socket.events_of(request_id)[-1]
    assert (last["type"], last["code"]) == ("error", "turn_cancelled")
    assert last["event_id"].startswith(request_id)


def test_an_execution_in_the_background_tells_nothing_until_it_is_attached(socket):
    session = socket.session()
    begun = socket.ask("execute", session_id=session, prompt="stream 20 at 100/s", background=True)
    assert (begun["type"], begun["status"]) == ("execution.started", "running")
    assert socket.ask("ping")["type"] == "pong"
    assert socket.kept == []
    socket.ask("attach", session_id=session, request_id=begun["request_id"])
    assert [number(one) for one in socket.events_of(begun["request_id"])] == list(range(1, 22))


def test_dropping_and_attaching_twenty_times_in_one_turn_loses_and_doubles_nothing(me):
    with Socket.of(me) as first:
        session = first.session()
        request_id = first.execute(session, "stream 150 at 60/s")
        seen = first.take(3)
        first.wire.socket.close()  # it is cut off, without a word
    for _ in range(20):
        with Socket.of(me) as again:
            answer = again.ask("attach", session_id=session, request_id=request_id, after=seen[-1]["event_id"])
            assert answer["type"] == "attached"
            seen += again.take(3)
    assert seen[-1]["type"] == "token", "the turn is still under way: it does not depend on who watches"
    with Socket.of(me) as last:
        last.ask("attach", session_id=session, request_id=request_id, after=seen[-1]["event_id"])
        seen += last.events_of(request_id)
    assert [number(one) for one in seen] == list(range(1, 152))
    assert "".join(one["content"] for one in seen[:-1]) == seen[-1]["response"]


def test_detaching_and_attaching_on_one_connection_loses_and_doubles_nothing(socket):
    session = socket.session()
    request_id = socket.execute(session, "stream 100 at 100/s")
    seen = socket.take(2)
    for _ in range(10):
        detached = socket.ask("detach", request_id=request_id)
        assert detached["type"] == "detached", detached
        seen += socket.kept  # came before the answer
        socket.kept = []
        socket.ask("attach", session_id=session, request_id=request_id, after=seen[-1]["event_id"])
        seen.append(socket.next())
    seen += socket.events_of(request_id)
    assert [number(one) for one in seen] == list(range(1, 102))


def test_an_execution_begun_on_rest_goes_on_here_and_the_other_way_round(me):
    session = me.session()
    with me.stream(session, "stream 90 at 60/s") as stream:
        events = stream.take(3)
    seen = [event.number for event in events]
    request_id = events[0].request_id
    for door in ("websocket", "rest") * 5:
        last = f"{request_id}:{seen[-1]}"
        if door == "websocket":
            with Socket.of(me) as ws:
                ws.ask("attach", session_id=session, request_id=request_id, after=last)
                seen += [number(one) for one in ws.take(3)]
        else:
            with watch(me, session, request_id, last) as stream:
                seen += [event.number for event in stream.take(3)]
    with Socket.of(me) as ws:
        ws.ask("attach", session_id=session, request_id=request_id, after=f"{request_id}:{seen[-1]}")
        seen += [number(one) for one in ws.events_of(request_id)]
    assert seen == list(range(1, 92))


def test_what_can_not_be_attached_says_why(socket, server):
    session = socket.session()
    request_id = socket.execute(session, "hello")
    assert socket.ask("attach", session_id=session, request_id=request_id)["code"] == "already_attached"
    socket.events_of(request_id)
    assert socket.ask("attach", session_id=session, request_id="req_none")["status"] == 404
    assert socket.ask("attach", session_id="sess_none", request_id=request_id)["status"] == 404
    assert (
        socket.ask("attach", session_id=session, request_id=request_id, after="req_x:1")["code"] == "invalid_event_id"
    )
    assert socket.ask("detach", request_id=request_id)["code"] == "not_attached"
    with Socket.of(server.tenant(**FREE)) as other:
        for kind, members in {
            "attach": {"session_id": session, "request_id": request_id},
            "session.get": {"session_id": session},
            "session.close": {"session_id": session},
            "session.fork": {"session_id": session},
            "session.update": {"session_id": session, "title": "mine"},
            "cancel": {"session_id": session, "request_id": request_id},
            "approvals.list": {"session_id": session, "request_id": request_id},
            "execute": {"session_id": session, "prompt": "hello"},
            "call": {"operation": "listMessages", "params": {"session_id": session}},
        }.items():
            assert other.ask(kind, **members)["status"] == 404, kind


def test_any_other_operation_answers_what_rest_answers(socket, me):
    for operation, path, params in (
        ("listKeys", "/v1/keys", {}),
        ("listProfiles", "/v1/profiles", {}),
        ("getProfile", "/v1/profiles/foundation:base", {"name": "foundation:base"}),
        ("listTools", "/v1/tools", {}),
        ("listMembers", "/v1/members?limit=1", {"limit": 1}),
        ("listRoles", "/v1/roles", {}),
        ("getUsage", "/v1/usage?group_by=session", {"group_by": "session"}),
    ):
        answer = socket.ask("call", operation=operation, params=params)
        assert (answer["type"], answer["operation"], answer["status"]) == ("result", operation, 200), answer
        assert answer["data"] == me.get(path), operation
    made = socket.ask("call", operation="createKey", body={"name": "another", "role": "readonly"})
    assert (made["status"], made["data"]["role"]) == (201, "readonly")
    gone = socket.ask("call", operation="revokeKey", params={"key_id": made["data"]["id"]})
    assert (gone["status"], gone["data"]) == (204, None)
    ran = socket.ask("call", operation="executeTool", params={"name": "bash"}, body={"input": {"command": "echo hi"}})
    assert ran["data"]["output"]["stdout"] == "hi\n"
    wrong = socket.ask("call", operation="createKey", body={"name": 3})
    assert (wrong["status"], wrong["code"]) == (422, "invalid_request")
    assert wrong["errors"]


def test_the_same_key_does_the_work_once(socket, me):
    first = socket.ask("session.create", profile="foundation:base", idempotency_key="once")
    again = socket.ask("session.create", profile="foundation:base", idempotency_key="once")
    assert first["session_id"] == again["session_id"]
    other = socket.ask("session.create", profile="foundation:base", context={"a": 1}, idempotency_key="once")
    assert (other["status"], other["code"]) == (422, "idempotency_key_reused")
    rest = me.call("POST", "/v1/sessions", {"profile": "foundation:base"}, {"Idempotency-Key": "once"})
    assert rest.json["session_id"] == first["session_id"], "a key is the same on every door"

    session = first["session_id"]
    request_id = socket.execute(session, "stream 10 at 100/s", idempotency_key="turn")
    events = socket.events_of(request_id)
    assert socket.execute(session, "stream 10 at 100/s", idempotency_key="turn") == request_id
    repeated = socket.events_of(request_id)
    assert [one["event_id"] for one in repeated] == [one["event_id"] for one in events]
    assert len(me.get(f"/v1/sessions/{session}/executions")["executions"]) == 1


def test_the_tenants_events_follow_from_where_one_left_off(socket, me):
    assert socket.ask("events.subscribe")["type"] == "events.subscribed"
    assert socket.ask("events.subscribe")["code"] == "already_subscribed"
    session = me.session()
    first = socket.next()
    assert (first["type"], first["event"], first["data"]["session_id"]) == ("event", "session.created", session)
    assert socket.ask("events.unsubscribe")["type"] == "events.unsubscribed"
    me.call("DELETE", f"/v1/sessions/{session}")
    assert socket.ask("events.subscribe", after=first["event_id"])["type"] == "events.subscribed"
    assert socket.next()["event"] == "session.closed"
    assert socket.ask("events.unsubscribe")["type"] == "events.unsubscribed"
    assert socket.ask("events.subscribe", after="evt_x")["code"] == "invalid_event_id"


def test_a_person_is_asked_and_answers_here(me, socket):
    session = asking(me)
    request_id = socket.execute(session, run("touch allowed; ls"))
    asked = socket.next()
    while asked["type"] != "approval":
        asked = socket.next()
    assert (asked["status"], asked["session_id"], asked["request_id"]) == ("requested", session, request_id)
    where = {"session_id": session, "request_id": request_id}
    listed = socket.ask("approvals.list", **where)
    assert [one["approval_id"] for one in listed["approvals"]] == [asked["approval_id"]]
    wrong = socket.ask("approval.respond", approval_id=asked["approval_id"], choice="none of them", **where)
    assert (wrong["type"], wrong["status"]) == ("error", 422)
    answer = socket.ask("approval.respond", approval_id=asked["approval_id"], approved=True, **where)
    assert (answer["type"], answer["status"], answer["approved"]) == ("approval.responded", "answered", True)
    events = socket.events_of(request_id)
    assert [one["approved"] for one in events if one["type"] == "approval"] == [True]
    assert "allowed" in json.dumps([one for one in events if one["type"] == "tool_call"])


# Who is there.


def test_nobody_is_let_in_without_saying_who(me):
    with Socket(me.port) as ws:
        ws.send("session.list", id="a")
        code, _ = ws.closed()
        assert code == 4401
        assert (ws.kept[0]["type"], ws.kept[0]["code"], ws.kept[0]["id"]) == ("error", "unauthenticated", "a")
    with Socket(me.port) as ws:
        ws.send("auth", token="amp_live_" + "x" * 38)
        assert ws.closed()[0] == 4401
        assert ws.kept[0]["status"] == 401
    with Socket(me.port) as ws:
        ws.wire.send("not json")
        assert ws.closed()[0] == 4401 or ws.kept[0]["code"] == "invalid_json"


def test_who_says_nothing_is_told_so_and_closed(me):
    with Socket(me.port) as ws:
        code, reason = ws.closed()
    assert code == 4408
    assert "2 s" in reason
    assert ws.kept[0]["code"] == "auth_timeout"


def test_headers_of_the_upgrade_say_who_is_there(me):
    for headers in ({"X-API-Key": me.key}, {"Authorization": f"Bearer {me.key}"}):
        with Socket(me.port, headers) as ws:
            assert ws.next()["type"] == "auth.ok"
            assert ws.ask("session.list")["type"] == "sessions"
    with pytest.raises(InvalidStatus) as refused:
        Socket(me.port, {"X-API-Key": "amp_live_" + "x" * 38})
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["code"] == "unauthenticated"
    with pytest.raises(InvalidStatus) as refused:
        Socket(me.port, path="/nowhere")
    assert refused.value.response.status_code == 404
    assert me.call("GET", "/ws").status == 426


def test_a_message_needs_its_permission(me):
    made = me.call("POST", "/v1/keys", {"name": "reader", "role": "readonly"})
    with Socket.of(Caller(me.port, made.json["secret"] if "secret" in made.json else made.json["key"])) as ws:
        for kind, members in {
            "session.create": {"profile": "foundation:base"},
            "execute": {"session_id": "sess_x", "prompt": "hello"},
            "session.close": {"session_id": "sess_x"},
            "cancel": {"session_id": "sess_x", "request_id": "req_x"},
            "call": {"operation": "createKey", "body": {"name": "x", "role": "admin"}},
        }.items():
            refused = ws.ask(kind, **members)
            assert (refused["status"], refused["code"]) == (403, "forbidden"), kind
        assert ws.ask("session.list")["type"] == "sessions"


def test_revoking_a_key_closes_its_sockets(me):
    made = me.call("POST", "/v1/keys", {"name": "short", "role": "developer"}).json
    secret = next(value for value in made.values() if isinstance(value, str) and value.startswith("amp_"))
    with Socket.of(Caller(me.port, secret)) as ws:
        session = ws.session()
        ws.execute(session, "stream 2000 at 40/s")
        ws.next()
        assert me.call("DELETE", f"/v1/keys/{made['id']}").status == 204
        code, reason = ws.closed()
    assert code == 4403
    assert "revoked" in reason
    assert ws.kept[-1]["code"] == "access_ended"


def test_another_token_of_the_same_member_takes_the_place_of_the_first(socket, me, server):
    assert socket.ask("auth", token=me.key)["type"] == "auth.ok"
    other = socket.ask("auth", token=server.tenant(**FREE).key)
    assert (other["type"], other["code"]) == ("error", "another_caller")
    assert socket.ask("session.list")["type"] == "sessions", "the one before holds"


# What comes in.


def test_what_is_no_message_costs_an_answer_and_many_in_a_row_the_connection(socket):
    for text in ("", "{", "[]", "1", "null", '"x"', '{"type": 3}', "{}", '{"type": "ping", "x": 1}', "[" * 100_000):
        socket.wire.send(text)
        answer = socket.next()
        assert answer["type"] == "error", text[:20]
        assert answer["code"] in {"invalid_json", "unknown_message", "invalid_request"}
    socket.wire.send(b"binary")
    assert socket.next()["code"] == "invalid_json"
    assert socket.ask("ping")["type"] == "pong"
    with contextlib.suppress(ConnectionClosed):
        for _ in range(25):
            socket.wire.send("nonsense")
    assert socket.closed()[0] == 4400


def test_a_message_that_is_too_large_closes_the_connection(me):
    """By its head alone: what is still being sent when the server closes would reset the connection."""
    with raw(me) as (wire, _):
        wire.sendall(b"\x81\xff" + (3_000_000).to_bytes(8, "big") + b"mask" + b"the first of it")
        assert last_words(wire)[0] == 1009


def test_a_client_that_does_not_read_slows_its_streams_and_is_closed_with_the_reason(me):
    """Its turns go on all the same, and can be read."""
    with Socket.of(me) as ws:
        sessions = [ws.session() for _ in range(4)]
    with raw(me) as (wire, say):
        for one in sessions:
            say({"type": "execute", "session_id": one, "prompt": "stream 20000 at 5000/s"})
        time.sleep(5)  # it reads nothing: that is what is tested
        code, reason, seen = last_words(wire)
    assert code == 4410, (code, reason)
    assert "not read" in reason
    assert 4 < len(seen) < 30_000, "most of it was never taken from the sandboxes"
    with Socket.of(me) as ws:
        for one in sessions:
            request_id = next(text["request_id"] for text in seen if text.get("session_id") == one)
            ws.ask("cancel", session_id=one, request_id=request_id)


@contextlib.contextmanager
def raw(caller):
    """A socket that is known, and reads only when it is read: its connection, and how to send it a message."""
    with connection_to(("127.0.0.1", caller.port)) as wire:
        wire.setsockopt(SOL_SOCKET, SO_RCVBUF, 64 * 1024)
        wire.settimeout(30)
        wire.sendall(upgrade(b"/ws"))
        while b"\r\n\r\n" not in wire.recv(4096, MSG_PEEK):
            pass
        wire.recv(wire.recv(4096, MSG_PEEK).index(b"\r\n\r\n") + 4)

        def say(message):
            wire.sendall(frame(1, json.dumps(message).encode()))

        say({"type": "auth", "token": caller.key})
        yield wire, say


def last_words(wire):
    """The code and the reason of the close frame, and all messages before it."""
    seen = []
    with wire.makefile("rb") as stream:
        while True:
            first, length = stream.read(2)
            if length >= 126:
                length = int.from_bytes(stream.read(2 if length == 126 else 8))
            payload = stream.read(length)
            if first & 0x0F == 8:
                return int.from_bytes(payload[:2]), payload[2:].decode(), seen
            if first & 0x0F == 1:
                seen.append(json.loads(payload))


def test_pings_are_answered_while_streams_are_busy(socket):
    sessions = [socket.session() for _ in range(5)]
    for one in sessions:
        socket.execute(one, "stream 8000 at 200/s")
    for _ in range(20):
        assert socket.ask("ping")["type"] == "pong"
    assert not [one for one in socket.kept if one["type"] == "complete"], "they are answered in between"
    for one in sessions:
        socket.ask("session.close", session_id=one)


def test_a_connection_follows_no_more_than_it_may(make_server):
    server = make_server(AMPLIFIER_WEBSOCKET__MAX_STREAMS="2").start()
    me = server.tenant(**FREE)
    with Socket.of(me) as ws:
        sessions = [ws.session() for _ in range(3)]
        for one in sessions[:2]:
            ws.execute(one, "stream 2000 at 40/s")
        refused = ws.ask("execute", session_id=sessions[2], prompt="hello")
        assert (refused["status"], refused["code"]) == (429, "too_many_streams")
        assert ws.ask("events.subscribe")["code"] == "too_many_streams"


def test_a_server_that_stops_says_so_to_idle_connections_at_once_and_to_busy_ones_when_they_are_done(make_server):
    server = make_server(AMPLIFIER_SERVER__DRAIN_TIMEOUT="120s").start()
    me = server.tenant(**FREE)
    with Socket.of(me) as idle, Socket.of(me) as busy:
        session = busy.session()
        request_id = busy.execute(session, "stream 60 at 40/s")
        busy.next()
        stopping = at_once([server.stop, idle.closed, lambda: busy.events_of(request_id)])
        assert stopping[1][0] == 1001
        assert stopping[2][-1]["type"] == "complete"
        assert busy.closed()[0] == 1001


def test_nothing_is_left_of_connections_that_went_away(me, server):
    def open_sockets():
        text = server.operator().call("GET", "/metrics").body.decode()
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith("amplifier_open_sockets ")))

    before = open_sockets()
    sockets = [Socket.of(me) for _ in range(5)]
    assert open_sockets() == before + 5
    for one in sockets:
        one.wire.socket.close()
    assert eventually(lambda: open_sockets() == before)
    assert is_event({"type": "token"})
