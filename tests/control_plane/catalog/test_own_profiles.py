"""A tenant's own profiles: versions that never change, believed when a sandbox has compiled them."""

import pytest

from tests.control_plane.catalog.workbench import bench, inspection, says
from tests.hostile_runtime import Request

COMPILED = {"spec": {"name": "mine", "description": "said"}, "plan": {"a": 1}, "model": "m", "warnings": ["w"]}


@pytest.fixture
async def made(tmp_path):
    async with bench(tmp_path) as one:
        one.plane.fleet.answers["POST", "compile"] = says(COMPILED)
        yield one


async def write(made, content="text", name="mine", key=None):
    return await made.call("POST", "/v1/profiles", json={"name": name, "content": content}, key=key)


async def test_each_new_content_is_a_version(made):
    first, same, second = await write(made, "a"), await write(made, "a"), await write(made, "b")
    assert [one.status_code for one in (first, same, second)] == [201, 200, 201]
    assert [one.json()["version"] for one in (first, same, second)] == ["1", "1", "2"]
    listed = (await made.call("GET", "/v1/profiles")).json()["profiles"]
    assert [(one["name"], one["version"], one["description"]) for one in listed if one["source"] == "own"] == [
        ("mine", "2", "said")
    ]


async def test_one_is_shown_compiled_and_as_it_was_written(made):
    await write(made, "a")
    await write(made, "b")
    now = (await made.call("GET", "/v1/profiles/mine")).json()
    assert (now["content"], now["plan"], now["warnings"]) == ("b", {"a": 1}, ["w"])
    assert (await made.call("GET", "/v1/profiles/mine?version=1")).json()["content"] == "a"
    assert (await made.call("GET", "/v1/profiles/mine?version=3")).json()["code"] == "profile_not_found"


async def test_a_removed_one_is_gone_and_its_numbers_go_on(made):
    await write(made, "a")
    assert (await made.call("DELETE", "/v1/profiles/mine")).status_code == 204
    for method in ("GET", "DELETE"):
        assert (await made.call(method, "/v1/profiles/mine")).json()["code"] == "profile_not_found"
    assert (await write(made, "a")).json()["version"] == "3"


async def test_one_that_does_not_compile_is_refused_with_where(made):
    made.plane.fleet.answers["POST", "compile"] = says({"code": "profile_invalid", "detail": "mine:3: no"}, 422)
    answer = await write(made)
    assert (answer.status_code, answer.json()["code"]) == (422, "profile_invalid")
    assert answer.json()["detail"] == "mine:3: no"
    assert (await made.call("GET", "/v1/profiles/mine")).status_code == 404


@pytest.mark.parametrize("name", ["", "A", "a:b", "-a", "a b", "a" * 65, "ä"])
async def test_a_name_is_plain(made, name):
    assert (await write(made, name=name)).json()["code"] == "invalid_request"


async def test_how_large_they_may_be(made):
    assert (await write(made, "x" * (256 * 1024 + 1))).status_code == 413
    statuses = [(await write(made, "x" * 250_000, name=f"p{index}")).status_code for index in range(5)]
    assert statuses == [201, 201, 201, 201, 413]


async def test_a_session_of_one_has_all_of_them_and_all_collections(made):
    for name in ("zeta", "alpha"):
        made.inspects(says(inspection(name)))
        assert (await made.upload(name)).status_code == 201
    await write(made, "a", name="mine")
    await write(made, "b", name="base")
    opened = []

    async def open_session(request: Request) -> None:
        opened.append(request.body)
        await request.reply(200, {"plan": {}, "model": "m"})

    made.plane.fleet.answers["PUT", "session"] = open_session
    for profile in ("mine", "zeta:p", "foundation:base"):
        assert (await made.call("POST", "/v1/sessions", json={"profile": profile})).status_code == 201
    assert [one["documents"] for one in opened] == [{"mine": "a", "base": "b"}, {}, {}]
    names = [[image["name"] for image in one["images"]] for one in opened]
    assert names == [["alpha", "zeta"], ["zeta", "alpha"], []]


async def test_a_collections_profile_is_compiled_by_its_tenants_sandbox_and_a_bundled_one_by_nobodys(made):
    await made.upload()
    seen = []

    async def compile_(request: Request) -> None:
        tenants = made.plane.app.services.fleet.tenants
        seen.append((request.body["profile"], request.runtime.runtime_id in tenants))
        await request.reply(200, COMPILED | {"spec": {"name": request.body["profile"]}})

    made.plane.fleet.answers["POST", "compile"] = compile_
    for path in ("kit%3Ap", "foundation:base", "foundation%3Abase"):
        assert (await made.call("GET", f"/v1/profiles/{path}")).status_code == 200, path
    assert seen == [("kit:p", True), ("foundation:base", False)]
    assert (await made.call("GET", "/v1/profiles/kit:none")).status_code == 404


async def test_another_tenants_are_not_there(made):
    await write(made)
    other = await made.tenant()
    assert (await made.call("GET", "/v1/profiles/mine", key=other)).status_code == 404
    assert (await made.call("POST", "/v1/sessions", json={"profile": "mine"}, key=other)).status_code == 404
    assert (await write(made, "theirs", key=other)).json()["version"] == "1"
    assert (await made.call("GET", "/v1/profiles/mine")).json()["content"] == "text"
