"""What time and signals do to sessions: suspension, waking, age, a runtime that hangs, a stop with turns under way."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.server import FREE, alive, at_once, command, eventually

EXPECTED_ERRORS = ("runtime_lost", "stopping", "turn_cancelled")


@pytest.fixture(scope="module")
def settings():
    return {"AMPLIFIER_SESSIONS__IDLE_TIMEOUT": "1500ms", "AMPLIFIER_SANDBOX__IDLE_TIMEOUT": "1s"}


def is_suspended(caller, session):
    return eventually(lambda: caller.status(session) == "suspended")


def test_an_idle_session_suspends_and_wakes_with_everything(server, me):
    session = me.session(topic="birds")
    me.ask(session, "remember the plover")
    me.tool(session, "bash", command="mkdir -p deep/er && echo nest > deep/er/eggs.txt && chmod 700 deep")
    me.tool(session, "todo", action="create", todos=[{"content": "count the eggs", "status": "in_progress"}])
    assert is_suspended(me, session)
    before = me.messages(session)
    assert before
    assert me.limit("concurrent_sessions")["used"] == 0, "a suspended session holds no place"
    assert me.limit("sessions_per_user")["used"] == 1
    assert eventually(lambda: me.limit("sandboxes")["used"] == 0), "its sandbox ends"

    assert "nest" in me.shell(session, "cat deep/er/eggs.txt")
    assert me.status(session) == "active"
    assert "count the eggs" in str(me.tool(session, "todo", action="list"))
    assert me.messages(session)[: len(before)] == before
    assert me.limit("concurrent_sessions")["used"] == 1


def test_a_session_that_is_used_does_not_suspend(server, me):
    session = me.session()
    with me.stream(session, "stream 60 at 20/s") as stream:
        assert stream.rest()[-1].name == "complete", "a turn longer than the idle time-out"
    assert me.status(session) == "active"


def test_finished_turns_replay_from_a_suspended_session(server, me):
    session = me.session()
    with me.stream(session, "stream 20 at 200/s") as stream:
        request_id = stream.rest()[0].request_id
        live = stream.raw
    assert is_suspended(me, session)
    with me.open("GET", f"/v1/sessions/{session}/executions/{request_id}/events") as replay:
        replay.rest()
        assert replay.raw == live
    assert me.status(session) == "suspended", "reading wakes nobody"


@pytest.mark.parametrize("streams", [False, True])
def test_waking_is_single_flight(server, me, streams):
    session = me.session()
    me.ask(session, "before")
    assert is_suspended(me, session)
    body = {"prompt": "stream 30 at 30/s", "stream": streams}
    answers = at_once([lambda: me.call("POST", f"/v1/sessions/{session}/execute", body)] * 20)
    assert sorted(answer.status for answer in answers) == [200] + [409] * 19
    assert {answer.code for answer in answers if answer.status == 409} == {"turn_running"}
    assert [m["role"] for m in me.messages(session)] == ["user", "assistant"] * 2
    assert me.usage()["totals"]["turns"] == 2


def test_many_sessions_wake_side_by_side(server, me):
    sessions = [me.session() for _ in range(6)]
    for session in sessions:
        me.tool(session, "bash", command=f"echo {session} > own.txt")
    for session in sessions:
        assert is_suspended(me, session)
    found = at_once([lambda session=session: me.shell(session, "cat own.txt") for session in sessions])
    assert all(session in text for session, text in zip(sessions, found, strict=True))


def test_a_session_closes_while_it_is_suspended(server, me):
    session = me.session()
    me.ask(session, "words")
    assert is_suspended(me, session)
    assert me.call("DELETE", f"/v1/sessions/{session}").status == 204
    answer = me.execute(session, "x")
    assert (answer.status, answer.code) == (410, "session_closed")
    assert "words" in me.texts(session)
    assert me.limit("sessions_per_user")["used"] == 0


class TestCancel:
    def test_a_streaming_turn(self, server, me):
        session = me.session()
        with me.stream(session, "stream 2000 at 40/s") as stream:
            first = stream.take(3)[0]
            answer = me.call("POST", f"/v1/sessions/{session}/executions/{first.request_id}/cancel")
            last = stream.rest()[-1]
        assert answer.json == {"request_id": first.request_id, "status": "cancelled"}
        assert (last.name, last.data["code"]) == ("error", "turn_cancelled")
        assert me.ask(session, "after")["response"]

    def test_a_tool_that_sleeps(self, server, me):
        session = me.session()
        with me.stream(session, 'use bash {"command": "sleep 77"}') as stream:
            first = next(stream)
            assert eventually(lambda: [p for p in server.sandboxed() if command(p).startswith("sleep 77")])
            me.call("POST", f"/v1/sessions/{session}/executions/{first.request_id}/cancel")
            events = stream.rest()
        assert [(e.name, e.data.get("status")) for e in events[:-1]] == [("tool_call", "failed")]
        assert events[-1].data["code"] == "turn_cancelled"
        assert eventually(lambda: not [p for p in server.sandboxed() if command(p).startswith("sleep 77")])
        assert "42" in me.shell(session, "echo $((6*7))")

    def test_twice_and_after_the_end(self, server, me):
        session = me.session()
        done = me.ask(session, "x")
        path = f"/v1/sessions/{session}/executions/{done['request_id']}/cancel"
        assert [me.call("POST", path).json["status"] for _ in range(2)] == ["completed"] * 2

    def test_as_it_wakes_up(self, server, me):
        """A turn that is cancelled before it could begin never begins."""
        session = me.session()
        me.ask(session, "before")
        assert is_suspended(me, session)
        for _ in range(3):
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(me.execute, session, "stream 200 at 40/s")
                holders = eventually(lambda: me.limit("tokens_per_day")["holders"], 2)
                if holders:
                    me.call("POST", f"/v1/sessions/{session}/executions/{holders[0]}/cancel")
                answer = waiting.result()
            assert answer.status in (200, 409)
        assert me.ask(session, "after")["response"]
        assert me.limit("tokens_per_day")["reserved"] == 0


def test_closing_a_session_ends_its_turn_and_its_files(server, me):
    session = me.session()
    me.shell(session, "echo secret > eggs.txt")
    with me.stream(session, "stream 2000 at 40/s") as stream:
        stream.take(3)
        assert me.call("DELETE", f"/v1/sessions/{session}").status == 204
        last = stream.rest()[-1]
    assert (last.name, last.data["code"]) == ("error", "turn_cancelled")
    left = [path for path in server.data_dir.rglob("*") if session in path.parts]
    assert not left
    assert me.limit("concurrent_sessions")["used"] == 0


def test_old_sessions_close_by_age(make_server):
    server = make_server(AMPLIFIER_SESSIONS__MAX_DURATION="2s").start()
    me = server.tenant(**FREE)
    session = me.session()
    me.ask(session, "words")
    assert eventually(lambda: me.status(session) == "closed")
    assert me.execute(session, "x").status == 410
    assert "words" in me.texts(session)
    # It says `closed` as soon as that is written; its place is free when it has left its sandbox.
    assert eventually(lambda: me.limit("sessions_per_user")["used"] == 0)
    assert me.limit("concurrent_sessions")["used"] == 0
    server.stop()


class TestStopping:
    def test_with_turns_under_way(self, make_server):
        server = make_server().start()
        me = server.tenant(**FREE)
        session, tool_session = me.session(), me.session()
        me.ask(session, "before")
        with (
            me.stream(session, "stream 2000 at 40/s") as stream,
            me.stream(tool_session, 'use bash {"command": "sleep 78"}') as tools,
            ThreadPoolExecutor(1) as pool,
        ):
            stream.take(3)
            next(tools)
            stopping = pool.submit(server.stop)
            ends = stream.rest()[-1], tools.rest()[-1]
            stopping.result()
        assert [(end.name, end.data["code"]) for end in ends] == [("error", "stopping")] * 2
        assert not server.left()
        server.start()
        me.port = server.port
        assert [m["content"] for m in me.messages(session) if m["role"] == "user"][:1] == ["before"]
        assert me.execution(session, ends[0].request_id)["status"] == "cancelled", "it says what it did so far"
        assert me.ask(session, "after")["response"]
        server.stop()

    def test_a_short_turn_may_end(self, make_server):
        server = make_server(AMPLIFIER_SERVER__DRAIN_TIMEOUT="120s").start()
        me = server.tenant(**FREE)
        session = me.session()
        with me.stream(session, "stream 40 at 40/s") as stream, ThreadPoolExecutor(1) as pool:
            stream.take(3)
            stopping = pool.submit(server.stop)
            assert stream.rest()[-1].name == "complete"
            stopping.result()
        server.start()
        me.port = server.port
        assert len(me.messages(session)) == 2
        server.stop()

    def test_twice_over(self, make_server):
        server = make_server().start()
        me = server.tenant(**FREE)
        with me.stream(me.session(), "stream 2000 at 40/s") as stream:
            stream.take(1)
            members = server.tree()
            for _ in range(3):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.05)
            stream.rest()
        assert eventually(lambda: server.process.poll() is not None)
        assert eventually(lambda: not alive(members) and not server.left())
