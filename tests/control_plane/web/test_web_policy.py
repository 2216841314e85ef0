"""A tenant's own lists, over the API: read by whoever may, replaced whole, and never more than hosts."""

import pytest

from tests.control_plane.accounts.doors import opened
from tests.tenants.embedded import embedded

__all__ = ["embedded"]


@pytest.fixture
async def doors(embedded):
    async with opened(embedded) as found:
        yield found


async def test_a_tenant_without_lists_may_fetch_what_the_operator_allows(doors):
    answer = await doors.admin.get("/v1/web-policy")
    assert answer.json() == {"is_enabled": True, "allow": ["*"], "deny": []}


async def test_both_lists_are_replaced(doors):
    sent = {"allow": ["*.Example.org", "example.org", "example.org"], "deny": ["private.example.org"]}
    kept = {"is_enabled": True, "allow": ["*.example.org", "example.org"], "deny": ["private.example.org"]}
    assert (await doors.admin.put("/v1/web-policy", json=sent)).json() == kept
    assert (await doors.admin.get("/v1/web-policy")).json() == kept
    assert (await doors.admin.put("/v1/web-policy", json={})).json()["allow"] == ["*"]
    assert (await doors.admin.put("/v1/web-policy", json={"allow": []})).json()["allow"] == []


@pytest.mark.parametrize(
    "pattern",
    ["https://example.org", "example.org/path", "*example.org", "a.*.org", "exa mple.org", "127.1", "[::1]", "a\x00"],
)
async def test_what_is_no_pattern_of_hosts_is_refused_by_its_field(doors, pattern):
    answer = await doors.admin.put("/v1/web-policy", json={"deny": [pattern]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "deny"
    assert (await doors.admin.get("/v1/web-policy")).json()["deny"] == []


@pytest.mark.parametrize(
    "body", [{"allow": ["a.test"] * 201}, {"allow": ["a" * 256]}, {"allow": [""]}, {"more": []}, {"allow": None}, []]
)
async def test_lists_that_are_too_long_or_none_are_refused(doors, body):
    assert (await doors.admin.put("/v1/web-policy", json=body)).status_code == 422


async def test_only_an_admin_sees_and_changes_them(doors):
    for role in ("developer", "readonly"):
        made = await doors.admin.post("/v1/keys", json={"name": "k", "role": role})
        caller = doors.caller(made.json()["key"])
        assert (await caller.get("/v1/web-policy")).status_code == 403
        assert (await caller.put("/v1/web-policy", json={})).status_code == 403
    assert (await doors.operator.get("/v1/web-policy")).status_code == 403
