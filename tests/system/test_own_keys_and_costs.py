"""A tenant's own provider keys and what calls cost, through a real server, a real sandbox and a provider that counts."""

import json
import os
from pathlib import Path

import pytest

from tests.system.counting_upstream import CountingUpstream
from tests.system.server import FREE

OPERATORS = "sk-the-operators-key-0123456789"
KEYS = {"a": "sk-own-key-of-a-0123456789", "b": "sk-own-key-of-b-0123456789"}
CATALOG = {
    "version": 1,
    "models": [{"models": "counting", "context_window": 32000, "price": {"input": 2, "output": 10.5}}],
}
EXPECTED_ERRORS = ("provider_key_required",)


class Listening(CountingUpstream):
    """Remembers with which key it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []
        handler = self._server.RequestHandlerClass
        answer = handler.do_POST

        def do_post(request) -> None:
            self.keys.append(request.headers["authorization"].removeprefix("Bearer "))
            answer(request)

        handler.do_POST = do_post

    def provider(self, name: str, **more) -> dict:
        address = f"http://127.0.0.1:{self._server.server_port}/v1"
        return {"name": name, "base_url": address, "api_key": OPERATORS, "models": ["counting"], **more}


@pytest.fixture(scope="module")
def upstream():
    with Listening() as one:
        yield one


@pytest.fixture(scope="module")
def settings(upstream, tmp_path_factory):
    catalog = tmp_path_factory.mktemp("catalog") / "models.yaml"
    catalog.write_text(json.dumps(CATALOG))
    providers = [upstream.provider("own", tenant_keys="required"), upstream.provider("either", tenant_keys="allowed")]
    return {
        "AMPLIFIER_MODELS__PROVIDERS": json.dumps(providers),
        "AMPLIFIER_MODELS__DEFAULT": "own/counting",
        "AMPLIFIER_MODELS__CATALOG": str(catalog),
        "AMPLIFIER_LOGGING__LEVEL": "debug",
    }


def set_key(tenant, name: str, provider: str = "own"):
    answer = tenant.call("POST", "/v1/provider-keys", {"provider": provider, "api_key": KEYS[name]})
    assert answer.status == 201, answer.body
    return answer


def test_a_tenants_key_is_used_for_it_alone_and_is_found_nowhere(server, upstream):
    a, b, without = (server.tenant(**FREE) for _ in range(3))
    set_key(a, "a")
    set_key(b, "b")
    upstream.keys.clear()
    sessions = {}
    for tenant, name in ((a, "a"), (b, "b"), (a, "a")):
        session = tenant.session()
        sessions[name] = tenant, session
        tenant.ask(session, "hello")
        assert upstream.keys[-1] == KEYS[name]
    asked = len(upstream.keys)
    refused = without.execute(without.session(), "hello")
    assert (refused.status, refused.code) == (403, "provider_key_required"), refused.body
    assert refused.json["usage"]["total_tokens"] == 0
    assert len(upstream.keys) == asked, "nothing went out, the operator's key neither"

    tenant, session = sessions["a"]
    # All that a sandbox sees but the system's own programs, which were there before any key.
    search = "env; for each in /*; do case $each in /usr|/lib*|/bin|/sbin|/proc|/sys|/dev) ;; *) echo $each; grep -rl sk-own-k{e}y "
    search += (
        "$each --include='*' --exclude='*.py' --exclude='*.pyc' --exclude='*.so*' 2>/dev/null ;; esac; done; echo done"
    )
    seen = tenant.shell(session, search.replace("{e}", "[e]"))
    assert "done" in seen
    assert "sk-own-key" not in seen, seen
    for pid in server.sandbox_of(server.runtime_of(session)):
        for part in ("environ", "cmdline"):
            assert b"sk-own-key" not in _bytes(f"/proc/{pid}/{part}"), part
    for key in KEYS.values():
        assert key not in server.log
        assert key not in tenant.texts(session)
        found = [path for path in server.data_dir.rglob("*") if path.is_file() and key.encode() in _bytes(path)]
        assert not found


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def test_the_key_is_made_once_and_belongs_to_the_server_alone(server):
    path = server.data_dir / "secrets" / "encryption_key"
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_an_own_key_that_is_removed_gives_way_to_the_operators_where_that_is_allowed(server, upstream, me):
    set_key(me, "a", "either")
    listed = {one["name"]: one for one in me.get("/v1/models")["models"]}
    assert listed["either/counting"]["uses_own_key"] is True
    assert listed["default"]["needs_own_key"] is True
    assert me.call("DELETE", "/v1/provider-keys/either").status == 204
    listed = {one["name"]: one for one in me.get("/v1/models")["models"]}
    assert listed["either/counting"]["uses_own_key"] is False
    assert listed["either/counting"]["context_window"] == 32000
    assert listed["either/counting"]["price"]["output"] == 10.5


def test_what_a_turn_cost_is_the_same_in_its_end_its_row_and_every_report(server, upstream, me):
    set_key(me, "a")
    session = me.session()
    answer = me.ask(session, 'count this\nuse bash {"command": "echo x"}')
    calls = upstream.of("count this")
    micro = sum(2 * call.prompt_tokens * 10 + 105 * call.completion_tokens for call in calls)
    assert len(calls) == 2
    # Each call is rounded by itself.
    expected = sum((20 * call.prompt_tokens + 105 * call.completion_tokens + 5) // 10 for call in calls)
    assert abs(expected * 10 - micro) <= 10
    cost = f"{expected / 1_000_000:.6f}"
    assert answer["usage"]["cost_usd"] == cost
    assert answer["usage"]["total_tokens"] == sum(call.total_tokens for call in calls)
    assert me.execution(session, answer["request_id"])["usage"] == answer["usage"]
    for group_by in ("session", "day", "model", "member"):
        report = me.usage(group_by)
        assert (report["totals"]["own_key_cost_usd"], report["totals"]["cost_usd"]) == (cost, "0.000000")
        assert report["totals"]["unpriced_tokens"] == 0
        assert sum(round(float(one["own_key_cost_usd"]) * 1e6) for one in report["usage"]) == expected


def test_a_key_that_was_stored_with_another_encryption_key_is_a_clear_error(make_server, upstream):
    server = make_server(AMPLIFIER_MODELS__PROVIDERS=json.dumps([upstream.provider("own", tenant_keys="required")]))
    server.start()
    tenant = server.tenant(**FREE)
    set_key(tenant, "a")
    session = tenant.session()
    tenant.ask(session, "hello")
    server.stop()
    server.environment["AMPLIFIER_SECRETS__ENCRYPTION_KEY"] = "another " * 8
    asked = len(upstream.keys)
    server.start()
    assert any(line.get("event") == "provider_keys:other_encryption_key" for line in server.logged("error"))
    again = type(tenant)(server.port, tenant.key)
    refused = again.execute(session, "hello")
    assert refused.status >= 400
    assert "decrypted" in refused.body.decode(), refused.body
    assert len(upstream.keys) == asked
    set_key(again, "a")
    assert again.ask(session, "hello")["response"]
