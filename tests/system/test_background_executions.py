"""Executions without a request, on a real server: followed by whoever wants to, told to whoever asked, also over kill -9."""

import pytest

from tests.receiver import KEY, SECRET, Receiver
from tests.system.conftest import assert_no_errors
from tests.system.server import FREE, Caller, eventually


@pytest.fixture
def receiver():
    with Receiver() as one:
        yield one


def calling(receiver, **more):
    return {
        "AMPLIFIER_CALLBACKS__PRIVATE_HOSTS": f'["{receiver.host}"]',
        "AMPLIFIER_CALLBACKS__RETRY_DELAY": "100ms",
        **more,
    }


def begin(me, session, prompt, receiver):
    body = {"prompt": prompt, "background": True, "callback": {"url": receiver.url, "secret": SECRET}}
    answer = me.call("POST", f"/v1/sessions/{session}/execute", body)
    assert answer.status == 202, answer.body
    return answer.headers["location"]


def told(me, where, status="delivered"):
    return eventually(lambda: (view := me.get(where))["callback"]["status"] == status and view)


def test_it_is_begun_followed_twice_and_called_back(make_server, receiver):
    server = make_server(**calling(receiver, AMPLIFIER_SESSIONS__IDLE_TIMEOUT="1s")).start()
    me = server.tenant(**FREE)
    session = me.session()
    assert eventually(lambda: me.status(session) == "suspended")
    receiver.statuses.append(500)
    where = begin(me, session, "stream 60 at 60/s", receiver)
    assert me.get(where)["status"] == "running", "it is answered before it has ended"
    with me.open("GET", f"{where}/events") as first:
        head = first.take(5)
        with me.open("GET", f"{where}/events", headers={"Last-Event-ID": head[2].id}) as second:
            rest = second.rest()
        whole = head + first.rest()
    assert [one.id for one in head[:3] + rest] == [one.id for one in whole]
    assert whole[-1].name == "complete"
    view = told(me, where)
    assert view["callback"]["attempts"] == 2
    assert len({one.headers["webhook-id"] for one in receiver.received}) == 1
    assert all(one.is_signed_with(KEY) for one in receiver.received)
    assert receiver.received[-1].json["response"] == view["response"] == whole[-1].data["response"]
    server.stop()
    assert_no_errors(server)


def test_a_server_that_is_killed_in_the_midst_tells_so_when_it_is_back(make_server, receiver):
    server = make_server(**calling(receiver)).start()
    me = server.tenant(**FREE)
    session = me.session()
    where = begin(me, session, "stream 2000 at 40/s", receiver)
    with me.open("GET", f"{where}/events") as stream:
        stream.take(3)
        server.kill()
    server.start()
    me = Caller(server.port, me.key, tenant_id=me.tenant_id)
    view = told(me, where)
    assert (view["status"], view["problem"]["code"]) == ("failed", "runtime_lost")
    (received,) = receiver.received
    assert received.is_signed_with(KEY)
    assert received.json["problem"]["code"] == "runtime_lost"
    assert me.limit("tokens_per_day")["used"] == me.usage()["totals"]["total_tokens"]
    assert me.ask(session, "and now?")["response"]


def test_a_server_that_is_killed_before_it_could_tell_tells_when_it_is_back(make_server, receiver):
    receiver.statuses += [503]
    receiver.headers["Retry-After"] = "1"
    server = make_server(**calling(receiver)).start()
    me = server.tenant(**FREE)
    where = begin(me, me.session(), "hello", receiver)
    assert eventually(lambda: len(receiver.received) == 1)
    server.kill()
    server.start()
    me = Caller(server.port, me.key, tenant_id=me.tenant_id)
    assert eventually(lambda: len(receiver.received) == 2, every_seconds=0.2)
    assert {one.headers["webhook-id"] for one in receiver.received} == {receiver.received[0].headers["webhook-id"]}
    view = told(me, where)
    assert (view["status"], receiver.received[1].json["status"]) == ("completed", "completed")


def test_one_that_runs_as_the_server_stops_is_ended_and_told_by_the_next(make_server, receiver):
    server = make_server(**calling(receiver)).start()
    me = server.tenant(**FREE)
    where = begin(me, me.session(), "stream 2000 at 40/s", receiver)
    with me.open("GET", f"{where}/events") as stream:
        stream.take(3)
        server.stop()
    server.start()
    me = Caller(server.port, me.key, tenant_id=me.tenant_id)
    view = told(me, where)
    assert view["status"] in ("cancelled", "failed")
    assert view["problem"]["code"] == "stopping"
    assert receiver.received[-1].json["problem"]["code"] == "stopping"


def test_a_callback_reaches_nothing_that_is_not_public(make_server, receiver):
    server = make_server().start()
    me = server.tenant(**FREE)
    session = me.session()
    body = {"prompt": "x", "background": True, "callback": {"url": receiver.url}}
    assert me.call("POST", f"/v1/sessions/{session}/execute", body).code == "invalid_callback"
    body["callback"]["url"] = "https://localhost/x"
    assert me.call("POST", f"/v1/sessions/{session}/execute", body).code == "invalid_callback"
    assert receiver.received == []
