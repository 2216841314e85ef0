"""`kill -9` of a runtime: its turn ends with a clear error, the ledger has what was counted, the session goes on."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.counting_upstream import CountingUpstream
from tests.system.server import alive, command, eventually

EXPECTED_ERRORS = ("runtime_lost",)


@pytest.fixture(scope="module")
def upstream():
    with CountingUpstream() as one:
        yield one


@pytest.fixture(scope="module")
def settings(upstream):
    return upstream.settings


def kill_runtime(server, session_id):
    pid = server.runtime_of(session_id)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not alive([pid]))


def row_of(caller, session_id):
    return next(row for row in caller.usage("session")["usage"] if row["key"] == session_id)


def test_the_stream_ends_with_an_error_whose_id_goes_on_counting(server, me):
    session = me.session()
    with me.stream(session, "stream 2000 at 40/s") as stream:
        before = stream.take(10)
        kill_runtime(server, session)
        rest = stream.rest()
    events = before + rest
    assert [event.name for event in events[:-1]] == ["token"] * (len(events) - 1)
    last = events[-1]
    assert (last.name, last.data["code"], last.data["status"]) == ("error", "runtime_lost", 502)
    assert last.request_id == last.data["request_id"] == events[0].request_id
    assert [event.number for event in events] == list(range(1, len(events) + 1))


def test_the_execution_says_that_it_failed_and_can_be_replayed(server, me):
    session = me.session()
    with me.stream(session, "stream 2000 at 40/s") as stream:
        first = next(stream)
        kill_runtime(server, session)
        last = stream.rest()[-1]
    view = me.execution(session, first.request_id)
    assert view["status"] == "failed"
    with me.open("GET", f"/v1/sessions/{session}/executions/{first.request_id}/events") as replay:
        assert replay.rest()[-1] == last


def test_a_caller_who_waits_for_the_whole_answer_is_told_too(server, me, upstream):
    session = me.session()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(me.execute, session, "stream 2000 at 40/s\nwaiting-for-it")
        assert eventually(lambda: upstream.of("waiting-for-it"))
        kill_runtime(server, session)
        answer = waiting.result()
    assert (answer.status, answer.code) == (502, "runtime_lost")


def test_the_ledger_holds_what_the_provider_counted(server, me, upstream):
    session = me.session()
    with me.stream(session, "stream 40 at 20/s\nledger-of-the-lost") as stream:
        stream.take(25)  # what is left of it comes well within the time that it is read on for
        kill_runtime(server, session)
        stream.rest()
    (counted,) = upstream.of("ledger-of-the-lost")
    assert counted.ended, "the gateway reads on for a while, to learn the count"
    row = row_of(me, session)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (counted.prompt_tokens, counted.completion_tokens)
    assert row["turns"] == 1


def test_calls_before_the_kill_are_counted_exactly_and_the_one_that_was_cut_by_estimate(server, me, upstream):
    session = me.session()
    with me.stream(session, 'use bash {"command": "echo one"}\nstream 2000 at 40/s\ncut-for-good') as stream:
        for event in stream:
            if event.name == "token" and event.data["content"].startswith("w20"):
                break
        kill_runtime(server, session)
        stream.rest()
    first, second = upstream.of("cut-for-good")
    row = row_of(me, session)
    assert row["turns"] == 1
    estimated = row["completion_tokens"] - first.completion_tokens
    assert 20 <= estimated <= second.completion_tokens + 1, "what passed, never more than the provider made"
    assert row["prompt_tokens"] > first.prompt_tokens


def test_no_lease_stays(server):
    tenant = server.tenant(tokens_per_day=1_000_000, requests_per_minute="unlimited")
    session = tenant.session()
    with tenant.stream(session, "stream 2000 at 40/s") as stream:
        stream.take(5)
        assert tenant.limit("tokens_per_day")["reserved"] > 0
        kill_runtime(server, session)
        stream.rest()
    assert tenant.limit("tokens_per_day")["reserved"] == 0
    spent = tenant.usage()["totals"]["total_tokens"]
    assert tenant.limit("tokens_per_day")["used"] == spent > 0
    assert eventually(lambda: tenant.limit("concurrent_sessions")["used"] == 0), tenant.limit("concurrent_sessions")
    assert eventually(lambda: tenant.limit("sandboxes")["used"] == 0), tenant.limit("sandboxes")
    assert tenant.limit("sessions_per_user")["used"] == 1


def test_the_next_execute_finds_the_history_the_files_and_the_todo_list(server, me):
    session = me.session()
    me.ask(session, "remember the plover")
    me.tool(session, "bash", command="echo nest > eggs.txt")
    me.tool(session, "todo", action="create", todos=[{"content": "count the eggs", "status": "pending"}])
    before = me.messages(session)
    with me.stream(session, "stream 2000 at 40/s\nlost words") as stream:
        stream.take(5)
        kill_runtime(server, session)
        stream.rest()
    assert me.messages(session) == before, "the lost turn leaves no trace in the transcript"
    assert "nest" in me.shell(session, "cat eggs.txt")
    assert "count the eggs" in str(me.tool(session, "todo", action="list"))
    assert me.messages(session)[: len(before)] == before


def test_the_model_is_sent_the_history_after_a_loss(server, me, upstream):
    session = me.session()
    me.ask(session, "first things")
    kill_runtime(server, session)
    me.ask(session, "second things after-the-loss")
    (counted,) = upstream.of("after-the-loss")
    assert counted.prompt_tokens == 100 + 4, "system, user, assistant, user"


def test_a_runtime_killed_between_turns_is_replaced_without_a_word(server, me):
    session = me.session()
    me.ask(session, "one")
    kill_runtime(server, session)
    assert me.ask(session, "two")["response"]


def test_sessions_of_other_tenants_do_not_notice(server, me):
    other = server.tenant()
    session, neighbour = me.session(), other.session()
    with other.stream(neighbour, "stream 40 at 40/s") as calm, me.stream(session, "stream 2000 at 40/s") as stream:
        stream.take(3)
        kill_runtime(server, session)
        assert stream.rest()[-1].name == "error"
        assert calm.rest()[-1].name == "complete"


def test_the_killed_runtimes_processes_and_folders_are_gone(server, me):
    session = me.session()
    root = server.runtime_of(session)
    inside = server.sandbox_of(root)
    with me.stream(session, 'use bash {"command": "sleep 60 & sleep 61"}') as stream:
        next(stream)
        os.kill(root, signal.SIGKILL)
        assert stream.rest()[-1].data["code"] == "runtime_lost"
    assert eventually(lambda: not alive(inside))
    assert not [pid for pid in server.sandboxed() if command(pid).startswith("sleep")]
