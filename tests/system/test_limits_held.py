"""Limits over HTTP, with everybody pushing at once."""

import time

from tests.system.server import FREE, Caller, at_once, eventually

EXPECTED_ERRORS = ("quota_exceeded",)
PLENTY = dict(FREE)


def statuses(answers) -> list[int]:
    return sorted(answer.status for answer in answers)


def assert_refused(answer, code: str) -> None:
    assert (answer.status, answer.code) == (429, code)


class TestRequests:
    def test_two_hundred_at_once_on_a_limit_of_ten_let_ten_through(self, server):
        tenant = server.tenant(requests_per_minute=10)
        begun = time.monotonic()
        answers = at_once([lambda: tenant.call("GET", "/v1/profiles")] * 200)
        back = int((time.monotonic() - begun) * 10 / 60)  # at the limit's own pace, a place each six seconds
        assert 10 <= statuses(answers).count(200) <= 10 + back
        refused = [answer for answer in answers if answer.status != 200]
        for answer in refused:
            assert_refused(answer, "rate_limited")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.headers["x-ratelimit-limit"] == "10"
            assert answer.headers["x-ratelimit-remaining"] == "0"
        explained = tenant.get("/v1/limits")
        assert explained["last_refusal"]["limit"] == "requests_per_minute"

    def test_executes_count_too_and_take_all_or_nothing(self, server):
        tenant = server.tenant(requests_per_minute=10, tokens_per_day=1_000_000)
        session = tenant.session()
        answers = at_once([lambda: tenant.execute(session, "stream 20 at 20/s")] * 60)
        assert statuses(answers).count(200) == 1
        assert statuses(answers).count(409) in range(8, 10)
        assert statuses(answers).count(429) == 60 - 1 - statuses(answers).count(409)
        assert tenant.limit("tokens_per_day")["reserved"] == 0, "who was refused gave back what it had taken"

    def test_each_key_of_a_member_shares_its_limit_and_members_do_not(self, server):
        tenant = server.tenant(requests_per_minute=10)
        own = tenant.call("POST", "/v1/keys", {"name": "other", "role": "developer"}).json
        other = Caller(server.port, own["key"])
        assert statuses(other.call("GET", "/v1/sessions") for _ in range(10)) == [200] * 10
        assert other.call("GET", "/v1/sessions").status == 429
        assert tenant.call("GET", "/v1/sessions").status == 200
        same = tenant.call(
            "POST", "/v1/keys", {"name": "same", "role": "developer", "member_id": own["member_id"]}
        ).json
        assert Caller(server.port, same["key"]).call("GET", "/v1/sessions").status == 429

    def test_a_key_and_a_tenant_can_be_given_other_limits(self, server):
        tenant = server.tenant(**PLENTY)
        made = tenant.call(
            "POST", "/v1/keys", {"name": "slow", "role": "developer", "limits": {"requests_per_minute": 2}}
        )
        slow = Caller(server.port, made.json["key"])
        assert [slow.call("GET", "/v1/sessions").status for _ in range(3)] == [200, 200, 429]
        path = f"/v1/tenants/{tenant.tenant_id}"
        assert server.operator().call("PATCH", path, {"limits": {"requests_per_minute": 3}}).status == 200
        found = [tenant.call("GET", "/v1/sessions").status for _ in range(20)]
        assert found.count(200) <= 3
        assert 429 in found
        assert server.operator().call("PATCH", path, {"limits": {"requests_per_minute": "unlimited"}}).status == 200
        assert tenant.call("GET", "/v1/sessions").status == 200

    def test_what_explains_is_never_refused(self, server):
        tenant = server.tenant(requests_per_minute=1)
        tenant.call("GET", "/v1/sessions")
        assert tenant.call("GET", "/v1/sessions").status == 429
        assert [tenant.call("GET", "/v1/limits").status for _ in range(5)] == [200] * 5

    def test_health_is_nobodys(self, server):
        assert statuses(Caller(server.port).call("GET", "/health") for _ in range(30)) == [200] * 30


class TestSessions:
    def test_active_ones(self, server):
        tenant = server.tenant(**{**PLENTY, "concurrent_sessions": 3})
        answers = at_once([lambda: tenant.call("POST", "/v1/sessions", {"profile": "foundation:base"})] * 12)
        assert statuses(answers) == [201] * 3 + [429] * 9
        for answer in answers:
            if answer.status == 429:
                assert answer.json["limit"] == "concurrent_sessions"
        kept = next(answer.json["session_id"] for answer in answers if answer.status == 201)
        assert tenant.call("DELETE", f"/v1/sessions/{kept}").status == 204
        assert tenant.session()

    def test_of_a_user(self, server):
        tenant = server.tenant(**{**PLENTY, "sessions_per_user": 2})
        answers = at_once([lambda: tenant.call("POST", "/v1/sessions", {"profile": "foundation:base"})] * 8)
        assert statuses(answers) == [201] * 2 + [429] * 6
        made = tenant.call("POST", "/v1/keys", {"name": "other", "role": "developer"}).json
        assert Caller(server.port, made["key"]).session(), "another member has places of its own"
        listed = tenant.get("/v1/sessions")["sessions"]
        assert len(listed) == 3

    def test_one_that_could_not_be_made_holds_no_place(self, server):
        tenant = server.tenant(**{**PLENTY, "concurrent_sessions": 2, "sessions_per_user": 2})
        for _ in range(4):
            assert tenant.call("POST", "/v1/sessions", {"profile": "no:such"}).status == 404
            assert (
                tenant.call(
                    "POST", "/v1/sessions", {"profile": "foundation:base", "context": {"x": "y" * 150_000}}
                ).status
                == 422
            )
        assert tenant.limit("concurrent_sessions")["used"] == tenant.limit("sessions_per_user")["used"] == 0
        tenant.session()
        tenant.session()


class TestTokens:
    def test_a_stream_is_cut_at_the_budgets_edge(self, server):
        tenant = server.tenant(requests_per_minute="unlimited", tokens_per_day=6_000)
        session = tenant.session()
        with tenant.stream(session, "stream 50000 at 20000/s") as stream:
            events = stream.rest()
        assert events[0].name == "token"
        last = events[-1]
        assert (last.name, last.data["code"], last.data["status"]) == ("error", "quota_exceeded", 429)
        totals = tenant.usage()["totals"]
        assert 4_000 < totals["total_tokens"] <= 6_000
        assert totals["total_tokens"] == last.data["usage"]["total_tokens"] == tenant.limit("tokens_per_day")["used"]
        assert tenant.limit("tokens_per_day")["reserved"] == 0

        answer = eventually(lambda: (a := tenant.execute(session, "more?")).status == 429 and a)
        assert_refused(answer, "quota_exceeded")
        assert int(answer.headers["retry-after"]) <= 24 * 3600
        assert tenant.usage()["totals"]["total_tokens"] <= 6_000
        assert tenant.limit("tokens_per_day")["holders"] == []

    def test_many_turns_at_once_do_not_pass_it_together(self, server):
        tenant = server.tenant(**{**PLENTY, "tokens_per_day": 20_000})
        sessions = [tenant.session() for _ in range(6)]
        answers = at_once([lambda one=one: tenant.execute(one, "stream 20000 at 20000/s") for one in sessions])
        assert set(statuses(answers)) == {429}
        assert {answer.code for answer in answers} == {"quota_exceeded"}
        assert tenant.usage()["totals"]["total_tokens"] <= 20_000
        assert tenant.limit("tokens_per_day")["reserved"] == 0

    def test_a_raised_budget_holds_at_once(self, server):
        tenant = server.tenant(requests_per_minute="unlimited", tokens_per_day=100)
        session = tenant.session()
        assert_refused(tenant.execute(session, "x"), "quota_exceeded")
        path = f"/v1/tenants/{tenant.tenant_id}"
        assert server.operator().call("PATCH", path, {"limits": {"tokens_per_day": 50_000}}).status == 200
        assert eventually(lambda: tenant.execute(session, "x").status == 200)

    def test_what_is_used_is_known_after_a_restart(self, make_server):
        one = make_server().start()
        tenant = one.tenant(requests_per_minute="unlimited", tokens_per_day=50_000)
        tenant.ask(tenant.session(), "stream 100")
        used = tenant.limit("tokens_per_day")["used"]
        assert used > 100
        one.kill()
        one.start()
        assert Caller(one.port, tenant.key).limit("tokens_per_day")["used"] == used
        one.stop()
