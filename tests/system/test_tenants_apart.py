"""Ten tenants at once, each with its own secret in everything that it does: nothing crosses over."""

import json
import secrets
import threading

import pytest

from tests.system.evil import archive, install
from tests.system.server import FREE, Caller, at_once

TENANTS, SESSIONS, ROUNDS = 10, 2, 2


@pytest.fixture(scope="module")
def settings():
    return {"AMPLIFIER_SANDBOX__MAX_SESSIONS_PER_RUNTIME": "2"}


class Tenant:
    """One, and everything that it was ever told."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.secret = "s" + secrets.token_hex(8)
        self.told: list[str] = []
        self.ids: set[str] = {caller.tenant_id}
        self.lock = threading.Lock()

    def hears(self, *things: object) -> None:
        with self.lock:
            self.told.extend(thing if isinstance(thing, str) else json.dumps(thing) for thing in things)

    def work(self) -> None:
        caller, secret = self.caller, self.secret
        project = f'[project]\nname = "c{secret}"\nversion = "1.0.0"\n[tool.amplifier.collection]\nauthor = "x"\n'
        profile = (
            f"---\nprofile:\n  name: p\n  description: {secret}\n  extends: foundation:base\n---\nYou know {secret}.\n"
        )
        self.hears(install(caller, archive({"pyproject.toml": project, "profiles/p.md": profile})))
        at_once([lambda index=index: self.talk(index) for index in range(SESSIONS)])
        for grouping in ("session", "day", "model", "member"):
            self.hears(caller.usage(grouping))
        for path in ("sessions", "profiles", "tools", "collections", "limits", "keys"):
            self.hears(caller.get(f"/v1/{path}"))
        self.hears(
            caller.call(
                "POST", "/v1/tools/bash/execute", {"input": {"command": f"ls -la /workspace; echo {secret}"}}
            ).body.decode()
        )

    def talk(self, index: int) -> None:
        caller, secret = self.caller, self.secret
        session = caller.session(f"c{secret}:p" if index else "foundation:base", marker=secret)
        with self.lock:
            self.ids.add(session)
        for turn in range(ROUNDS):
            with caller.stream(session, f"stream 30 at 200/s\n{secret} {turn}") as stream:
                events = stream.rest()
                self.hears(stream.raw.decode())
            assert events[-1].name == "complete"
            self.hears(
                caller.shell(
                    session, f"echo {secret} >> own.txt; cat own.txt; ls -la /workspace /tmp; env; ps ax || true"
                )
            )
            self.hears(caller.tool(session, "todo", action="create", todos=[{"content": secret, "status": "pending"}]))
            self.hears(caller.ask(session, f"say {secret}"))
            self.hears(caller.texts(session), caller.execution(session, events[0].request_id))
            with caller.open("GET", f"/v1/sessions/{session}/executions/{events[0].request_id}/events") as replay:
                assert [event.id for event in replay.rest()] == [event.id for event in events]
                self.hears(replay.raw.decode())
            with self.lock:
                self.ids.add(events[0].request_id)
        assert secret in caller.texts(session)


@pytest.fixture(scope="module")
def tenants(server):
    found = [Tenant(server.tenant(f"tenant {index}", **FREE)) for index in range(TENANTS)]
    at_once([one.work for one in found])
    return found


def test_nobody_is_told_anything_of_another(tenants):
    for one in tenants:
        heard = "\n".join(one.told)
        assert one.secret in heard
        for other in tenants:
            if other is not one:
                assert other.secret not in heard
                assert not [identifier for identifier in other.ids if identifier in heard]


def test_everybody_pays_for_themselves_alone(tenants):
    for one in tenants:
        totals = one.caller.usage()["totals"]
        assert totals["turns"] == SESSIONS * ROUNDS * 4
        for grouping in ("session", "day", "model", "member"):
            answer = one.caller.usage(grouping)
            assert answer["totals"] == totals
            for name in ("prompt_tokens", "completion_tokens", "total_tokens", "turns"):
                assert sum(row[name] for row in answer["usage"]) == totals[name]
        assert {row["key"] for row in one.caller.usage("session")["usage"]} <= one.ids


def test_another_tenants_things_do_not_exist(tenants):
    one, other = tenants[:2]
    session = next(identifier for identifier in other.ids if identifier.startswith("sess_"))
    turn = next(identifier for identifier in other.ids if identifier.startswith("req_"))
    own_session = next(identifier for identifier in one.ids if identifier.startswith("sess_"))
    key = other.caller.get("/v1/keys")["keys"][0]["id"]
    for method, path in (
        ("GET", f"/v1/sessions/{session}"),
        ("DELETE", f"/v1/sessions/{session}"),
        ("GET", f"/v1/sessions/{session}/messages"),
        ("POST", f"/v1/sessions/{session}/execute"),
        ("GET", f"/v1/sessions/{session}/executions/{turn}"),
        ("GET", f"/v1/sessions/{session}/executions/{turn}/events"),
        ("POST", f"/v1/sessions/{session}/executions/{turn}/cancel"),
        ("GET", f"/v1/sessions/{own_session}/executions/{turn}"),
        ("GET", f"/v1/sessions/{own_session}/executions/{turn}/events"),
        ("POST", f"/v1/sessions/{own_session}/executions/{turn}/cancel"),
        ("DELETE", f"/v1/collections/c{other.secret}"),
        ("GET", f"/v1/keys/{key}"),
        ("DELETE", f"/v1/keys/{key}"),
        ("POST", f"/v1/keys/{key}/rotate"),
    ):
        answer = one.caller.call(method, path, {"prompt": "x"} if path.endswith("execute") else None)
        assert (answer.status, path) == (404, path)
        assert answer.code
    answer = one.caller.call("POST", "/v1/sessions", {"profile": f"c{other.secret}:p"})
    assert (answer.status, answer.code) == (404, "profile_not_found")
    answer = one.caller.call(
        "POST",
        "/v1/keys",
        {"name": "x", "role": "admin", "member_id": other.caller.get("/v1/keys")["keys"][0]["member_id"]},
    )
    assert answer.status in (404, 422)
    assert other.caller.status(session) in ("active", "suspended")


def test_no_secret_is_in_the_log_or_the_metrics(server, tenants):
    told = server.log + server.caller().call("GET", "/metrics").body.decode()
    for one in tenants:
        assert one.caller.key not in told
        prompts = [line for line in told.splitlines() if one.secret in line and "collection" not in line]
        assert not prompts, prompts[:2]
