"""Sandboxes that have no memory for one more session: the next one is asked, as many as the tenant may have."""

import pytest

from tests.hostile_runtime import attacked

SESSION = {"profile": "foundation:base"}


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


@pytest.fixture
async def tenant(plane):
    body = {"name": "t", "tier": "enterprise", "limits": {"sandboxes": 4, "concurrent_sessions": 20}}
    async with plane.client(plane.operator_key) as operator:
        made = await operator.post("/v1/tenants", json=body)
    assert made.status_code == 201, made.text
    async with plane.client(made.json()["admin_key"]) as client:
        yield client


def holding(plane, most):
    """Every runtime takes so many sessions; which took how many."""
    taken = {}

    async def answer(request) -> None:
        of_this = taken.setdefault(request.runtime.runtime_id, [])
        if len(of_this) >= most:
            await request.reply(503, {"code": "too_many_processes", "detail": "no memory for one more"})
        else:
            of_this.append(request.session_id)
            await request.reply(200, {"plan": {"a": 1}, "model": "m"})

    plane.fleet.answers["PUT", "session"] = answer
    return taken


async def test_a_session_finds_room_however_many_sandboxes_are_full(plane, tenant):
    taken = holding(plane, 1)
    for _ in range(4):
        assert (await tenant.post("/v1/sessions", json=SESSION)).status_code == 201
    assert sorted(map(len, taken.values())) == [1] * 4
    refused = await tenant.post("/v1/sessions", json=SESSION)
    assert (refused.status_code, refused.json()["code"]) == (429, "sandboxes_exceeded")


async def test_sandboxes_that_are_full_with_nothing_in_them_are_not_asked_for_ever(plane, tenant):
    taken = holding(plane, 0)
    refused = await tenant.post("/v1/sessions", json=SESSION)
    assert (refused.status_code, refused.json()["code"]) == (503, "too_many_processes")
    assert len(taken) == 2
