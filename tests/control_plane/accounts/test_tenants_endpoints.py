from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest

from tests.control_plane.accounts.doors import Doors


async def make(doors: Doors, **body: Any) -> Any:
    answer = await doors.operator.post("/v1/tenants", json={"name": "Second", "tier": "pro", **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_an_operator_makes_a_tenant_whose_admin_key_works(doors: Doors):
    made = await make(doors)
    assert re.fullmatch(r"ten_[0-9A-Za-z]{22}", made["id"])
    assert (made["name"], made["tier"], made["status"], made["limits"]) == ("Second", "pro", "active", {})
    assert made["created_at"].endswith("Z")
    admin = doors.caller(made["admin_key"])
    assert (await admin.get("/v1/keys")).status_code == 200
    assert "admin_key" not in (await doors.operator.get(f"/v1/tenants/{made['id']}")).json()


async def test_a_tenant_may_not_see_tenants_nor_an_operator_keys(doors: Doors):
    assert (await doors.admin.get("/v1/tenants")).status_code == 403
    assert (await doors.admin.post("/v1/tenants", json={"name": "x"})).status_code == 403
    assert (await doors.operator.get("/v1/keys")).status_code == 403
    assert (await doors.operator.get("/v1/usage")).status_code == 403


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": 7}, "name"),
        ({"name": "x", "tier": "platinum"}, "tier"),
        ({"name": "x", "tier": "../etc"}, "tier"),
        ({"name": "x", "extra": 1}, "extra"),
        ({"name": "x", "limits": {"nothing_per_day": 1}}, "limits.nothing_per_day"),
        ({"name": "x", "limits": {"tokens_per_day": -1}}, "limits.tokens_per_day"),
        ({"name": "x", "limits": {"tokens_per_day": "many"}}, "limits.tokens_per_day"),
        ({"name": "x", "limits": {"tokens_per_day": 2**60}}, "limits.tokens_per_day"),
        ({"name": "x", "limits": []}, "limits"),
        ({"name": "x", "status": "active"}, "status"),
    ],
)
async def test_a_wrong_body_is_422_and_names_the_field(doors: Doors, body: Any, field: str):
    answer = await doors.operator.post("/v1/tenants", content=_json(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert field in [one["field"] for one in answer.json()["errors"]]


def _json(body: Any) -> bytes:
    import json

    return json.dumps(body).encode()


async def test_limits_of_a_tenant_hold_for_its_keys(doors: Doors):
    made = await make(doors, limits={"requests_per_minute": 3, "tokens_per_day": "unlimited"})
    assert made["limits"] == {"requests_per_minute": 3, "tokens_per_day": None}
    admin = doors.caller(made["admin_key"])
    statuses = [(await admin.get("/v1/keys")).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    changed = await doors.operator.patch(f"/v1/tenants/{made['id']}", json={"limits": {}})
    assert changed.json()["limits"] == {}
    assert (await admin.get("/v1/keys")).headers["x-ratelimit-limit"] == "100"


async def test_suspend_and_restore(doors: Doors):
    made = await make(doors)
    admin = doors.caller(made["admin_key"])
    assert (await admin.get("/v1/keys")).status_code == 200
    path = f"/v1/tenants/{made['id']}"
    assert (await doors.operator.patch(path, json={"status": "suspended"})).json()["status"] == "suspended"
    refused = await admin.get("/v1/keys")
    assert (refused.status_code, refused.json()["code"]) == (403, "tenant_suspended")
    assert doors.embedded.stopped == [made["id"]]
    assert (await doors.operator.patch(path, json={"status": "active"})).json()["status"] == "active"
    assert (await admin.get("/v1/keys")).status_code == 200


async def test_a_patch_changes_what_it_names(doors: Doors):
    made = await make(doors)
    path = f"/v1/tenants/{made['id']}"
    assert (await doors.operator.patch(path, json={"name": " New "})).json()["name"] == "New"
    changed = (await doors.operator.patch(path, json={"tier": "free"})).json()
    assert (changed["name"], changed["tier"], changed["status"]) == ("New", "free", "active")
    assert (await doors.operator.patch(path, json={})).json()["tier"] == "free"
    for wrong in ({"status": "deleted"}, {"status": "x"}, {"tier": "x"}, {"id": "ten_x"}):
        assert (await doors.operator.patch(path, json=wrong)).status_code == 422


async def test_a_deleted_tenant_is_gone(doors: Doors):
    made = await make(doors)
    path = f"/v1/tenants/{made['id']}"
    assert (await doors.operator.delete(path)).status_code == 204
    assert (await doors.caller(made["admin_key"]).get("/v1/keys")).status_code == 401
    for answer in (
        await doors.operator.get(path),
        await doors.operator.patch(path, json={"status": "active"}),
        await doors.operator.delete(path),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "tenant_not_found")
    assert made["id"] not in [one["id"] for one in (await doors.operator.get("/v1/tenants")).json()["tenants"]]


async def test_pages_cover_everything_once_newest_first(doors: Doors):
    ids = []
    for number in range(5):
        doors.embedded.clock.advance(0.25 if number % 2 else 0)  # some were made at the same time
        ids.append((await make(doors, name=f"t{number}"))["id"])
    seen, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await doors.operator.get("/v1/tenants", params=query)).json()
        assert len(page["tenants"]) <= 2
        seen += page["tenants"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(one["id"] for one in seen) == sorted([*ids, doors.first.tenant_id])
    made_at = [datetime.fromisoformat(one["created_at"]) for one in seen]
    assert made_at == sorted(made_at, reverse=True)


@pytest.mark.parametrize("cursor", ["x", "AAAAAAAA", "é", "a" * 513, "W10"])
async def test_a_cursor_that_was_tampered_with_is_refused(doors: Doors, cursor: str):
    answer = await doors.operator.get("/v1/tenants", params={"cursor": cursor})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].endswith("cursor")


async def test_every_character_of_a_cursor_is_checked(doors: Doors):
    await make(doors)
    cursor = (await doors.operator.get("/v1/tenants", params={"limit": 1})).json()["next_cursor"]
    for position in range(len(cursor)):
        changed = cursor[:position] + ("A" if cursor[position] != "A" else "B") + cursor[position + 1 :]
        answer = await doors.operator.get("/v1/tenants", params={"cursor": changed})
        assert answer.status_code in (200, 422)
        if answer.status_code == 200:  # the last character may hold bits that mean nothing
            assert position == len(cursor) - 1
