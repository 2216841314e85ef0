"""A module that speaks to the control plane by itself: it can spend its own tenant's budget, and nothing else.

It has the runtime's own way out, the gateway's socket, and knows every id there is.
"""

import json

import pytest

from tests.system.evil import attacker, evil_archive, install
from tests.system.server import FREE

EXPECTED_ERRORS = ("stale_checkpoint", "not_durable", "runtime_lost", "turn_failed", "runtime refused")


@pytest.fixture(scope="module")
def mallory(server):
    caller = server.tenant("mallory", **FREE)
    install(caller, evil_archive())
    return caller


@pytest.fixture
def attack(mallory):
    return attacker(mallory, "module")


@pytest.fixture
def victim(server):
    """A tenant with a turn under way: who, which session, which turn."""
    caller = server.tenant("victim", tokens_per_day=100_000, requests_per_minute="unlimited")
    session = caller.session()
    caller.ask(session, "my own words")
    with caller.stream(session, "stream 3000 at 40/s") as stream:
        turn = next(stream).request_id
        yield caller, session, turn
        caller.call("POST", f"/v1/sessions/{session}/executions/{turn}/cancel")
        stream.rest()


CHAT = {"model": "default", "messages": [{"role": "user", "content": "stream 50"}], "max_tokens": 60}


def chat(header: str) -> str:
    return f"""
import json
body = json.dumps({CHAT!r}).encode()
found["answer"] = gateway("POST", "/v1/chat/completions", body, {([header] if header else [])!r})
"""


def checkpoint(session: str, turn: str, **more) -> str:
    body = {
        "session_id": session,
        "request_id": turn,
        "status": "completed",
        "base": 2,
        "messages": [{"role": "user", "content": "forged"}, {"role": "assistant", "content": "forged"}],
        "response": "forged",
        **more,
    }
    return f"""
import json
body = json.dumps({body!r}).encode()
found["answer"] = gateway("POST", "/turns/{turn}/checkpoint", body)
"""


OWN_TURN = "turn = coordinator.get_capability('amplifier_api_server.turn_port').current()\n"


class TestModelCalls:
    @pytest.mark.parametrize(
        "header", ["", "X-Amplifier-Turn: ", "X-Amplifier-Turn: req_nobody", "X-Amplifier-Turn: \u00ff"]
    )
    def test_without_a_turn_of_ones_own_there_is_none(self, attack, header):
        status, text = attack.found(chat(header))["answer"]
        assert 400 <= status < 500
        assert "choices" not in text

    def test_another_tenants_turn_is_none(self, attack, victim):
        caller, session, turn = victim
        before = attack.caller.usage()["totals"]["total_tokens"]
        status, text = attack.found(chat(f"X-Amplifier-Turn: {turn}"))["answer"]
        assert 400 <= status < 500
        assert "choices" not in text
        last = attack.caller.usage()["totals"]["total_tokens"]
        assert last > before, "its own turn is counted, to itself"
        victims = caller.usage("session")["usage"]
        assert [row["turns"] for row in victims if row["key"] == session] == [1]

    def test_ones_own_turn_pays(self, attack):
        before = attack.caller.usage()["totals"]
        code = OWN_TURN + chat("X-Amplifier-Turn: MINE").replace(
            "'X-Amplifier-Turn: MINE'", "'X-Amplifier-Turn: ' + turn.request_id"
        )
        status, text = attack.found(code)["answer"]
        assert status == 200
        said = json.loads(text)["usage"]["completion_tokens"] if text.startswith("{") else 50
        after = attack.caller.usage()["totals"]
        assert after["completion_tokens"] - before["completion_tokens"] >= said == 50

    @pytest.mark.parametrize(
        "path",
        ["/v1/sessions", "/v1/keys", "/metrics", "/health", "/turns/x", "/v1/models/../../v1/keys", "//", "/%2e%2e"],
    )
    def test_nothing_else_is_there(self, attack, path):
        found = attack.found(
            f"found['get'] = gateway('GET', {path!r})\nfound['post'] = gateway('POST', {path!r}, b'{{}}')"
        )
        assert found["get"][0] == found["post"][0] == 404

    def test_what_is_no_http_harms_nobody(self, attack):
        found = attack.found("""
            import os, socket
            for data in (b"\\0" * 5000, b"GET / HTTP/1.1\\r\\n" + b"a: b\\r\\n" * 20000, b"POST /v1/chat/completions HTTP/1.1\\r\\n"
                         b"Host: x\\r\\nContent-Length: 99999999999999999999\\r\\n\\r\\n", os.urandom(100000)):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(2)
                    sock.connect(GATEWAY)
                    try:
                        sock.sendall(data)
                        while sock.recv(65536):
                            pass
                    except OSError:
                        pass
            found["models"] = gateway("GET", "/v1/models")
            """)
        assert found["models"][0] == 200

    def test_connections_that_say_nothing_take_no_place_from_others(self, server, me):
        session = me.session()
        other = server.tenant("mallory too")
        install(other, evil_archive())
        attack = attacker(other, "module")
        attack.found("""
            import socket
            kept = coordinator.__dict__.setdefault("kept_open", [])
            for _ in range(600):
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(0.2)
                try:
                    sock.connect(GATEWAY)
                    sock.send(b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 100\\r\\n\\r\\n")
                    kept.append(sock)
                except OSError:
                    sock.close()
                    break
            """)
        assert me.ask(session, "are you well?")["response"]

    def test_the_providers_key_is_nowhere(self, attack):
        found = attack.found(
            "found['models'] = gateway('GET', '/v1/models')\nfound['env'] = dict(__import__('os').environ)"
        )
        assert "sk-" not in json.dumps(found)
        assert "Bearer" not in json.dumps(found)


class TestCheckpoints:
    def test_another_tenants_turn_cannot_be_ended(self, attack, victim):
        caller, session, turn = victim
        status, _ = attack.found(checkpoint(session, turn))["answer"]
        assert status == 404
        assert caller.execution(session, turn)["status"] == "running"
        assert "forged" not in caller.texts(session)

    def test_nor_written_to_by_ones_own_turn(self, attack, victim):
        caller, session, _ = victim
        code = OWN_TURN + checkpoint(session, "MINE").replace("'request_id': 'MINE'", "'request_id': turn.request_id")
        code = code.replace('"/turns/MINE/checkpoint"', 'f"/turns/{turn.request_id}/checkpoint"')
        status, _ = attack.found(code)["answer"]
        assert status == 404
        assert "forged" not in caller.texts(session)

    def test_usage_in_it_is_refused_and_counts_nothing(self, attack):
        before = attack.caller.usage()["totals"]
        mine = own(checkpoint(attack.session_id, "MINE", base=0, usage={"prompt_tokens": 0, "total_tokens": -5}))
        status, _ = attack.found(mine)["answer"]
        assert status == 422
        after = attack.caller.usage()["totals"]
        assert after["total_tokens"] > before["total_tokens"]
        assert after["turns"] == before["turns"] + 1

    def test_ones_own_turn_ended_early_is_paid_for_all_the_same(self, attack):
        before = attack.caller.usage()["totals"]
        prompt = attack.prompt(own(checkpoint(attack.session_id, "MINE", base=0)))
        events = attack.caller.asked(attack.session_id, prompt)
        assert [event.name for event in events].count("complete") == 1
        assert events[-1].name == "complete"
        after = attack.caller.usage()["totals"]
        assert after["total_tokens"] > before["total_tokens"]
        assert after["turns"] == before["turns"] + 1
        answers = [attack.caller.execute(attack.session_id, "after").status for _ in range(3)]
        assert answers[-1] == 200, "its own idea of the transcript was wrong; it is taken from the record again"

    @pytest.mark.parametrize(
        "more",
        [
            {"last_event": 10**30},
            {"last_event": -(10**18)},
            {"base": 10**30},
            {"base": -1},
            {"messages": [{"role": "x" * 1000, "content": "\0"}]},
            {"messages": [{}] * 20_000},
            {"events": "id: req_other:1\nevent: complete\ndata: {}\n\n" * 1000},
            {"state": {"a": [[[[[[]]]]]] * 1000}},
            {"response": "x" * 700_000},
            {"tool_calls": [{"tool": "t", "status": "completed", "call_id": "c", "output": float(10**300)}] * 1000},
            {
                "status": "failed",
                "failure": {"code": "../../evil\n\0", "detail": "x" * 100_000, "retry_after_seconds": -5},
            },
            {"status": "failed", "failure": {"code": "x" * 10_000, "detail": "y", "retry_after_seconds": 1e300}},
            {
                "status": "failed",
                "failure": {"code": "quota_exceeded", "detail": "\ud800", "retry_after_seconds": 1e10},
            },
            {"status": "running"},
        ],
        ids=lambda more: str(more)[:40],
    )
    def test_absurd_ones_of_ones_own_turn_end_it_somehow(self, attack, me, more):
        code = own(checkpoint(attack.session_id, "MINE", **{"base": 0, **more}))
        with attack.caller.stream(attack.session_id, attack.prompt(code)) as stream:
            events = stream.rest()
        assert events[-1].name in ("complete", "error")
        view = attack.caller.call("GET", f"/v1/sessions/{attack.session_id}/executions/{events[0].request_id}")
        assert view.status == 200
        assert view.json["status"] != "running"
        assert attack.caller.call("GET", f"/v1/sessions/{attack.session_id}/messages").status == 200
        with attack.caller.open(
            "GET", f"/v1/sessions/{attack.session_id}/executions/{events[0].request_id}/events"
        ) as replay:
            replay.rest()
        after = attack.caller.execute(attack.session_id, "after")
        assert after.status in (200, 502), after.body
        assert attack.caller.limit("tokens_per_day")["reserved"] == 0
        assert me.ask(me.session(), "others do not notice")["response"]


def own(code: str) -> str:
    """The checkpoint, of the turn that sends it."""
    code = code.replace("'request_id': 'MINE'", "'request_id': turn.request_id")
    return OWN_TURN + code.replace('"/turns/MINE/checkpoint"', 'f"/turns/{turn.request_id}/checkpoint"')
