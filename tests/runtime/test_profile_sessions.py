"""Profiles of collections and of tenants, compiled and opened over a runtime's socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.bundle_trees import SESSION, Trees, bundle
from tests.runtime.conftest import Driver
from tests.runtime.fake_gateway import calls, says
from tests.runtime.test_collections_inspect import FISH, PROFILE, birds


@pytest.fixture
def trees(unclaimed: Driver) -> Trees:
    return Trees(unclaimed.installed)


async def test_a_profile_is_compiled_as_a_session_of_it_would_be(runtime: Driver, trees: Trees):
    image = trees.image(
        {"bundle.md": bundle(rest=SESSION + "odd: 1\n", body="Watch @watch:rules.md"), "rules.md": "Rule."}
    )
    body = {"profile": "watch:watch", "images": [image.model_dump()]}
    status, compiled = await runtime.call("POST", "/compile", body)
    assert status == 200, compiled
    assert compiled["spec"] == {"name": "watch:watch", "description": "", "version": "1.2.0"}
    assert "Rule." in compiled["plan"]["system_prompt"]
    assert (compiled["model"], len(compiled["warnings"])) == ("default", 1)
    assert await runtime.open(**body) == {"plan": compiled["plan"], "model": "default"}


async def test_a_tenants_own_document_is_compiled_and_opened(runtime: Driver):
    documents = {"mine": "---\nbundle: {name: mine, description: Mine}\nincludes: [foundation]\n---\nMine."}
    body = {"profile": "mine", "documents": documents}
    _, compiled = await runtime.call("POST", "/compile", body)
    assert compiled["spec"] == {"name": "mine", "description": "Mine", "version": "1.1.0"}
    await runtime.open(**body)
    await runtime.ask()
    assert runtime.gateway.requests[0]["messages"][0]["content"] == "Mine."


@pytest.mark.parametrize(
    ("documents", "status", "code"),
    [({}, 404, "profile_not_found"), ({"mine": "bundle: {name: x}\ntools: 3\n"}, 422, "profile_invalid")],
)
async def test_what_can_not_be_compiled_says_why(runtime: Driver, documents: dict[str, str], status: int, code: str):
    told, failure = await runtime.call("POST", "/compile", {"profile": "mine", "documents": documents})
    assert (told, failure["code"]) == (status, code)


async def test_a_session_of_a_collections_profile_is_told_its_prompt(runtime: Driver, trees: Trees):
    await runtime.open(profile="birds:watch", images=[birds(trees).model_dump()])
    await runtime.ask()
    assert runtime.gateway.requests[0]["messages"][0]["content"] == "You watch birds."


async def test_a_session_keeps_its_configuration_when_its_collection_has_changed(runtime: Driver, trees: Trees):
    image = birds(trees).model_dump()
    plan = (await runtime.open(profile="birds:watch", images=[image]))["plan"]
    trees.write(image["root"]["tree"], {"profiles/watch.md": PROFILE.replace("You watch", "You eat")})
    await runtime.open("sess_2", plan=plan, images=[image])
    await runtime.ask(session_id="sess_2")
    assert runtime.gateway.requests[0]["messages"][0]["content"] == "You watch birds."


async def test_a_mentioned_collections_file_can_be_read_by_its_name(runtime: Driver, trees: Trees):
    image = birds(trees, **{"context/rules.md": "Rule one."}).model_dump()
    await runtime.open(profile="birds:watch", images=[image])
    runtime.gateway.scripts.extend([calls(("read_file", {"file_path": "@birds:context/rules.md"})), says("seen")])
    assert "Rule one." in str((await runtime.ask())["tool_calls"][0]["output"])


def test_the_fixtures_lay_out_what_a_sandbox_sees(tmp_path: Path):
    trees = Trees(tmp_path)
    image = trees.image({"bundle.md": bundle()}, {FISH: {"a": "b"}})
    assert image.trees() == ["tree0", "tree1"]
    assert (tmp_path / "tree1" / "a").read_text() == "b"
