"""`GET /v1/events` of a real server: resumed after anything, ended for who may read no more."""

import contextlib
import random

from tests.system.server import FREE, Caller, at_once, eventually

EXPECTED_ERRORS = ("runtime_lost",)
EVENTS = "/v1/events"


def number(event) -> int:
    return int(event.id.removeprefix("evt_"))


def rename(me: Caller, session: str, title: str) -> None:
    assert me.call("PATCH", f"/v1/sessions/{session}", {"title": title}).status == 200


def titles(events) -> list[str]:
    return [one.data["data"]["title"] for one in events if one.name == "session.updated"]


def test_a_tenants_day_is_told_as_it_happens(server, me):
    with me.open("GET", EVENTS) as stream:
        session = me.session()
        request_id = me.ask(session, "hello")["request_id"]
        made = me.call("POST", "/v1/keys", {"name": "x", "role": "developer"}).json
        assert me.call("DELETE", f"/v1/keys/{made['id']}").status == 204
        assert me.call("DELETE", f"/v1/sessions/{session}").status == 204
        events = stream.take(7)
    assert [one.name for one in events] == [
        "session.created",
        "execution.started",
        "execution.completed",
        "member.added",
        "key.created",
        "key.revoked",
        "session.closed",
    ]
    started, completed = events[1].data, events[2].data
    assert started["data"]["request_id"] == completed["data"]["request_id"] == request_id
    assert started["data"]["session_id"] == session
    assert all(one.data["id"] == one.id and one.data["type"] == one.name for one in events)
    assert sorted(map(number, events)) == list(map(number, events))
    assert made["key"] not in stream.raw.decode()
    assert "hello" not in stream.raw.decode(), "no prompt is in an event"


def test_another_tenants_events_are_its_own(server, me):
    other = server.tenant(**FREE)
    with me.open("GET", EVENTS) as stream:
        rename(other, other.session(), "theirs")
        rename(me, me.session(), "mine")
        assert [one.data["data"].get("title") for one in stream.take(2)] == [None, "mine"]


def test_types_are_chosen(server, me):
    with me.open("GET", EVENTS + "?types=session.updated,session.closed") as stream:
        session = me.session()
        rename(me, session, "one")
        me.call("DELETE", f"/v1/sessions/{session}")
        assert [one.name for one in stream.take(2)] == ["session.updated", "session.closed"]


def test_what_can_not_be_asked_is_refused(server, me):
    for query, headers, code in (
        ("?types=nothing", {}, "invalid_request"),
        ("?after=evt_x", {}, "invalid_event_id"),
        ("?from=yesterday", {}, "invalid_request"),
        ("", {"Last-Event-ID": "req_1:2"}, "invalid_event_id"),
    ):
        answer = me.call("GET", EVENTS + query, headers=headers)
        assert (answer.status, answer.code) == (422, code), query
    answer = me.call("GET", EVENTS + "?after=evt_999999999999999999")
    assert (answer.status, answer.code) == (410, "events_gone")
    answer = server.operator().call("GET", EVENTS)
    assert (answer.status, answer.code) == (403, "forbidden")


def test_twenty_reconnects_lose_and_double_nothing(server, me):
    """A writer that never rests, and a reader that leaves after a few events each time."""
    session, count, chance = me.session(), 300, random.Random(7)
    begun = me.get(f"/v1/sessions/{session}")
    assert begun["title"] is None

    def write() -> None:
        for title in range(count):
            rename(me, session, str(title))

    def read() -> list:
        found, place = [], None
        for turn in range(21):
            query = f"?after={place}" if place and turn % 2 else ""
            headers = {"Last-Event-ID": place} if place and not turn % 2 else {}
            path = EVENTS + (query or ("" if place else "?from=start"))
            with me.open("GET", path, headers=headers) as stream:
                for event in stream:
                    found.append(event)
                    place = event.id
                    if (turn < 20 and chance.random() < 0.08) or len(titles(found)) == count:
                        break
            if len(titles(found)) == count and turn >= 20:
                break
        return found

    events = at_once([read, write])[0]
    assert titles(events) == [str(title) for title in range(count)]
    assert len({one.id for one in events}) == len(events)


def test_a_reader_goes_on_after_a_restart(make_server):
    server = make_server().start()
    me = server.caller()
    session = me.session()
    with me.open("GET", EVENTS) as stream:
        rename(me, session, "one")
        place = next(stream).id
        rename(me, session, "two")
        server.stop()
        assert titles(stream.rest()) == ["two"], "what had happened is told, and the stream ends as a whole one does"
    server.start()
    me = server.caller()
    rename(me, session, "three")
    with me.open("GET", EVENTS, headers={"Last-Event-ID": place}) as stream:
        assert titles(stream.take(2)) == ["two", "three"]
    server.stop()


def test_a_killed_server_told_what_it_had_committed(make_server):
    server = make_server().start()
    me = server.caller()
    session = me.session()
    with me.open("GET", EVENTS) as stream:
        for title in range(20):
            rename(me, session, str(title))
        seen = stream.take(5)
        server.kill()
    server.start()
    me = server.caller()
    with me.open("GET", EVENTS + f"?after={seen[-1].id}&types=session.updated") as stream:
        assert titles(seen) + titles(stream.take(15)) == [str(title) for title in range(20)]
    server.stop()


def test_a_turn_that_dies_with_its_server_is_told_as_failed(make_server):
    server = make_server().start()
    me = server.caller()
    session = me.session()
    with me.open("GET", EVENTS) as stream, contextlib.closing(me.stream(session, "stream 2000 at 40/s")) as running:
        running.take(2)
        started = next(stream)
        server.kill()
    server.start()
    with server.caller().open("GET", EVENTS + f"?after={started.id}") as stream:
        ended = next(stream)
    assert (ended.name, ended.data["data"]["code"]) == ("execution.failed", "runtime_lost")
    assert ended.data["data"]["request_id"] == started.data["data"]["request_id"]
    server.stop()


def test_who_may_read_no_more_reads_no_more(server, me):
    made = me.call("POST", "/v1/keys", {"name": "x", "role": "readonly"}).json
    reader = Caller(server.port, made["key"])
    with reader.open("GET", EVENTS) as stream, me.open("GET", EVENTS + "?types=key.revoked") as mine:
        assert me.call("DELETE", f"/v1/keys/{made['id']}").status == 204
        with contextlib.suppress(Exception):  # it breaks off, in the middle of nothing
            stream.rest()
        assert next(mine).name == "key.revoked", "who still may, reads on"


def test_the_command_line_is_heard_too(make_server):
    """It writes to the same database, and tells nobody."""
    import subprocess
    import sys

    server = make_server().start()
    with server.caller().open("GET", EVENTS + "?types=key.created") as stream:
        command = [sys.executable, "-m", "amplifier_api_server.control_plane.cli", "keys", "create", "by hand"]
        script = (
            f"import sys; from amplifier_api_server.control_plane.cli import app; sys.argv = {command[2:]!r}; app()"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, "--data-dir", str(server.data_dir)],
            env={"PATH": "", "DATA_DIR": str(server.data_dir)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert next(stream).data["data"]["name"] == "by hand"
    server.stop()


def test_a_reader_that_hangs_up_gives_its_place_back(make_server):
    server = make_server(AMPLIFIER_EVENTS__MAX_READERS="2").start()
    me = server.caller()
    with me.open("GET", EVENTS), me.open("GET", EVENTS):
        answer = me.call("GET", EVENTS)
        assert (answer.status, answer.code) == (429, "event_readers_exceeded")

    def again() -> bool:
        with contextlib.suppress(AssertionError):
            me.open("GET", EVENTS).close()
            return True
        return False

    assert eventually(again)
    server.stop()
