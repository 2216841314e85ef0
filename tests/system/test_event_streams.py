"""Streams of events: leaving and coming back, watching from the side, replaying, as a browser or a script would."""

import pytest

from tests.system.server import FREE, Caller, Event, at_once, eventually

EXPECTED_ERRORS = ("turn_cancelled",)


@pytest.fixture(scope="module")
def settings():
    return {"AMPLIFIER_SESSIONS__IDLE_TIMEOUT": "60s"}


def path(session: str, request_id: str) -> str:
    return f"/v1/sessions/{session}/executions/{request_id}/events"


def watch(caller: Caller, session: str, request_id: str, after: str | None = None):
    return caller.open("GET", path(session, request_id), headers={"Last-Event-ID": after} if after else None)


def test_leaving_and_coming_back_twenty_times_loses_and_doubles_nothing(me):
    session = me.session()
    with me.stream(session, "stream 150 at 60/s") as stream:
        seen: list[Event] = stream.take(3)
    raw = b""
    for _ in range(20):
        with watch(me, session, seen[-1].request_id, seen[-1].id) as stream:
            seen += stream.take(3)
        assert seen[-1].name == "token", "the turn is still under way: it does not depend on who watches"
    with watch(me, session, seen[-1].request_id, seen[-1].id) as stream:
        seen += stream.rest()
    assert [event.number for event in seen] == list(range(1, 152))
    assert seen[-1].name == "complete"
    said = "".join(event.data["content"] for event in seen[:-1])
    assert said == seen[-1].data["response"]
    with watch(me, session, seen[0].request_id) as stream:
        assert stream.rest() == seen
        raw = stream.raw
    assert raw.count(b"\n\n") == 151


def test_two_watchers_see_the_same_bytes(me):
    session = me.session()
    with me.stream(session, "stream 60 at 60/s") as first:
        start = next(first)
        with (
            watch(me, session, start.request_id) as second,
            watch(me, session, start.request_id, f"{start.request_id}:1") as third,
        ):
            events = [start, *first.rest()]
            assert second.rest() == events
            assert third.rest() == events[1:]
            assert second.raw == first.raw


def test_a_watcher_who_does_not_read_holds_nobody_up(me):
    session = me.session()
    with me.stream(session, "stream 5000 at 20000/s") as slow:
        start = next(slow)
        with watch(me, session, start.request_id) as other:
            assert other.rest()[-1].name == "complete"
        assert slow.rest()[-1].name == "complete"


def test_a_finished_turn_replays_byte_for_byte(me):
    session = me.session()
    with me.stream(session, 'use bash {"command": "echo one"}\nstream 20') as stream:
        events = stream.rest()
        live = stream.raw
    assert [event.name for event in events[:2]] == ["tool_call", "tool_call"]
    for after in (0, 1, 2, 5, len(events) - 1):
        with watch(me, session, events[0].request_id, f"{events[0].request_id}:{after}") as replay:
            assert replay.rest() == events[after:]
            assert live.endswith(replay.raw)


def test_who_has_read_it_all_is_told_to_come_back_no_more(me):
    """An EventSource comes back after every end of a stream but 204 (WHATWG HTML, 9.2)."""
    session = me.session()
    body, key = {"prompt": "stream 3", "stream": True}, {"Idempotency-Key": "once"}
    with me.open("POST", f"/v1/sessions/{session}/execute", body, key) as stream:
        last = stream.rest()[-1]
    for number in (last.number, last.number + 100):
        seen = {"Last-Event-ID": f"{last.request_id}:{number}"}
        answer = me.call("GET", path(session, last.request_id), headers=seen)
        assert (answer.status, answer.body) == (204, b"")
        with me.open("POST", f"/v1/sessions/{session}/execute", body, key | seen) as stream:
            assert stream.rest() == [], "a POST is no EventSource's: an empty stream is what its client can read"


def test_after_a_restart_too(make_server):
    server = make_server().start()
    me = server.tenant(**FREE)
    session = me.session()
    with me.stream(session, "stream 20") as stream:
        request_id = stream.rest()[0].request_id
        live = stream.raw
    server.stop()
    server.start()
    me.port = server.port
    with watch(me, session, request_id) as replay:
        replay.rest()
        assert replay.raw == live
    server.stop()


@pytest.mark.parametrize(
    "value", ["req_other:1", "1", ":1", "{id}:", "{id}:-1", "{id}:1.5", "{id}:x", "{id}:99999999999", "{id}"]
)
def test_an_event_id_of_something_else_is_refused(me, value):
    session = me.session()
    request_id = me.ask(session, "x")["request_id"]
    answer = me.call("GET", path(session, request_id), headers={"Last-Event-ID": value.replace("{id}", request_id)})
    assert (answer.status, answer.code) == (422, "invalid_event_id")


def test_the_client_who_left_finds_its_turn_complete(me):
    session = me.session()
    with me.stream(session, "stream 60 at 60/s") as stream:
        request_id = next(stream).request_id
    assert eventually(lambda: me.execution(session, request_id)["status"] == "completed")
    assert len(me.messages(session)) == 2


def test_a_caller_who_hangs_up_without_a_stream_does_not_end_the_turn(me):
    session = me.session()
    impatient = Caller(me.port, me.key, timeout_seconds=0.4)
    with pytest.raises(TimeoutError):
        impatient.execute(session, "stream 60 at 60/s")
    assert me.execute(session, "x").status == 409
    assert eventually(lambda: len(me.messages(session)) == 2)


def test_a_silent_stream_is_kept_open_by_comments(me):
    session = me.session()
    with me.stream(session, 'use bash {"command": "sleep 16"}') as stream:
        events = stream.rest()
        assert stream.comments
    assert [event.name for event in events if event.name != "token"] == ["tool_call", "tool_call", "complete"]


def test_many_streams_at_once(me):
    sessions = [me.session() for _ in range(20)]
    found = at_once([lambda one=one: me.asked(one, "stream 60 at 60/s") for one in sessions])
    for events in found:
        assert [event.number for event in events] == list(range(1, 62))
        assert {event.request_id for event in events} == {events[0].request_id}
    assert len({events[0].request_id for events in found}) == 20


def test_the_heads_of_a_stream(me):
    session = me.session()
    with me.stream(session, "x") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-request-id"]
        assert "x-ratelimit-limit" in stream.headers or me.limit("requests_per_minute")["limit"] is None
        stream.rest()
