from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from amplifier_api_server.control_plane.keys.schemas import CreateKey, RotateKey
from tests.control_plane.accounts.doors import Doors


async def make(doors: Doors, **body: Any) -> Any:
    answer = await doors.admin.post("/v1/keys", json={"name": "bot", "role": "developer", **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_key_may_end_with_the_last_second_that_there_is(doors: Doors):
    made = await make(doors, expires_at="9999-12-31T23:59:59Z")
    assert (await doors.caller(made["key"]).get("/v1/me")).json()["expires_at"] == "9999-12-31T23:59:59Z"


async def test_a_new_key_is_shown_once(doors: Doors):
    made = await make(doors)
    assert made["key"].startswith("amp_live_")
    assert made["key"].endswith(made["hint"])
    assert made["id"].startswith("key_")
    listed = await doors.admin.get("/v1/keys")
    assert made["id"] in [one["id"] for one in listed.json()["keys"]]
    one = await doors.admin.get(f"/v1/keys/{made['id']}")
    for answer in (listed, one):
        assert made["key"] not in answer.text
        assert "digest" not in answer.text
    assert one.json() == {name: value for name, value in made.items() if name != "key"}


@pytest.mark.parametrize(
    ("role", "statuses"), [("admin", (200, 200)), ("developer", (403, 403)), ("readonly", (403, 403))]
)
async def test_roles(doors: Doors, role: str, statuses: tuple[int, int]):
    caller = doors.caller((await make(doors, role=role))["key"])
    assert ((await caller.get("/v1/keys")).status_code, (await caller.get("/v1/usage")).status_code) == statuses
    assert (await caller.get("/v1/limits")).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "x"}, "role"),
        ({"role": "admin"}, "name"),
        ({"name": "x", "role": "operator"}, "role"),
        ({"name": "x", "role": "root"}, "role"),
        ({"name": "x\x00", "role": "admin"}, "name"),
        ({"name": "x", "role": "admin", "expires_at": "yesterday"}, "expires_at"),
        ({"name": "x", "role": "admin", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "role": "admin", "expires_at": "2036-01-01T00:00:00"}, "expires_at"),
        ({"name": "x", "role": "admin", "expires_at": "9999-12-31T23:59:59-23:59"}, "expires_at"),
        ({"name": "x", "role": "admin", "expires_at": "9999-12-31T23:59:59.9999999Z"}, "expires_at"),
        ({"name": "x", "role": "admin", "expires_at": "0001-01-01T00:00:00+23:59"}, "expires_at"),
        ({"name": "x", "role": "admin", "member_id": "mem_nobody"}, "member_id"),
        ({"name": "x", "role": "admin", "member_id": "'; drop table member"}, "member_id"),
        ({"name": "x", "role": "admin", "limits": {"requests_per_minute": 5000}}, "limits.requests_per_minute"),
        ({"name": "x", "role": "admin", "limits": {"sandboxes": "unlimited"}}, "limits.sandboxes"),
        ({"name": "x", "role": "admin", "limits": {"nope": 1}}, "limits.nope"),
        ({"name": "x", "role": "admin", "tenant_id": "ten_other"}, "tenant_id"),
    ],
)
async def test_a_wrong_body_is_422_and_names_the_field(doors: Doors, body: Any, field: str):
    answer = await doors.admin.post("/v1/keys", json=body)
    assert answer.status_code == 422, answer.text
    assert field in [one["field"] for one in answer.json()["errors"]]


async def test_a_key_without_a_member_is_counted_for_itself(doors: Doors):
    one, other = await make(doors), await make(doors)
    assert one["member_id"] != other["member_id"]
    shared = await make(doors, member_id=one["member_id"])
    assert shared["member_id"] == one["member_id"]


async def test_limits_of_a_key_lower_what_its_tenant_has(doors: Doors):
    caller = doors.caller((await make(doors, limits={"requests_per_minute": 2}))["key"])
    explained = {one["name"]: one for one in (await caller.get("/v1/limits")).json()["limits"]}
    assert explained["requests_per_minute"]["limit"] == 2


async def test_a_revoked_key_is_401_at_once(doors: Doors):
    made = await make(doors, role="admin")
    caller = doors.caller(made["key"])
    assert (await caller.get("/v1/keys")).status_code == 200
    assert (await doors.admin.delete(f"/v1/keys/{made['id']}")).status_code == 204
    refused = await caller.get("/v1/keys")
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    assert "www-authenticate" in refused.headers
    assert doors.embedded.revoked == [made["id"]]
    assert (await doors.admin.delete(f"/v1/keys/{made['id']}")).status_code == 404


async def test_another_tenants_key_is_404(doors: Doors):
    made = await make(doors)
    other = (await doors.operator.post("/v1/tenants", json={"name": "Other", "tier": "pro"})).json()
    stranger = doors.caller(other["admin_key"])
    for answer in (
        await stranger.get(f"/v1/keys/{made['id']}"),
        await stranger.delete(f"/v1/keys/{made['id']}"),
        await stranger.post(f"/v1/keys/{made['id']}/rotate"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "key_not_found")
    taken = await stranger.post("/v1/keys", json={"name": "x", "role": "admin", "member_id": made["member_id"]})
    assert taken.status_code == 422
    assert [one["name"] for one in (await stranger.get("/v1/keys")).json()["keys"]] == ["admin"]


async def test_the_last_admin_key_can_not_be_revoked(doors: Doors):
    mine = (await doors.admin.get("/v1/keys")).json()["keys"][0]["id"]
    refused = await doors.admin.delete(f"/v1/keys/{mine}")
    assert (refused.status_code, refused.json()["code"]) == (409, "last_admin_key")
    expires_at = (doors.embedded.clock.now() + timedelta(hours=1)).isoformat()
    other = await make(doors, role="admin", expires_at=expires_at)
    doors.embedded.clock.advance(3601)
    assert (await doors.admin.delete(f"/v1/keys/{mine}")).status_code == 409  # the other one works no more
    lasting = await make(doors, role="admin")
    assert (await doors.admin.delete(f"/v1/keys/{mine}")).status_code == 204
    assert (await doors.caller(lasting["key"]).delete(f"/v1/keys/{other['id']}")).status_code == 204


async def test_rotation_overlaps(doors: Doors):
    old = await make(doors, limits={"requests_per_minute": 50})
    new = (await doors.admin.post(f"/v1/keys/{old['id']}/rotate", json={"overlap": 60})).json()
    assert new["key"] != old["key"]
    assert {name: new[name] for name in ("member_id", "name", "role", "limits", "expires_at")} == {
        name: old[name] for name in ("member_id", "name", "role", "limits", "expires_at")
    }
    assert new["rotated_from"] == old["id"]
    first, second = doors.caller(old["key"]), doors.caller(new["key"])
    assert [(await one.get("/v1/limits")).status_code for one in (first, second)] == [200, 200]
    doors.embedded.clock.advance(60)
    assert [(await one.get("/v1/limits")).status_code for one in (first, second)] == [401, 200]


async def test_rotation_without_overlap_ends_the_old_key_now(doors: Doors):
    old = await make(doors)
    assert (await doors.admin.post(f"/v1/keys/{old['id']}/rotate", json={"overlap": 0})).status_code == 201
    assert (await doors.caller(old["key"]).get("/v1/limits")).status_code == 401
    assert doors.embedded.revoked == [old["id"]]


async def test_rotation_needs_no_body_and_happens_once(doors: Doors):
    old = await make(doors)
    path = f"/v1/keys/{old['id']}/rotate"
    first = await doors.admin.post(path)
    assert first.status_code == 201
    again = await doors.admin.post(path)
    assert (again.status_code, again.json()["code"]) == (409, "key_rotated")
    assert (await doors.admin.post(f"/v1/keys/{first.json()['id']}/rotate")).status_code == 201
    kept = (await doors.admin.get(f"/v1/keys/{old['id']}")).json()["expires_at"]
    assert kept.startswith("2026-03-11T12:00")
    for wrong in ({"overlap": -1}, {"overlap": 31 * 86_400}, {"overlap": "x"}, {"x": 1}):
        assert (await doors.admin.post(path, json=wrong)).status_code == 422


async def test_a_rotated_key_that_expires_lasts_as_long_again(doors: Doors):
    clock = doors.embedded.clock
    old = await make(doors, expires_at=(clock.now() + timedelta(days=30)).isoformat())
    clock.advance(29 * 86_400)
    new = (await doors.admin.post(f"/v1/keys/{old['id']}/rotate", json={"overlap": 7 * 86_400})).json()
    assert new["expires_at"].startswith("2026-05-08T12:00")  # thirty days from now
    kept = (await doors.admin.get(f"/v1/keys/{old['id']}")).json()["expires_at"]
    assert kept.startswith("2026-04-09T12:00")  # no longer than it would have worked
    clock.advance(86_400)
    expired = await doors.admin.post(f"/v1/keys/{old['id']}/rotate")
    assert expired.status_code == 409


async def test_pages(doors: Doors):
    for _ in range(4):
        await make(doors)
    seen, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await doors.admin.get("/v1/keys", params=query)).json()
        seen += [one["id"] for one in page["keys"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["name", "role", "limits", "expires_at", "member_id", "overlap"]), inner, max_size=6
            )
        ),
        max_leaves=10,
    )
)
def test_no_body_gives_anything_but_a_refusal(body: Any):
    """Against the schema alone: what it lets through has been looked at above."""
    for kind in (CreateKey, RotateKey):
        with contextlib.suppress(ValidationError):
            kind.model_validate(body)
