from __future__ import annotations

from tests.control_plane.accounts.doors import Doors


async def test_it_explains_the_last_refusal_and_is_not_limited_itself(doors: Doors):
    made = (await doors.operator.post("/v1/tenants", json={"name": "Free", "tier": "free"})).json()
    free = doors.caller(made["admin_key"])
    assert (await free.get("/v1/limits")).json()["last_refusal"] is None
    answers = [await free.get("/v1/keys") for _ in range(12)]
    assert [one.status_code for one in answers] == [200] * 10 + [429] * 2
    assert (answers[0].headers["x-ratelimit-limit"], answers[0].headers["x-ratelimit-remaining"]) == ("10", "9")
    refused = answers[-1]
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.json()["limit"] == "requests_per_minute"
    for _ in range(30):
        explained = await free.get("/v1/limits")
        assert explained.status_code == 200
    body = explained.json()
    assert body["tier"] == "free"
    assert body["enforced"] is True
    requests = next(one for one in body["limits"] if one["name"] == "requests_per_minute")
    assert (requests["limit"], requests["used"], requests["remaining"]) == (10, 10, 0)
    assert body["last_refusal"]["code"] == "rate_limited"
    assert body["last_refusal"]["detail"] == refused.json()["detail"]


async def test_an_operator_may_ask_too(doors: Doors):
    body = (await doors.operator.get("/v1/limits")).json()
    assert body["tier"] == "operator"
    assert {one["limit"] for one in body["limits"]} == {None}


async def test_nobody_is_told_anything(doors: Doors):
    assert (await doors.caller("amp_live_x").get("/v1/limits")).status_code == 401
