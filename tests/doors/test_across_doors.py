"""One server, three doors: what is begun by one is gone on with by the others, and nothing is lost or doubled between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Self

import pytest

from tests.system.conftest import me, server
from tests.system.graphql_client import GraphqlSocket
from tests.system.server import Caller, eventually
from tests.system.socket_client import Socket
from tests.system.test_approvals import asking, run

__all__ = ["me", "server"]

PROMPT = "stream 200 at 60/s"
DOORS = ("rest", "graphql", "websocket")


@pytest.fixture(scope="module")
def settings():
    return {}


def asked(caller: Caller, document: str, **variables: Any) -> Any:
    """The `data` of a GraphQL document."""
    answer = caller.call("POST", "/graphql", {"query": document, "variables": variables}).json
    assert "errors" not in answer, answer
    return answer["data"]


# An execution begun, by each door; each leaves at once.


def begin_by_rest(caller, session, prompt):
    answer = caller.call("POST", f"/v1/sessions/{session}/execute", {"prompt": prompt, "background": True})
    assert answer.status == 202, answer.body
    return answer.json["request_id"]


def begin_by_graphql(caller, session, prompt):
    document = "mutation($s: ID!, $p: String!) { startExecution(sessionId: $s, prompt: $p) { requestId } }"
    return asked(caller, document, s=session, p=prompt)["startExecution"]["requestId"]


def begin_by_websocket(caller, session, prompt):
    with Socket.of(caller) as socket:
        return socket.execute(session, prompt)


BEGIN: dict[str, Callable[[Caller, str, str], str]] = {
    "rest": begin_by_rest,
    "graphql": begin_by_graphql,
    "websocket": begin_by_websocket,
}


@dataclass(frozen=True)
class Seen:
    """An event, the same by whichever door."""

    id: str
    name: str
    content: str | None
    approval_id: str | None = None


class Watcher:
    """Follows an execution by one door, from after an event: `next` until the last, and gone when it is closed."""

    def __init__(self, door: str, caller: Caller, session: str, request_id: str, after: str | None) -> None:
        self._door = door
        if door == "rest":
            headers = {"Last-Event-ID": after} if after else None
            path = f"/v1/sessions/{session}/executions/{request_id}/events"
            self._stream = caller.open("GET", path, headers=headers)
        elif door == "graphql":
            self._graphql = GraphqlSocket(caller.port, {"token": caller.key})
            self._graphql.follow("a", session, request_id, after)
        else:
            self._socket = Socket.of(caller)
            more = {"after": after} if after else {}
            told = self._socket.ask("attach", session_id=session, request_id=request_id, **more)
            assert told["type"] == "attached", told

    def next(self) -> Seen:
        if self._door == "rest":
            event = next(self._stream)
            return Seen(event.id, event.name, event.data.get("content"), event.data.get("approval_id"))
        if self._door == "graphql":
            message = self._graphql.receive()
            assert message["type"] == "next", message
            event = message["payload"]["data"]["executionStream"]
            name = event["type"].lower()
            return Seen(event["id"], name, event["content"] if name == "token" else None)
        event = self._socket.next()
        return Seen(event["event_id"], event["type"], event.get("content"), event.get("approval_id"))

    def close(self) -> None:
        one = {"rest": "_stream", "graphql": "_graphql", "websocket": "_socket"}[self._door]
        getattr(self, one).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def recorded(caller: Caller, session: str, request_id: str) -> list[Seen]:
    """What is kept of an execution that has ended."""
    with caller.open("GET", f"/v1/sessions/{session}/executions/{request_id}/events") as stream:
        return [Seen(one.id, one.name, one.data.get("content")) for one in stream.rest()]


@pytest.mark.parametrize("first", DOORS)
def test_a_client_that_drops_and_comes_back_by_another_door_twenty_times_loses_and_doubles_nothing(me, first):
    session = me.session()
    request_id = BEGIN[first](me, session, PROMPT)
    seen: list[Seen] = []
    for door in islice(cycle(DOORS), 21):
        with Watcher(door, me, session, request_id, seen[-1].id if seen else None) as watcher:
            seen += [watcher.next() for _ in range(4)]
        assert seen[-1].name == "token", "it is still under way"
    with Watcher(first, me, session, request_id, seen[-1].id) as watcher:
        while seen[-1].name == "token":
            seen.append(watcher.next())
    assert seen == recorded(me, session, request_id)
    assert [one.id for one in seen] == [f"{request_id}:{number}" for number in range(1, 202)]
    execution = me.execution(session, request_id)
    assert (execution["status"], execution["response"]) == ("completed", "".join(one.content for one in seen[:-1]))


@pytest.mark.parametrize("door", DOORS)
def test_what_ended_long_ago_is_told_alike_by_each_door(me, door):
    session = me.session()
    request_id = me.ask(session, 'use bash {"command": "echo one"}\nstream 20')["request_id"]
    kept = recorded(me, session, request_id)
    for after in (0, 1, 7):
        with Watcher(door, me, session, request_id, kept[after - 1].id if after else None) as watcher:
            assert [watcher.next() for _ in kept[after:]] == kept[after:]


CUT = """---
bundle: {name: cut, description: d}
session: {orchestrator: {module: loop-basic}, context: {module: context-simple}}
providers: [{module: provider-openai, config: {max_tokens: 5}}]
---
You are brief.
"""


def test_an_answer_that_was_cut_at_its_bound_says_so_on_every_door(me):
    assert me.call("POST", "/v1/profiles", {"name": "cut", "content": CUT}).status == 201
    session, prompt = me.session("cut"), "stream 50"
    result = me.ask(session, prompt)
    assert result["finish_reason"] == "length"
    assert me.execution(session, result["request_id"])["finish_reason"] == "length"
    assert me.asked(session, prompt)[-1].data["finish_reason"] == "length"
    executed = "mutation($s: ID!, $p: String!) { execute(sessionId: $s, prompt: $p) { requestId finishReason } }"
    told = asked(me, executed, s=session, p=prompt)["execute"]
    assert told["finishReason"] == "length"
    listed = "query($s: ID!) { session(id: $s) { executions { edges { node { finishReason } } } } }"
    found = asked(me, listed, s=session)["session"]["executions"]["edges"]
    assert [one["node"]["finishReason"] for one in found] == ["length"] * 3
    followed = "subscription($s: ID!, $r: ID!) { executionStream(sessionId: $s, requestId: $r) { type finishReason } }"
    with GraphqlSocket(me.port, {"token": me.key}) as graphql:
        graphql.subscribe("a", followed, s=session, r=told["requestId"])
        last = graphql.rest("a")[-1]
    assert (last["type"], last["finishReason"]) == ("COMPLETE", "length")
    with Socket.of(me) as socket:
        last = socket.events_of(socket.execute(session, prompt))[-1]
    assert (last["type"], last["finish_reason"]) == ("complete", "length")


def answer_by_rest(caller, session, request_id, approval_id):
    path = f"/v1/sessions/{session}/executions/{request_id}/approvals/{approval_id}"
    answer = caller.call("POST", path, {"approved": True})
    assert answer.status == 200, answer.body


def answer_by_graphql(caller, session, request_id, approval_id):
    document = (
        "mutation($s: ID!, $r: ID!, $a: ID!) {"
        " answerApproval(sessionId: $s, requestId: $r, approvalId: $a, approved: true) { approved } }"
    )
    assert asked(caller, document, s=session, r=request_id, a=approval_id)["answerApproval"]["approved"] is True


def answer_by_websocket(caller, session, request_id, approval_id):
    with Socket.of(caller) as socket:
        told = socket.ask(
            "approval.respond", session_id=session, request_id=request_id, approval_id=approval_id, approved=True
        )
        assert told["type"] == "approval.responded", told


ANSWER = {"rest": answer_by_rest, "graphql": answer_by_graphql, "websocket": answer_by_websocket}


@pytest.mark.parametrize(
    ("begun_by", "seen_by", "answered_by"),
    [("rest", "graphql", "websocket"), ("graphql", "websocket", "rest"), ("websocket", "rest", "graphql")],
)
def test_a_consent_that_is_asked_for_by_one_door_is_given_by_another(me, begun_by, seen_by, answered_by):
    session = asking(me)
    request_id = BEGIN[begun_by](me, session, run("touch done.txt; echo it is done"))
    with Watcher(seen_by, me, session, request_id, None) as watcher:
        while watcher.next().name != "approval":
            pass
        (waiting,) = me.get(f"/v1/sessions/{session}/executions/{request_id}/approvals")["approvals"]
        ANSWER[answered_by](me, session, request_id, waiting["approval_id"])
        names = []
        while not names or names[-1] not in ("complete", "error"):
            names.append(watcher.next().name)
    assert names.count("approval") == 1, "that it was answered is told too, once"
    (call,) = me.execution(session, request_id)["tool_calls"]
    assert call["status"] == "completed"
    assert "it is done" in json.dumps(call)


# The same operation with the same key, by each door.


def create_by_rest(caller, key):
    answer = caller.call("POST", "/v1/sessions", {"profile": "foundation:base"}, {"Idempotency-Key": key})
    return answer.json["session_id"] if answer.status == 201 else answer.code


def create_by_graphql(caller, key):
    document = 'mutation($k: String) { createSession(profile: "foundation:base", idempotencyKey: $k) { id } }'
    answer = caller.call("POST", "/graphql", {"query": document, "variables": {"k": key}}).json
    return answer["errors"][0]["extensions"]["code"] if "errors" in answer else answer["data"]["createSession"]["id"]


def create_by_websocket(caller, key):
    with Socket.of(caller) as socket:
        answer = socket.ask("session.create", profile="foundation:base", idempotency_key=key)
    return answer["session_id"] if answer["type"] == "session.created" else answer["code"]


CREATE = {"rest": create_by_rest, "graphql": create_by_graphql, "websocket": create_by_websocket}


@pytest.mark.parametrize("first", DOORS)
def test_a_repetition_with_its_key_makes_nothing_twice_whichever_door_it_comes_by(me, first):
    key = f"key-of-{first}"
    made = CREATE[first](me, key)
    assert made.startswith("sess_"), made
    assert CREATE[first](me, key) == made
    for other in DOORS:
        assert CREATE[other](me, key) in (made, "idempotency_key_reused"), other
    assert [one["session_id"] for one in me.get("/v1/sessions")["sessions"]] == [made]


@pytest.mark.parametrize("door", DOORS)
def test_a_session_that_one_door_closes_is_closed_to_all(me, door):
    session = me.session()
    if door == "rest":
        assert me.call("DELETE", f"/v1/sessions/{session}").status == 204
    elif door == "graphql":
        assert asked(me, "mutation($s: ID!) { closeSession(sessionId: $s) }", s=session)["closeSession"] is True
    else:
        with Socket.of(me) as socket:
            assert socket.ask("session.close", session_id=session)["type"] == "session.closed"
    assert eventually(lambda: me.status(session) == "closed")
    assert me.execute(session, "hi").code == "session_closed"
    document = 'mutation($s: ID!) { execute(sessionId: $s, prompt: "hi") { response } }'
    answer = me.call("POST", "/graphql", {"query": document, "variables": {"s": session}}).json
    assert answer["errors"][0]["extensions"]["code"] == "session_closed"
    with Socket.of(me) as socket:
        assert socket.ask("execute", session_id=session, prompt="hi")["code"] == "session_closed"
