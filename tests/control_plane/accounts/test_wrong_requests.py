"""What somebody is told whose request is wrong: what was wrong with it, and what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.control_plane.accounts.doors import Doors

_JSON = {"Content-Type": "application/json"}


async def _told(
    doors: Doors, body: bytes, headers: dict[str, str], path: str = "/v1/keys", status: int = 422
) -> dict[str, Any]:
    answer = await doors.admin.post(path, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_what_is_no_json_is_told_with_its_place(doors: Doors):
    problem = await _told(doors, b'{"name": }', _JSON, status=400)
    assert problem["code"] == "invalid_json"
    assert problem["detail"].startswith("the body can't be read: it is not JSON: ")
    assert problem["detail"].endswith("line 1 column 10 (char 9)")


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        (
            {"Content-Type": "application/x-www-form-urlencoded"},
            "the body is sent as application/x-www-form-urlencoded",
        ),
        ({"Content-Type": "application/yaml; charset=utf-8"}, "the body is sent as application/yaml"),
        ({}, "the body has no type"),
    ],
)
async def test_json_that_is_not_sent_as_json_is_told_of_the_header(doors: Doors, headers: dict[str, str], told: str):
    problem = await _told(doors, b'{"name": "x", "role": "developer"}', headers, status=415)
    assert problem["code"] == "unsupported_media_type"
    assert problem["detail"] == f"{told}; send it with Content-Type: application/json"


async def test_no_body_at_all_is_missing(doors: Doors):
    assert (await _told(doors, b"", {}))["detail"] == "body: is missing"


async def test_a_mistyped_field_is_told_beside_the_one_that_is_missing(doors: Doors):
    problem = await _told(doors, b'{"nmae": "x", "role": "developer"}', _JSON)
    assert problem["detail"] == "name: is missing; nmae: is not a known field"
    assert [one["field"] for one in problem["errors"]] == ["name", "nmae"]


async def test_a_body_of_another_kind_is_told_without_names_of_classes(doors: Doors):
    assert (await _told(doors, b"[]", _JSON))["detail"] == "body: should be a JSON object"


async def test_of_many_wrong_fields_three_are_told_and_the_rest_counted(doors: Doors):
    problem = await _told(doors, b'{"name": "x", "role": "developer", "a": 1, "b": 1, "c": 1, "d": 1, "e": 1}', _JSON)
    assert problem["detail"].endswith("c: is not a known field; and 2 more, in errors")
    assert len(problem["errors"]) == 5


async def test_however_much_is_wrong_the_answer_is_short(doors: Doors):
    wrong = {f"{number}{'x' * 300}": 1 for number in range(150)}
    sent = json.dumps({"name": "x", "role": "developer", **wrong}).encode()
    problem = await _told(doors, sent, _JSON)
    assert problem["detail"].endswith("; and 147 more, the first 50 of all in errors")
    assert len(problem["errors"]) == 50
    assert {len(one["field"]) for one in problem["errors"]} == {200}
    assert len(json.dumps(problem)) < 20_000


async def test_an_address_that_is_none_is_told_with_an_example_and_no_pattern(doors: Doors):
    problem = await _told(doors, b'{"email": "ada", "role": "developer"}', _JSON, "/v1/invitations")
    assert problem["detail"] == "email: should be an e-mail address, such as ada@example.com"


async def test_who_asks_at_no_path_is_told_where_the_paths_are(doors: Doors):
    answer = await doors.admin.get("/v1/session")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_path")
    assert "/docs" in answer.json()["detail"]
