"""What a runtime says of a collection, and what it makes of it: over its socket, as the control plane asks."""

from __future__ import annotations

import os
from typing import Any

import pytest

from amplifier_api_server.runtime.protocol import Image, Source
from tests.runtime.bundle_trees import HOME, SESSION, Trees, bundle, module_files
from tests.runtime.conftest import Driver

FISH = "git+https://git.example/birds/fish@v1"
RINGS = "git+https://git.example/birds/tool-rings@main"
PYPROJECT = (
    '[project]\nname = "birds"\nversion = "1.0.0"\ndescription = "Birds"\n[tool.amplifier.collection]\nauthor = "x"\n'
)
PROFILE = "---\nprofile:\n  name: watch\n  version: 1.0.0\n  description: Watching birds\n  extends: foundation:base\n---\nYou watch birds.\n"


def rings(source: str = RINGS, module_id: str = "tool-rings") -> str:
    """A bundle's sections with one module from outside."""
    return f"{SESSION}tools:\n- module: {module_id}\n  source: {source}\n"


@pytest.fixture
def trees(unclaimed: Driver) -> Trees:
    return Trees(unclaimed.installed)


def birds(trees: Trees, **files: str) -> Image:
    """A collection in the older format, as a zip brings it."""
    held = {"pyproject.toml": PYPROJECT, "profiles/watch.md": PROFILE} | files
    return trees.image(held, name="birds", uri="upload")


async def inspected(runtime: Driver, image: Image, use: str = "own") -> tuple[int, dict[str, Any]]:
    return await runtime.call("POST", "/inspect", {"image": image.model_dump() | {"name": ""}, "use": use})


async def test_an_old_collection_says_what_is_in_it(unclaimed: Driver, trees: Trees):
    image = birds(trees, **{"agents/ringer.md": "---\nmeta: {name: ringer}\n---\nx", "README.md": "x"})
    status, inspection = await inspected(unclaimed, image)
    assert status == 200, inspection
    assert inspection == {
        "manifest": {
            "name": "birds",
            "version": "1.0.0",
            "description": "Birds",
            "profiles": [{"name": "birds:watch", "description": "Watching birds", "version": "1.0.0"}],
            "agents": ["ringer"],
            "modules": [],
            "tools": [],
        },
        "wanted": [],
        "builds": [],
        "requirements": [],
        "missing": [],
        "modules": [],
        "warnings": [],
    }


async def test_a_collection_in_a_nested_package_is_found(unclaimed: Driver, trees: Trees):
    image = trees.image({"pyproject.toml": PYPROJECT, "birds/profiles/watch.md": PROFILE}, name="birds")
    assert (await inspected(unclaimed, image))[1]["manifest"]["profiles"][0]["name"] == "birds:watch"


@pytest.mark.parametrize(
    ("files", "uri", "subdirectory", "name"),
    [
        ({"pyproject.toml": PYPROJECT, "bundle.md": bundle("other")}, HOME, "", "birds"),
        ({"bundle.md": bundle("Heron Watch")}, HOME, "", "heron-watch"),
        ({"profiles/x.md": PROFILE}, HOME, "", "watch"),
        ({"profiles/x.md": PROFILE}, "https://git.example/My%20Birds.zip", "", "my-20birds"),
        (
            {"bundle.md": bundle("foundation")},
            "git+https://git.example/ms/amplifier-foundation@main",
            "",
            "amplifier-foundation",
        ),
        ({"pyproject.toml": PYPROJECT, "bundles/a.md": bundle("small")}, HOME, "bundles/a.md", "small"),
        ({"pyproject.toml": PYPROJECT, "bundles/a/bundle.md": bundle("small")}, HOME, "bundles/a", "small"),
    ],
)
async def test_a_collections_name_is_its_projects_or_its_bundles_or_its_addresss(
    unclaimed: Driver, trees: Trees, files: dict[str, str], uri: str, subdirectory: str, name: str
):
    image = trees.image(files, uri=uri, subdirectory=subdirectory)
    assert (await inspected(unclaimed, image))[1]["manifest"]["name"] == name


async def test_behaviors_are_no_profiles_but_a_collection_may_be_made_of_them(unclaimed: Driver, trees: Trees):
    files = {
        "bundle.md": bundle(rest=""),
        "behaviors/rings.yaml": f"bundle: {{name: r}}\ntools: [{{module: tool-rings, source: '{RINGS}'}}]\n",
    }
    _, inspection = await inspected(unclaimed, trees.image(files))
    assert inspection["manifest"]["profiles"] == []
    assert [one["uri"] for one in inspection["wanted"]] == [RINGS]


# What is wanted.


async def test_what_is_wanted_is_told_until_all_of_it_is_there(unclaimed: Driver, trees: Trees):
    """As the control plane does it: ask, fetch, ask again."""
    rest = f"includes: ['{FISH}', 'fish:behaviors/net']\nagents: {{include: ['fish:angler']}}\n{rings()}"
    sources = {
        FISH: {
            "bundle.md": "---\nbundle: {name: fish}\n---\n",
            "behaviors/net.yaml": "bundle: {name: net}\ntools: [tool-todo]\n",
            "agents/angler.md": f"---\nmeta: {{description: x}}\ntools: [{{module: tool-line, source: '{FISH}2'}}]\n---\n",
        },
        RINGS: module_files("tool-rings"),
        FISH + "2": module_files("tool-line"),
    }
    image = trees.image({"bundle.md": bundle(rest=rest)})
    seen = []
    while True:
        status, inspection = await inspected(unclaimed, image)
        assert status == 200, inspection
        if not inspection["wanted"]:
            break
        seen.append({one["uri"]: one["wanted_by"] for one in inspection["wanted"]})
        image.sources += [Source(uri=uri, tree=trees.tree(sources[uri])) for uri in seen[-1]]
    assert seen == [
        {FISH: "watch/bundle.md:3", RINGS: "watch/bundle.md:7"},
        {FISH + "2": "fish/agents/angler.md:3"},
    ]
    assert inspection["manifest"]["modules"] == ["tool-line", "tool-rings"]
    assert {(one["uri"], one["name"]) for one in inspection["builds"]} == {
        (RINGS, "tool-rings-project"),
        (FISH + "2", "tool-line-project"),
    }
    assert inspection["requirements"] == ["hatchling"]


@pytest.mark.parametrize(("use", "wanted"), [("own", []), ("source", [RINGS])])
async def test_sources_of_the_runtimes_own_modules_are_wanted_only_when_asked_for(
    unclaimed: Driver, trees: Trees, use: str, wanted: list[str]
):
    image = trees.image({"bundle.md": bundle(rest=rings(module_id="tool-bash"))})
    _, inspection = await inspected(unclaimed, image, use)
    assert [one["uri"] for one in inspection["wanted"]] == wanted


async def test_what_is_optional_is_wanted_as_such_and_can_be_missing(unclaimed: Driver, trees: Trees):
    image = trees.image({"bundle.md": bundle(rest=f"includes: [{{bundle: '{FISH}', optional: true}}]\n{SESSION}")})
    status, inspection = await inspected(unclaimed, image)
    assert (status, inspection["wanted"][0]["optional"]) == (200, True)
    image.lacks.append(FISH)
    _, inspection = await inspected(unclaimed, image)
    assert inspection["wanted"] == []
    assert "installed without" in inspection["warnings"][0]
    assert [one["name"] for one in inspection["manifest"]["profiles"]] == ["watch:watch"]


async def test_addresses_in_the_configuration_of_the_runtimes_own_modules_mean_nothing(unclaimed: Driver, trees: Trees):
    rest = f"{SESSION}tools: [{{module: tool-bash, config: {{skills: ['{FISH}#subdirectory=skills']}}}}]\n"
    _, inspection = await inspected(unclaimed, trees.image({"bundle.md": bundle(rest=rest)}))
    assert inspection["wanted"] == []


async def test_addresses_in_the_configuration_of_others_are_wanted_where_they_can_be_had(
    unclaimed: Driver, trees: Trees
):
    rest = f"{rings()}  config:\n    skills:\n    - {FISH}#subdirectory=skills\n    - local\n    - git+nonsense\n"
    image = trees.image({"bundle.md": bundle(rest=rest)}, {RINGS: module_files("tool-rings")})
    _, inspection = await inspected(unclaimed, image)
    at = "watch/bundle.md:9 (configuration of tool-rings)"
    assert inspection["wanted"] == [{"uri": FISH, "wanted_by": at, "optional": True}]
    image.lacks.append(FISH)
    _, inspection = await inspected(unclaimed, image)
    assert f"{at}: left out, because the collection was installed without {FISH}" in inspection["warnings"]
    image.lacks.clear()
    image.sources.append(Source(uri=FISH, tree=trees.tree({"README.md": ""})))
    _, inspection = await inspected(unclaimed, image)
    assert f"{at}: there is no 'skills' in {FISH}" in inspection["warnings"]


async def test_modules_are_told_with_where_they_are_and_who_names_them(unclaimed: Driver, trees: Trees):
    rest = f"{rings()}- {{module: tool-line, source: '{FISH}#subdirectory=m', optional: true}}\n"
    lying = {"m/src/amplifier_module_tool_line/__init__.py": ""}
    carried = module_files("tool-own", "modules/own/")
    image = trees.image({"bundle.md": bundle(rest=rest)} | carried, {RINGS: module_files("tool-rings"), FISH: lying})
    _, inspection = await inspected(unclaimed, image)
    base = {"optional": False, "subdirectory": ""}
    at = {"tree": image.sources[1].tree, "subdirectory": "m/src", "optional": True}
    assert inspection["modules"] == [
        base | {"id": "tool-rings", "uri": RINGS, "named_at": "watch/bundle.md:5"},
        base | {"id": "tool-line", "uri": FISH, "named_at": "watch/bundle.md:7"} | at,
        base | {"id": "tool-own", "uri": HOME, "named_at": "watch/modules/own"},
    ]


async def test_a_module_that_was_left_out_is_in_no_list(unclaimed: Driver, trees: Trees):
    carried = module_files("tool-own", "modules/own/")
    image = trees.image({"bundle.md": bundle(rest=rings())} | carried, {RINGS: module_files("tool-rings")})
    image.lacks += [f"{RINGS}#module=tool-rings", f"{HOME}#module=tool-own"]
    _, inspection = await inspected(unclaimed, image)
    assert (inspection["manifest"]["modules"], inspection["modules"], inspection["builds"]) == ([], [], [])


# What is built, and what that needs.


def project(dependencies: list[str], *, requires: str | None = "hatchling", name: str = "x") -> str:
    listed = ", ".join(f'"{one}"' for one in dependencies)
    system = f'[build-system]\nrequires = ["{requires}"]\n' if requires else ""
    return f'[project]\nname = "{name}"\nversion = "1"\ndependencies = [\n{listed}\n]\n{system}'


async def built(runtime: Driver, trees: Trees, files: dict[str, str]) -> dict[str, Any]:
    image = trees.image({"bundle.md": bundle(rest=rings())}, {RINGS: files})
    status, inspection = await inspected(runtime, image)
    assert status == 200, inspection
    return inspection


async def test_dependencies_are_told_less_what_the_runtime_has_and_what_is_built(unclaimed: Driver, trees: Trees):
    dependencies = [
        "httpx>=0.27",
        "amplifier-core>=1.0",
        "pyyaml>=6",
        "Pydantic[email]>=2",
        "colorama; sys_platform == 'win32'",
        "tomli; python_version < '3.0'",
    ]
    inspection = await built(unclaimed, trees, module_files("tool-rings") | {"pyproject.toml": project(dependencies)})
    assert inspection["requirements"] == ["hatchling", "httpx>=0.27"]


async def test_another_version_than_the_runtimes_is_told(unclaimed: Driver, trees: Trees):
    files = module_files("tool-rings") | {"pyproject.toml": project(["pydantic<2"])}
    inspection = await built(unclaimed, trees, files)
    assert inspection["requirements"] == ["hatchling"]
    assert inspection["warnings"][0].startswith("pydantic<2 is asked for, but the runtime has pydantic 2")


async def test_dependencies_from_git_are_wanted_and_built(unclaimed: Driver, trees: Trees):
    files = module_files("tool-rings") | {"pyproject.toml": project([f"fishlib @ {FISH}#subdirectory=lib"])}
    image = trees.image({"bundle.md": bundle(rest=rings())}, {RINGS: files})
    _, inspection = await inspected(unclaimed, image)
    assert inspection["wanted"] == [{"uri": FISH, "wanted_by": "tool-rings/pyproject.toml:5", "optional": False}]
    tree = trees.tree({"lib/pyproject.toml": project(["x"], requires="flit_core", name="fishlib")})
    image.sources.append(Source(uri=FISH, tree=tree))
    _, inspection = await inspected(unclaimed, image)
    assert inspection["builds"][1] == {"tree": tree, "subdirectory": "lib", "uri": FISH, "name": "fishlib"}
    assert inspection["requirements"] == ["flit_core", "hatchling"]


async def test_a_module_without_a_build_system_is_imported_from_where_it_lies(unclaimed: Driver, trees: Trees):
    files = module_files("tool-rings") | {"pyproject.toml": project(["httpx"], requires=None)}
    inspection = await built(unclaimed, trees, files)
    assert (inspection["builds"], inspection["requirements"]) == ([], ["httpx"])
    assert "no build-system" in inspection["warnings"][0]


async def test_a_library_of_the_modules_repository_is_built_when_its_code_imports_it(unclaimed: Driver, trees: Trees):
    code = "from amplifier_bundle_rings.core import ring\n"
    files = module_files("tool-rings", "m/", code) | {"pyproject.toml": project(["httpx"], name="rings-lib")}
    files["src/amplifier_bundle_rings/__init__.py"] = ""
    image = trees.image({"bundle.md": bundle(rest=rings(f"{RINGS}#subdirectory=m"))}, {RINGS: files})
    _, inspection = await inspected(unclaimed, image)
    assert [one["name"] for one in inspection["builds"]] == ["tool-rings-project", "rings-lib"]
    assert inspection["requirements"] == ["hatchling", "httpx"]


async def test_the_ecosystems_library_is_wanted_when_code_imports_it_without_saying_so(unclaimed: Driver, trees: Trees):
    files = module_files(
        "tool-rings", source="import os\nasync def mount(c):\n    from amplifier_foundation import x\n"
    )
    image = trees.image({"bundle.md": bundle(rest=rings())}, {RINGS: files})
    _, inspection = await inspected(unclaimed, image)
    assert [(one["uri"], one["wanted_by"]) for one in inspection["wanted"]] == [
        (
            "git+https://github.com/microsoft/amplifier-foundation@main",
            "tool-rings/amplifier_module_tool_rings/__init__.py:3",
        )
    ]


# What is wrong.


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"pyproject.toml": "", "profiles/watch.md": ""}, "profiles/watch.md"),
        ({"pyproject.toml": "[project\n"}, "pyproject.toml"),
        ({"pyproject.toml": PYPROJECT.replace("birds", "../x")}, "project.name"),
        ({"pyproject.toml": PYPROJECT.replace('"birds"', "[1]")}, "project.name"),
        ({"pyproject.toml": "project = 3\n"}, "project should be a table"),
        ({"pyproject.toml": "a = " + "[" * 5000}, "pyproject.toml"),
        ({"pyproject.toml": PYPROJECT + "x = '" + "y" * 300_000 + "'"}, "bytes"),
        ({"profiles/watch.md": "---\nprofile: {name: x, extends: gone}\n---\n"}, "birds:gone"),
        ({"profiles/bad.md": "x" * 300_000}, "bytes"),
        ({"profiles/a b.md": PROFILE}, "name"),
        ({"modules/x/y.py": ""}, "holds no package"),
        ({f"modules/{name}/amplifier_module_x/__init__.py": "" for name in "ab"}, "there twice"),
        (
            {"bundle.md": bundle(rest="includes: ['nobody:x']\n" + SESSION)},
            "bundle.md:3: there is no bundle 'nobody:x'",
        ),
        ({"bundle.md": bundle(rest=SESSION + "tools: [tool-gone]\n")}, "bundle.md:4: there is no module 'tool-gone'"),
        ({"bundle.md": bundle(rest=SESSION + "agents: {include: [gone]}\n")}, "there is no agent 'gone'"),
        ({"bundle.md": "---\nbundle: [x]\n---\n"}, "bundle.md:2"),
    ],
)
async def test_what_is_wrong_with_a_collection_is_said(
    unclaimed: Driver, trees: Trees, files: dict[str, str], what: str
):
    status, failure = await inspected(unclaimed, birds(trees, **files))
    assert status == 422, failure
    assert failure["code"] in ("collection_invalid", "profile_invalid")
    assert what in failure["detail"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (project(["not a requirement!"]), "tool-rings/pyproject.toml:5: 'not a requirement!' is no requirement"),
        (project(["x @ file:///etc"]), "tool-rings/pyproject.toml:5: x: "),
        ("[project]\ndependencies = 3\n[build-system]\n", "project.dependencies should be a list"),
        ("[build-system\n", "tool-rings/pyproject.toml: "),
    ],
)
async def test_what_is_wrong_with_a_project_is_said_with_file_and_line(
    unclaimed: Driver, trees: Trees, text: str, what: str
):
    files = {RINGS: module_files("tool-rings") | {"pyproject.toml": text}}
    status, failure = await inspected(unclaimed, trees.image({"bundle.md": bundle(rest=rings())}, files))
    assert (status, failure["code"]) == (422, "collection_invalid")
    assert what in failure["detail"]


async def test_all_that_is_wrong_is_said_at_once(unclaimed: Driver, trees: Trees):
    rest = "includes: ['nobody:x']\n" + SESSION + "tools: [tool-gone]\nagents: {include: [gone]}\n"
    _, failure = await inspected(unclaimed, trees.image({"bundle.md": bundle(rest=rest)}))
    for what in ("'nobody:x'", "'tool-gone'", "'gone'"):
        assert what in failure["detail"]


async def test_what_is_nothing_is_no_collection(unclaimed: Driver, trees: Trees):
    status, failure = await inspected(unclaimed, trees.image({"README.md": "Hello", "bundles/README.md": "x"}))
    assert (status, failure["code"]) == (422, "collection_invalid")
    assert "no collection" in failure["detail"]


async def test_a_profile_that_extends_another_collection_is_taken_on_trust_at_inspection(runtime: Driver, trees: Trees):
    image = birds(trees, **{"profiles/watch.md": "---\nprofile: {name: x, extends: 'fish:base'}\n---\n"})
    status, inspection = await inspected(runtime, image)
    assert (status, [one["name"] for one in inspection["manifest"]["profiles"]]) == (200, ["birds:watch"])
    assert "'fish:base'" in inspection["warnings"][0]
    body = {"profile": "birds:watch", "images": [image.model_dump()]}
    status, failure = await runtime.call("PUT", "/sessions/sess_1", body)
    assert (status, failure["code"]) == (404, "profile_not_found")


@pytest.mark.parametrize("place", ["pyproject.toml", "profiles", "profiles/leak.md", "modules/evil", "bundle.md"])
async def test_symbolic_links_are_not_followed(unclaimed: Driver, trees: Trees, place: str):
    image = birds(trees)
    folder = trees.folder / image.root.tree
    target = folder / place
    if target.is_dir():
        target.rename(folder / "real")
    target.unlink(missing_ok=True)
    target.parent.mkdir(exist_ok=True)
    target.symlink_to("/etc/passwd" if "." in place else "/etc")
    _, told = await inspected(unclaimed, image)
    assert "root:" not in str(told)
    assert "leak" not in str(told.get("manifest"))


async def test_a_fifo_does_not_hang_the_inspection(unclaimed: Driver, trees: Trees):
    image = birds(trees)
    (trees.folder / image.root.tree / "profiles" / "watch.md").unlink()
    os.mkfifo(trees.folder / image.root.tree / "profiles" / "watch.md")
    assert (await inspected(unclaimed, image))[0] == 422


async def test_too_many_files_are_refused(unclaimed: Driver, trees: Trees):
    image = birds(trees, **{f"profiles/p{number}.md": PROFILE for number in range(501)})
    assert (await inspected(unclaimed, image))[0] == 422


async def test_a_tree_that_is_not_there_is_missing(unclaimed: Driver):
    for tree in ("bbbb", "..", "a" * 200, ""):
        image = Image(name="x", root=Source(uri=HOME, tree=tree))
        assert (await inspected(unclaimed, image))[0] == 404


async def test_inspection_runs_none_of_the_collections_code(unclaimed: Driver, trees: Trees):
    ran = unclaimed.workspace / "ran"
    evil = f"open({str(ran)!r}, 'w').write('x')\n"
    image = birds(
        trees,
        **{
            "modules/evil/amplifier_module_tool_evil/__init__.py": evil,
            "modules/evil/setup.py": evil,
            "conftest.py": evil,
            "sitecustomize.py": evil,
            "profiles/watch.md": PROFILE.replace("---\nYou", "tools:\n  - module: tool-evil\n---\nYou"),
        },
    )
    status, inspection = await inspected(unclaimed, image)
    assert (status, inspection["manifest"]["modules"]) == (200, ["tool-evil"])
    assert not ran.exists()


async def test_a_module_with_an_id_of_the_runtimes_own_is_told_and_not_used(unclaimed: Driver, trees: Trees):
    image = birds(trees, **{"modules/x/amplifier_module_tool_bash/__init__.py": ""})
    _, inspection = await inspected(unclaimed, image)
    assert inspection["manifest"]["modules"] == []
    assert "'tool-bash' is the runtime's own" in inspection["warnings"][0]
