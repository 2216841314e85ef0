"""SIGSTOP of a runtime: its process is there, and says nothing more."""

import os
import signal

from tests.system.server import FREE, Caller, alive, at_once, eventually

EXPECTED_ERRORS = ("runtime_lost", "turn_cancelled")


def test_cancelling_does_not_wait_for_it(server, me):
    session = me.session()
    me.ask(session, "before")
    with me.stream(session, "stream 2000 at 40/s") as stream:
        first = stream.take(3)[0]
        pid = server.runtime_of(session)
        os.kill(pid, signal.SIGSTOP)
        answer = me.call("POST", f"/v1/sessions/{session}/executions/{first.request_id}/cancel")
        assert (answer.status, answer.json["status"]) == (200, "cancelled")
        last = stream.rest()[-1]
    assert (last.name, last.data["code"]) == ("error", "turn_cancelled")
    assert me.limit("tokens_per_day")["reserved"] == 0
    assert me.ask(session, "after")["response"]
    assert eventually(lambda: not alive([pid]))
    assert users(me, session) == ["before", "after"]


def test_without_a_cancel_the_reconciler_ends_it_and_the_session_goes_on(server):
    """Three at once, because it waits a while before it gives a silent runtime up."""
    at_once([lambda one=one: one(server, server.tenant(**FREE)) for one in (in_mid_turn, between_turns, by_a_tool)])


def in_mid_turn(server, me: Caller) -> None:
    session = me.session()
    me.ask(session, "before")
    with me.stream(session, "stream 4000 at 40/s") as stream:
        stream.take(3)
        os.kill(server.runtime_of(session), signal.SIGSTOP)
        last = stream.rest()[-1]
    assert (last.name, last.data["code"]) == ("error", "runtime_lost")
    assert me.ask(session, "after")["response"]
    assert users(me, session) == ["before", "after"]


def between_turns(server, me: Caller) -> None:
    session = me.session()
    me.ask(session, "before")
    os.kill(server.runtime_of(session), signal.SIGSTOP)
    goes_on(me, session)


def by_a_tool(server, me: Caller) -> None:
    """Of the same user, it may; it harms nobody but its own tenant."""
    session = me.session()
    answer = me.execute(
        session, 'use bash {"command": "for p in $(ls /proc | grep -E ^[0-9]+$); do kill -STOP $p; done"}'
    )
    assert answer.status in (200, 502)
    goes_on(me, session)


def goes_on(me: Caller, session: str) -> None:
    assert eventually(lambda: me.execute(session, "after").status == 200, every_seconds=0.5)


def users(me: Caller, session: str) -> list[str]:
    return [message["content"] for message in me.messages(session) if message["role"] == "user"]
