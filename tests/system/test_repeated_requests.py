"""Idempotency-Key at a real server: a client that repeats until it is answered does everything once."""

import contextlib
import json

from tests.system.server import at_once, eventually

EXPECTED_ERRORS = ("runtime_lost",)


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def execute(me, session: str, key: str, **body):
    return me.call("POST", f"/v1/sessions/{session}/execute", body, keyed(key))


def test_a_repeated_stream_attaches_to_what_runs(server, me):
    session, asked = me.session(), {"prompt": "stream 60 at 40/s", "stream": True}
    path = f"/v1/sessions/{session}/execute"
    with me.open("POST", path, asked, keyed("a")) as first:
        begun = first.take(5)
        with me.open("POST", path, asked, keyed("a")) as second:
            assert second.headers["idempotent-replayed"] == "true"
            again = second.rest()
        events = begun + first.rest()
    assert [(one.id, one.name, one.data) for one in again] == [(one.id, one.name, one.data) for one in events]
    with me.open("POST", path, asked, keyed("a")) as third:
        assert [one.id for one in third.rest()] == [one.id for one in events], "and afterwards"
    assert len(me.get(f"/v1/sessions/{session}/executions")["executions"]) == 1


def test_a_client_that_hung_up_gets_its_answer_by_asking_again(server, me):
    session, asked = me.session(), {"prompt": "stream 40 at 40/s", "stream": True}
    path, seen, place = f"/v1/sessions/{session}/execute", [], {}
    for _ in range(20):
        with contextlib.closing(me.open("POST", path, asked, keyed("b") | place)) as stream:
            for event in stream:
                seen.append(event)
                place = {"Last-Event-ID": event.id}
                if len(seen) % 4 == 0 or event.name == "complete":
                    break
        if seen[-1].name == "complete":
            break
    assert [one.number for one in seen] == list(range(seen[0].number, seen[0].number + len(seen)))
    assert seen[-1].name == "complete"
    assert len(me.get(f"/v1/sessions/{session}/executions")["executions"]) == 1


def test_many_at_once_make_one_session(server, me):
    def create():
        return me.call("POST", "/v1/sessions", {"profile": "foundation:base"}, keyed("c"))

    found = at_once([create] * 40)
    assert {one.status for one in found} <= {201, 409}
    assert {one.code for one in found if one.status == 409} <= {"idempotency_in_flight"}
    sessions = {one["session_id"] for one in me.get("/v1/sessions?limit=200")["sessions"]}
    made = {one.json["session_id"] for one in found if one.status == 201}
    assert len(made) == 1
    assert made <= sessions
    assert create().json["session_id"] in made


def test_an_execution_that_dies_with_its_server_is_not_run_again(make_server):
    server = make_server().start()
    me = server.caller()
    session = me.session()
    asked = {"prompt": "stream 2000 at 40/s", "stream": True}
    with contextlib.closing(me.open("POST", f"/v1/sessions/{session}/execute", asked, keyed("d"))) as stream:
        request_id = stream.take(3)[0].request_id
        server.kill()
    server.start()
    me = server.caller()
    with me.open("POST", f"/v1/sessions/{session}/execute", asked, keyed("d")) as again:
        last = again.rest()[-1]
    assert (last.name, last.data["code"], last.request_id) == ("error", "runtime_lost", request_id)
    assert len(me.get(f"/v1/sessions/{session}/executions")["executions"]) == 1
    server.stop()


def test_answers_outlive_the_server(make_server):
    server = make_server().start()
    me = server.caller()
    made = me.call("POST", "/v1/keys", {"name": "x", "role": "developer"}, keyed("e"))
    session = me.session()
    said = execute(me, session, "f", prompt="hello")
    server.kill()
    server.start()
    me = server.caller()
    again = me.call("POST", "/v1/keys", {"name": "x", "role": "developer"}, keyed("e"))
    assert (again.status, again.body, again.headers["idempotent-replayed"]) == (201, made.body, "true")
    assert execute(me, session, "f", prompt="hello").json == said.json
    stored = b"".join(path.read_bytes() for path in server.data_dir.glob("amplifier.db*"))
    assert made.json["key"].encode() not in stored
    assert made.json["key"] not in server.log
    server.stop()


def test_a_server_that_is_killed_at_any_moment_makes_each_thing_once(make_server):
    """Clients repeat every request until it is answered for good, while the server dies again and again."""
    server = make_server().start()
    wanted, answered = [f"key {number}" for number in range(60)], {}
    for round_number in range(6):
        me = server.caller()
        left = [name for name in wanted if name not in answered]

        def create(name, me=me):
            with contextlib.suppress(OSError, AssertionError, json.JSONDecodeError):
                answer = me.call("POST", "/v1/keys", {"name": name, "role": "developer"}, keyed(name.replace(" ", "-")))
                if answer.status == 201 or answer.code == "idempotency_lost":
                    answered[name] = answer

        def kill(last=round_number == 5, left=left):
            if not last:
                eventually(lambda: len(answered) > len(wanted) - len(left) + 6, 5, every_seconds=0.001)
                server.kill()

        at_once([kill, *(lambda name=name: create(name) for name in left)])
        if round_number < 5:
            server.start()
    me, names = server.caller(), []
    cursor = ""
    while cursor is not None:
        page = me.get(f"/v1/keys?limit=200{cursor}")
        names += [one["name"] for one in page["keys"] if one["name"].startswith("key ")]
        cursor = f"&cursor={page['next_cursor']}" if page["next_cursor"] else None
    assert sorted(names) == sorted(set(names)), "nothing was made twice"
    assert set(answered) == set(wanted)
    assert sorted(names) == sorted(wanted), "and nothing is missing, told or not"
    server.stop()
