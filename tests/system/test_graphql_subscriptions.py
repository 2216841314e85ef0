"""GraphQL's subscriptions of a real server, by WebSocket and by server-sent events."""

import contextlib
import json

import pytest
from websockets.exceptions import ConnectionClosed

from tests.system.graphql_client import STREAM, GraphqlSocket
from tests.system.server import eventually

EXPECTED_ERRORS = ("turn_cancelled",)


@pytest.fixture(scope="module")
def settings():
    return {
        "AMPLIFIER_WEBSOCKET__AUTH_TIMEOUT": "2s",
        "AMPLIFIER_GRAPHQL__MAX_SUBSCRIPTIONS": "5",
        "AMPLIFIER_GRAPHQL__MAX_SUBSCRIPTIONS_PER_CREDENTIAL": "12",
    }


def started(caller, session, prompt):
    query = "mutation($s: ID!, $p: String!) { startExecution(sessionId: $s, prompt: $p) { requestId } }"
    answer = caller.call("POST", "/graphql", {"query": query, "variables": {"s": session, "p": prompt}})
    return answer.json["data"]["startExecution"]["requestId"]


def numbers(events):
    return [int(one["id"].rpartition(":")[2]) for one in events]


def socket(caller, **more):
    return GraphqlSocket(caller.port, {"token": caller.key}, **more)


def test_a_stream_can_be_opened_before_it_begins_and_after_it_ended(me):
    session = me.session()
    with socket(me) as one:
        request_id = started(me, session, "stream 30 at 200/s")
        one.follow("a", session, request_id)
        events = one.rest("a")
        assert numbers(events) == list(range(1, 32))
        assert [one["type"] for one in events] == ["TOKEN"] * 30 + ["COMPLETE"]
        assert "".join(one["content"] for one in events[:-1]) == events[-1]["content"]
        assert events[-1]["usage"]["totalTokens"] > 0
        one.follow("a", session, request_id)  # its id is free again
        assert one.rest("a") == events
        one.follow("b", session, request_id, events[19]["id"])
        assert one.rest("b") == events[20:]


def test_a_client_that_drops_and_comes_back_twenty_times_by_turns_of_doors_misses_nothing(me):
    session = me.session()
    request_id = started(me, session, "stream 150 at 60/s")
    seen, after = [], None
    for turn in range(20):
        if turn % 2:
            with me.open(
                "GET",
                f"/v1/sessions/{session}/executions/{request_id}/events",
                headers={"Last-Event-ID": after},
            ) as stream:
                seen += [event.number for event in stream.take(3)]
        else:
            with socket(me) as one:
                one.follow("x", session, request_id, after)
                seen += [
                    int(one.receive()["payload"]["data"]["executionStream"]["id"].rpartition(":")[2]) for _ in range(3)
                ]
        after = f"{request_id}:{seen[-1]}"
    with socket(me) as one:
        one.follow("x", session, request_id, after)
        seen += numbers(one.rest("x"))
    assert seen == list(range(1, 152))


def test_server_sent_events_carry_the_same(me):
    session = me.session()
    request_id = started(me, session, "stream 10")
    body = {"query": STREAM, "variables": {"s": session, "r": request_id}}
    with me.open("POST", "/graphql", body) as stream:
        events = [one.data["data"]["executionStream"] for one in stream if one.name == "next"]
    assert numbers(events) == list(range(1, 12))
    assert stream.raw.endswith(b"event: complete\ndata:\n\n")


def test_tools_and_problems_are_told(me):
    session = me.session()
    with socket(me) as one:
        one.follow("a", session, started(me, session, 'use bash {"command": "echo hi"}'))
        calls = [event["toolCall"] for event in one.rest("a") if event["type"] == "TOOL_CALL"]
        assert [call["status"] for call in calls] == ["started", "completed"]
        request_id = started(me, session, "stream 1000 at 20/s")
        one.follow("b", session, request_id)
        assert one.receive()["type"] == "next"
        cancel = "mutation($s: ID!, $r: ID!) { cancelExecution(sessionId: $s, requestId: $r) { status } }"
        one.subscribe("c", cancel, s=session, r=request_id)
        messages = []
        while len([message for message in messages if message["type"] == "complete"]) < 2:
            messages.append(one.receive())
        last = [message for message in messages if message["id"] == "b" and message["type"] == "next"][-1]
        assert last["payload"]["data"]["executionStream"]["problem"]["code"] == "turn_cancelled"


def test_what_happens_to_a_tenant_is_told_and_can_be_gone_on_with(me):
    with socket(me) as one:
        one.subscribe("e", "subscription { events { id type data } }")
        one.subscribe("q", "{ me { role } }")
        while one.receive()["id"] != "q":
            pass
        one.receive()
        session = me.session()
        first = one.receive()["payload"]["data"]["events"]
        assert (first["type"], first["data"]["session_id"]) == ("session.created", session)
        one.send(id="e", type="complete")
    me.call("DELETE", f"/v1/sessions/{session}")
    with socket(me) as one:
        one.subscribe("e", "subscription($a: ID) { events(after: $a) { type } }", a=first["id"])
        assert one.receive()["payload"]["data"]["events"]["type"] == "session.closed"


@pytest.mark.parametrize("payload", [{"token": None}, {"Authorization": None}, {"X-API-Key": None}, "headers"])
def test_a_credential_may_come_in_each_of_these_ways(me, payload):
    if payload == "headers":
        with GraphqlSocket(me.port, {}, {"X-API-Key": me.key}) as one:
            one.send(type="ping")
            assert one.receive() == {"type": "pong"}
        return
    (name,) = payload
    text = f"Bearer {me.key}" if name == "Authorization" else me.key
    with GraphqlSocket(me.port, {name: text}) as one:
        one.subscribe("a", "{ me { role } }")
        assert one.receive() == {"id": "a", "type": "next", "payload": {"data": {"me": {"role": "admin"}}}}
        assert one.receive() == {"id": "a", "type": "complete"}


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([{"type": "connection_init", "payload": {"token": "amp_live_nobody"}}], 4403),
        ([{"type": "connection_init"}], 4403),
        ([{"type": "connection_init", "payload": []}], 4400),
        ([{"type": "subscribe", "id": "a", "payload": {"query": "{ me { role } }"}}], 4401),
        ([["no object"]], 4400),
        ([{"type": "nothing"}], 4401),
        ([{"type": "ping"}, {"type": "pong"}] * 6, 4429),
        ([], 4408),
    ],
)
def test_nobody_is_answered_before_a_credential_was_believed(me, messages, code):
    with GraphqlSocket(me.port) as one:
        with contextlib.suppress(ConnectionClosed):  # it may be closed before the last of them
            for message in messages:
                one.raw.send(json.dumps(message))
        assert one.closed()[0] == code


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([{"type": "connection_init"}], 4429),
        ([{"type": "nothing"}], 4400),
        (["{"], 4400),
        ([b"bytes"], 4400),
        ([{"type": "subscribe", "id": 1, "payload": {"query": "{ me { role } }"}}], 4400),
        ([{"type": "subscribe", "id": "a"}], 4400),
        ([{"type": "subscribe", "id": "a", "payload": {"query": "subscription { events { id } }"}}] * 2, 4409),
    ],
)
def test_what_the_protocol_forbids_ends_the_connection(me, messages, code):
    with socket(me) as one:
        for message in messages:
            one.raw.send(json.dumps(message) if isinstance(message, dict) else message)
        assert one.closed()[0] == code


def test_another_subprotocol_is_none(me):
    with GraphqlSocket(me.port, subprotocols=None) as one:
        assert one.closed()[0] == 4406


def test_a_document_that_can_not_be_carried_out_ends_itself_alone(me):
    with socket(me) as one:
        for name, query in (("a", "{"), ("b", "{ nothing }"), ("c", "")):
            one.subscribe(name, query)
            message = one.receive()
            assert (message["id"], message["type"]) == (name, "error")
            assert message["payload"][0]["extensions"]["status"] == 400
        one.subscribe("d", STREAM, s="sess_x", r="req_x")
        assert one.receive()["payload"][0]["extensions"]["code"] == "execution_not_found"


def test_a_connection_and_a_credential_have_so_many_operations(me):
    with socket(me) as one:
        for number in range(6):
            one.subscribe(str(number), "subscription { events { id } }")
        refused = one.receive()
        assert (refused["id"], refused["payload"][0]["extensions"]["code"]) == ("5", "too_many_subscriptions")
        with contextlib.ExitStack() as opened:
            let_in = 1
            while _is_let_in(opened.enter_context(GraphqlSocket(me.port)), me):
                let_in += 1
                assert let_in <= 12
    assert eventually(lambda: _has_room(me))


def _is_let_in(one, caller):
    one.send(type="connection_init", payload={"token": caller.key})
    try:
        return one.receive()["type"] == "connection_ack"
    except ConnectionClosed as error:
        assert error.rcvd.code == 4429  # noqa: PT017
        return False


def _has_room(caller):
    with socket(caller) as one:
        one.subscribe("a", "{ me { role } }")
        return one.receive()["type"] == "next"


@pytest.mark.parametrize("door", ["websocket", "events"])
def test_a_revoked_key_ends_what_it_opened(server, me, door):
    key = me.call("POST", "/v1/keys", {"name": "k", "role": "developer"}).json
    caller = server.caller(key["key"])
    query = "subscription { events { id } }"
    if door == "websocket":
        with socket(caller) as one:
            one.subscribe("a", query)
            assert me.call("DELETE", f"/v1/keys/{key['id']}").status == 204
            code, reason = one.closed()
            assert (code, reason) == (4403, "the credential was revoked, or holds less than before")
    else:
        with caller.open("POST", "/graphql", {"query": query}) as stream:
            assert me.call("DELETE", f"/v1/keys/{key['id']}").status == 204
            events = stream.rest()
        assert events[0].data["errors"][0]["extensions"]["code"] == "access_ended"
