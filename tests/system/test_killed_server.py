"""`kill -9` of the server: what was told complete is kept, nothing that it started runs on, another one goes on."""

import contextlib
import http.client
import json
import random
import sqlite3
import threading
import time

import pytest

from tests.system.conftest import assert_no_errors
from tests.system.counting_upstream import CountingUpstream
from tests.system.server import FREE, Caller, Server, alive, command, eventually

ERRORS = ("runtime_lost",)
_MANY = 30  # tokens: more than a call of a tool has


@pytest.fixture
def upstream():
    with CountingUpstream() as one:
        yield one


def again(server, caller: Caller) -> Caller:
    """The same key, at the server's new port."""
    return Caller(server.port, caller.key, tenant_id=caller.tenant_id)


def test_in_mid_turn(make_server, upstream):
    server = make_server(**upstream.settings).start()
    keys = server.key, server.operator_key
    me = server.tenant(**FREE)
    session = me.session()
    done = me.ask(session, "remember the plover")
    me.tool(session, "bash", command="echo nest > eggs.txt")
    kept, used = me.messages(session), me.usage()["totals"]

    stream = me.stream(session, 'use bash {"command": "echo one"}\nstream 2000 at 40/s\nthe-lost-turn')
    with stream:
        lost = next(event for event in stream if event.name == "token")
        stream.take(20)  # the first call's usage is written while the second one talks
        seen = eventually(lambda: said_of_open_calls(server, lost.request_id))
        members = server.kill()
        with contextlib.suppress(OSError, http.client.HTTPException):
            list(stream)
    assert eventually(lambda: not alive(members) and not server.left()), "its sandboxes end with it"

    server.start()
    assert (server.key, server.operator_key) == keys
    me = again(server, me)
    assert me.messages(session) == kept
    assert me.execution(session, done["request_id"])["status"] == "completed"
    view = me.execution(session, lost.request_id)
    assert view["status"] == "failed"
    assert view["problem"]["code"] == "runtime_lost"
    with me.open("GET", f"/v1/sessions/{session}/executions/{lost.request_id}/events") as replay:
        (last,) = replay.rest()[-1:]
    assert (last.name, last.data["code"]) == ("error", "runtime_lost")
    first, second = upstream.of("the-lost-turn")
    totals = me.usage()["totals"]
    charged = totals["total_tokens"] - used["total_tokens"]
    assert charged >= first.total_tokens + seen, "a recorded step is in the ledger, and what was said of the next call"
    answered = totals["completion_tokens"] - used["completion_tokens"]
    assert answered <= first.completion_tokens + second.completion_tokens, "and nothing twice"
    assert view["usage"]["total_tokens"] == charged
    assert totals["turns"] == used["turns"] + 1
    assert me.limit("tokens_per_day")["reserved"] == 0

    assert me.ask(session, "and now?")["response"]
    assert "nest" in me.shell(session, "cat eggs.txt")
    assert me.messages(session)[: len(kept)] == kept
    server.stop()
    assert_no_errors(server, ERRORS)


def said_of_open_calls(server: Server, request_id: str) -> int:
    """Tokens that the provider said in the call under way of a running turn, as the turn's row has them: 0 while those are few.

    The call before it, which said less, may be in the row too.
    """
    with contextlib.closing(sqlite3.connect(f"file:{server.data_dir / 'amplifier.db'}?mode=ro", uri=True)) as db:
        ((kept,),) = db.execute("select open_calls from turn where id = ?", [request_id])
    return max(
        (call["completion_tokens"] for call in json.loads(kept) if call["completion_tokens"] >= _MANY), default=0
    )


class Load:
    """Sessions that are kept busy; `told` is what each was told complete."""

    def __init__(self, caller: Caller, sessions: list[str]) -> None:
        self.told: dict[str, list[tuple[str, str, int]]] = {session: [] for session in sessions}
        self._caller = caller
        self._threads = [threading.Thread(target=self._run, args=(session,)) for session in sessions]
        for thread in self._threads:
            thread.start()

    def _run(self, session: str) -> None:
        try:
            for index in range(10_000):
                prompt = f"{session} says {index}"
                if index % 3 == 0:
                    prompt += '\nuse bash {"command": "echo x >> done.txt"}'
                if index % 2:
                    answer = self._caller.ask(session, prompt)
                    told = answer["request_id"], prompt, answer["usage"]["total_tokens"]
                else:
                    last = self._caller.asked(session, prompt)[-1]
                    assert last.name == "complete"
                    told = last.request_id, prompt, last.data["usage"]["total_tokens"]
                self.told[session].append(told)
        except Exception:  # noqa: BLE001 - the server is gone
            pass

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)


@pytest.mark.parametrize("seed", range(2))
def test_at_a_random_moment_of_a_busy_load(make_server, seed):
    server = make_server().start()
    me = server.tenant(**FREE)
    load = Load(me, [me.session() for _ in range(4)])
    time.sleep(1 + random.Random(seed).random() * 1.5)
    members = server.kill()
    load.join()
    assert eventually(lambda: not alive(members) and not server.left())
    assert sum(map(len, load.told.values())) > 10

    server.start()
    me = again(server, me)
    rows = {row["key"]: row for row in me.usage("session")["usage"]}
    for session, told in load.told.items():
        said = [message["content"] for message in me.messages(session) if message["role"] == "user"]
        assert said[: len(told)] == [prompt for _, prompt, _ in told][:200], "in order, each once"
        assert len(said) - len(told) in (0, 1), "at most one was committed and could not be told any more"
        assert rows[session]["total_tokens"] >= sum(tokens for _, _, tokens in told)
        for request_id, _, tokens in told[-3:]:
            view = me.execution(session, request_id)
            assert (view["status"], view["usage"]["total_tokens"]) == ("completed", tokens)
            with me.open("GET", f"/v1/sessions/{session}/executions/{request_id}/events") as replay:
                assert replay.rest()[-1].name == "complete"
        assert me.ask(session, "go on")["response"]
    for grouping in ("day", "model", "member"):
        answer = me.usage(grouping)
        assert sum(row["total_tokens"] for row in answer["usage"]) == answer["totals"]["total_tokens"]
    server.stop()
    assert_no_errors(server, ERRORS)


def test_again_and_again_while_it_starts_sandboxes(make_server):
    """A claim makes the pool start another one; a process that is killed then may have started half a sandbox."""
    server = make_server().start()
    me = server.tenant(**FREE)
    session = me.session()
    for index in range(6):
        me.ask(session, f"word {index}")
        time.sleep(index * 0.003)
        server.kill()
        assert eventually(lambda: not server.left()), [command(pid)[:80] for pid in server.left()]
        server.start()
        me = again(server, me)
    said = [message["content"] for message in me.messages(session) if message["role"] == "user"]
    assert said == [f"word {index}" for index in range(6)]
    server.stop()


def test_a_second_server_on_the_same_folder_is_refused(make_server):
    server = make_server().start()
    second = Server(server.data_dir, starts=10)
    with pytest.raises(AssertionError, match="another server is using"):
        second.start()
    second.end()
    assert server.caller().session()
    server.stop()
