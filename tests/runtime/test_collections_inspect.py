from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.runtime.conftest import Driver
from tests.runtime.fake_gateway import calls, says
from tests.runtime.test_turn_cancel import stubborn_module

PYPROJECT = (
    '[project]\nname = "birds"\nversion = "1.0.0"\ndescription = "Birds"\n[tool.amplifier.collection]\nauthor = "x"\n'
)
PROFILE = "---\nprofile:\n  name: watch\n  version: 1.0.0\n  description: Watching birds\n  extends: foundation:base\n---\nYou watch birds.\n"


def birds(runtime: Driver, content_hash: str = "aaaa", **files: str) -> Path:
    folder = runtime.installed / content_hash
    files = {"pyproject.toml": PYPROJECT, "profiles/watch.md": PROFILE} | files
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


AAAA = {"name": "birds", "root": {"uri": "upload", "tree": "aaaa"}}


async def inspected(runtime: Driver) -> tuple[int, dict]:
    """The manifest, or the failure."""
    status, told = await runtime.call("POST", "/inspect", {"image": AAAA})
    return status, told.get("manifest", told)


async def test_a_collection_says_what_is_in_it(unclaimed: Driver):
    birds(unclaimed, **{"agents/ringer.md": "---\nmeta: {name: ringer}\n---\nx", "README.md": "x"})
    status, manifest = await inspected(unclaimed)
    assert status == 200
    assert manifest == {
        "name": "birds",
        "version": "1.0.0",
        "description": "Birds",
        "profiles": [{"name": "birds:watch", "description": "Watching birds", "version": "1.0.0"}],
        "agents": ["ringer"],
        "modules": [],
        "tools": [],
    }


async def test_a_session_of_a_collections_profile_is_told_its_prompt(runtime: Driver):
    birds(runtime)
    await runtime.open(profile="birds:watch", images=[AAAA])
    await runtime.ask()
    assert runtime.gateway.requests[0]["messages"][0]["content"] == "You watch birds."


async def test_a_collection_in_a_nested_package_is_found(runtime: Driver):
    birds(runtime).joinpath("profiles").rename(runtime.installed / "aaaa" / "p")
    (runtime.installed / "aaaa" / "birds").mkdir()
    (runtime.installed / "aaaa" / "p").rename(runtime.installed / "aaaa" / "birds" / "profiles")
    assert (await inspected(runtime))[1]["profiles"][0]["name"] == "birds:watch"


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"pyproject.toml": ""}, "no collection"),
        ({"pyproject.toml": "[project\n"}, "pyproject.toml"),
        ({"pyproject.toml": PYPROJECT.replace("birds", "../x")}, "project.name"),
        ({"pyproject.toml": PYPROJECT.replace("birds", "foundation")}, "bundled"),
        ({"pyproject.toml": PYPROJECT.replace('"birds"', "[1]")}, "project.name"),
        ({"pyproject.toml": "tool = 3\n" + PYPROJECT.split("[tool", maxsplit=1)[0]}, "tool"),
        ({"pyproject.toml": "a = " + "[" * 5000}, "pyproject.toml"),
        ({"pyproject.toml": PYPROJECT + "x = '" + "y" * 300_000 + "'"}, "bytes"),
        ({"profiles/watch.md": "---\nprofile: {name: x, extends: gone}\n---\n"}, "birds:gone"),
        ({"profiles/bad.md": "x" * 300_000}, "bytes"),
        ({"profiles/a b.md": PROFILE}, "name"),
        ({"modules/x/y.py": ""}, "holds no package"),
        ({"modules/x/amplifier_module_tool_bash/__init__.py": ""}, "runtime's own"),
    ],
)
async def test_what_is_wrong_with_a_collection_is_said(runtime: Driver, files: dict[str, str], what: str):
    birds(runtime, **files)
    status, failure = await inspected(runtime)
    assert status == 422
    assert failure["code"] in ("collection_invalid", "profile_invalid")
    assert what in failure["detail"]


async def test_a_collection_of_another_name_than_expected_is_refused(runtime: Driver):
    birds(runtime)
    status, failure = await inspected(runtime, expected_name="fish")
    assert (status, failure["code"]) == (422, "collection_invalid")


async def test_a_profile_that_extends_another_collection_is_taken_on_trust_at_inspection(runtime: Driver):
    birds(runtime, **{"profiles/watch.md": "---\nprofile: {name: x, extends: 'fish:base'}\n---\n"})
    assert (await inspected(runtime))[0] == 200
    status, failure = await runtime.call("PUT", "/sessions/sess_1", {"profile": "birds:watch", "collections": ["aaaa"]})
    assert (status, failure["code"]) == (404, "profile_not_found")


@pytest.mark.parametrize("place", ["pyproject.toml", "profiles", "profiles/leak.md", "modules/evil"])
async def test_symbolic_links_are_not_followed(runtime: Driver, place: str):
    folder = birds(runtime)
    target = folder / place
    if target.is_dir():
        target.rename(folder / "real")
    target.unlink(missing_ok=True)
    target.parent.mkdir(exist_ok=True)
    target.symlink_to("/etc/passwd" if "." in place else "/etc")
    status, failure = await inspected(runtime)
    assert status == 422
    assert "root:" not in failure["detail"]


async def test_a_fifo_does_not_hang_the_inspection(runtime: Driver):
    folder = birds(runtime)
    (folder / "pyproject.toml").unlink()
    os.mkfifo(folder / "pyproject.toml")
    assert (await inspected(runtime))[0] == 422


async def test_too_many_files_are_refused(runtime: Driver):
    birds(runtime, **{f"profiles/p{number}.md": PROFILE for number in range(501)})
    assert (await inspected(runtime))[0] == 422


async def test_a_folder_that_is_not_there_is_missing(runtime: Driver):
    for content_hash in ("bbbb", "..", "a" * 200):
        assert (await runtime.call("POST", f"/collections/{content_hash}/inspect", {}))[0] == 404


async def test_inspection_runs_none_of_the_collections_code(runtime: Driver):
    ran = runtime.workspace / "ran"
    evil = f"open({str(ran)!r}, 'w').write('x')\n"
    birds(
        runtime,
        **{
            "modules/evil/amplifier_module_tool_evil/__init__.py": evil,
            "modules/evil/setup.py": evil,
            "conftest.py": evil,
            "sitecustomize.py": evil,
            "profiles/watch.md": PROFILE.replace("---\nYou", "tools:\n  - module: tool-evil\n---\nYou"),
        },
    )
    status, manifest = await inspected(runtime)
    assert (status, manifest["modules"]) == (200, ["tool-evil"])
    assert not ran.exists()


async def test_a_collections_tool_runs_in_a_session(runtime: Driver):
    stubborn_module(
        runtime.installed / "aaaa", '        return ToolResult(output={"bird": "heron"})\n', "tool_birdlist"
    )
    await runtime.open(profile="birds:watch", images=[AAAA])
    runtime.gateway.scripts.extend([calls(("stubborn", {})), says("seen")])
    assert (await runtime.ask())["tool_calls"][0]["output"] == {"bird": "heron"}


async def test_one_module_id_from_two_collections_is_refused_in_one_process(runtime: Driver):
    for content_hash in ("aaaa", "bbbb"):
        stubborn_module(runtime.installed / content_hash, "        return ToolResult(output=1)\n", "tool_twice")
    await runtime.open("sess_1", profile="birds:watch", images=[AAAA])
    status, failure = await runtime.call("PUT", "/sessions/sess_2", {"profile": "birds:watch", "collections": ["bbbb"]})
    assert (status, failure["code"]) == (409, "module_conflict")


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("raise ValueError('broken at import')", "broken at import"),
        ("import sys; sys.exit(3)", "exit"),
        ("def mount(:", "invalid syntax"),
        ("x = 1", "no mount()"),
        ("async def mount(coordinator, config):\n    raise RuntimeError('will not mount')", "will not mount"),
    ],
)
async def test_a_module_that_does_not_load_fails_the_creation_by_name(runtime: Driver, source: str, what: str):
    module = f"tool_broken_{abs(hash(source))}"
    stubborn_module(runtime.installed / "aaaa", "        pass\n", module)
    (runtime.installed / "aaaa" / "modules" / "stubborn" / f"amplifier_module_{module}" / "__init__.py").write_text(
        source
    )
    status, failure = await runtime.call("PUT", "/sessions/sess_1", {"profile": "birds:watch", "collections": ["aaaa"]})
    assert (status, failure["code"]) == (422, "module_failed")
    assert what in failure["detail"]
    assert (await runtime.call("GET", "/health"))[1]["open_sessions"] == []


async def test_a_collections_module_is_mounted_once_where_cores_resolver_would_mount_it_twice(runtime: Driver):
    stubborn_module(runtime.installed / "aaaa", "        pass\n", "tool_counted")
    package = runtime.installed / "aaaa" / "modules" / "stubborn" / "amplifier_module_tool_counted" / "__init__.py"
    mounted = "    with open(__file__ + '.count', 'a') as count:\n        count.write('x')\n"
    package.write_text(package.read_text() + mounted)
    await runtime.open(profile="birds:watch", images=[AAAA])
    assert Path(f"{package}.count").read_text() == "x"
