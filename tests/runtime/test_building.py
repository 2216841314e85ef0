"""Modules are built in children of the sandbox from what was put there, and what they need is unpacked beside them."""

import codecs
import io
import zipfile
from pathlib import Path

import pytest

from tests.runtime.wheel_files import BACKEND, project, wheel

IMAGE = {"name": "kit", "root": {"uri": "git+https://example.com/kit@main", "commit": "c0ffee" * 7, "tree": "root"}}
SOURCE = "git+https://example.com/kit@main"


@pytest.fixture
def wheels(runtime) -> Path:
    """Where downloaded wheels are: the toy backend's."""
    folder = runtime.installed / "wheels"
    wheel(folder, "toy-backend", {"toy_backend.py": BACKEND})
    return folder


def module(runtime, name: str = "tool-x", code: str = "", **more) -> dict:
    """A project in a tree of its own, to be built."""
    tree = runtime.installed / name
    package = f"amplifier_module_{name.replace('-', '_')}"
    project(tree, f"amplifier-module-{name}", {f"{package}/__init__.py": code}, **more)
    return {"tree": name, "uri": f"git+https://example.com/{name}@main", "name": f"amplifier-module-{name}"}


async def build(runtime, *builds: dict, **more) -> tuple[int, dict]:
    return await runtime.call("POST", "/builds/b1", {"image": IMAGE, "builds": builds, "wheels": "wheels", **more})


async def packages(runtime) -> dict[str, bytes]:
    status, raw = await runtime.call_raw_stream("/builds/b1/packages")
    assert status == 200
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


async def test_modules_and_what_they_need_are_in_one_folder(runtime, wheels):
    wheel(wheels, "dep", requires=("deeper>=1; python_version > '3'", "extra-thing; extra == 'more'"))
    wheel(wheels, "deeper", {"deeper/__init__.py": "x = 1"})
    wheel(wheels, "unneeded")
    status, built = await build(runtime, module(runtime, code="import dep, deeper", requires=("dep>=1", "pydantic>=2")))
    assert status == 200, built
    found = {one["name"]: one.get("source") for one in built["distributions"]}
    uri = "git+https://example.com/tool-x@main"
    assert found == {"amplifier-module-tool-x": uri, "dep": None, "deeper": None}
    assert built["warnings"] == []
    files = await packages(runtime)
    assert {"amplifier_module_tool_x/__init__.py", "dep.py", "deeper/__init__.py", "distributions.txt"} <= files.keys()
    assert not [name for name in files if "pydantic" in name or "toy" in name or "unneeded" in name]


async def test_what_was_built_is_given_once_and_then_nothing_is_left(runtime, wheels):
    assert (await build(runtime, module(runtime)))[0] == 200
    await packages(runtime)
    assert list((runtime.workspace / ".builds").iterdir()) == []
    assert (await runtime.call("GET", "/builds/b1/packages"))[0] == 404


async def test_the_same_sources_give_the_same_archive(runtime, wheels):
    """Though the backend writes the time into the wheel."""
    timed = "import time, zipfile\nzipfile.time = type('T', (), {'time': lambda: 1e9 + id(time), 'localtime': lambda _: (%d, 1, 1, 0, 0, 0)})\n"
    found = []
    for year in (2001, 2002):
        wheel(wheels, "toy-backend", {"toy_backend.py": timed % year + BACKEND})
        status, built = await build(runtime, module(runtime))
        assert status == 200, built
        found.append((built, await packages(runtime)))
    assert found[0] == found[1]


async def test_a_version_that_is_a_tag_is_the_commits(runtime, wheels):
    project(runtime.installed / "root", "kit-lib", {"kit.py": ""}, version="@VERSION@")
    status, built = await build(runtime, {"tree": "root", "uri": SOURCE, "name": "kit-lib"})
    assert status == 200, built
    assert [one["version"] for one in built["distributions"]] == ["0.0.0+gc0ffeec0ffee"]


async def test_a_backend_of_the_projects_own_is_used(runtime, wheels):
    one = module(runtime, build_requires=(), backend="own")
    tree = runtime.installed / "tool-x"
    (tree / "own.py").write_text(BACKEND)
    pyproject = tree / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("[project]", 'backend-path = ["."]\n[project]'))
    assert (await build(runtime, one))[0] == 200


async def test_a_project_file_may_begin_with_a_byte_order_mark(runtime, wheels):
    one = module(runtime)
    pyproject = runtime.installed / "tool-x" / "pyproject.toml"
    pyproject.write_bytes(codecs.BOM_UTF8 + pyproject.read_bytes())
    status, built = await build(runtime, one)
    assert status == 200, built
    assert pyproject.read_bytes().startswith(codecs.BOM_UTF8), "the tree stays as it is"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"requires": ("nowhere>=2",)},
            "amplifier-module-tool-x 1.0 (git+https://example.com/tool-x@main) needs nowhere>=2",
        ),
        ({"requires": ("toy-backend>=9",)}, "there is toy-backend 1.0"),
        ({"build_requires": ("hatchling-x",)}, "needs hatchling-x"),
        ({"backend": "no_such_backend"}, "No module named 'no_such_backend'"),
    ],
)
async def test_what_is_missing_is_named(runtime, wheels, more, told):
    status, failure = await build(runtime, module(runtime, **more))
    assert (status, failure["code"]) == (422, "build_failed")
    assert told in failure["detail"]
    assert list((runtime.workspace / ".builds").iterdir()) == []


async def test_another_version_of_what_the_runtime_has_is_warned_of(runtime, wheels):
    status, built = await build(runtime, module(runtime, requires=("pydantic>=99",)))
    assert status == 200
    assert "the runtime has pydantic" in built["warnings"][0]


async def test_requirements_of_what_is_not_built_are_there_too_but_for_what_only_building_needs(runtime, wheels):
    wheel(wheels, "dep")
    status, built = await build(runtime, module(runtime), requirements=["dep>=1", "toy-backend"])
    assert status == 200, built
    assert {one["name"] for one in built["distributions"]} == {"amplifier-module-tool-x", "dep"}


MOUNT = "async def mount(c, config=None): ...\n"


def used(module_id: str, **more) -> dict:
    """A module of the image, as an inspection says it."""
    return {"id": module_id, "uri": f"git+https://example.com/{module_id}@main", "named_at": "bundle.md:3", **more}


async def test_why_a_module_cannot_be_imported_is_said_of_each(runtime, wheels):
    codes = {
        "tool-a": "import nowhere",
        "tool-b": "import os; os._exit(0)",
        "tool-c": "raise SystemExit(0)",
        "tool-d": "",
        "tool-e": MOUNT,
    }
    builds = [module(runtime, name, code) for name, code in codes.items()]
    status, built = await build(runtime, *builds, modules=[used(name) for name in codes])
    assert status == 200, built
    assert "No module named 'nowhere'" in built["unusable"].pop("tool-a")
    assert "tried to exit" in built["unusable"].pop("tool-c")
    assert built["unusable"] == {"tool-b": "it ended its process", "tool-d": "it has no mount()"}


async def test_a_module_that_is_not_built_is_tried_where_it_lies(runtime, wheels):
    for name, code in {"tool-a": "import nowhere", "tool-b": "import dep\n" + MOUNT}.items():
        package = runtime.installed / "lying" / "m" / f"amplifier_module_{name.replace('-', '_')}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(code)
    wheel(wheels, "dep")
    modules = [used(name, tree="lying", subdirectory="m") for name in ("tool-a", "tool-b")]
    status, built = await build(runtime, requirements=["dep"], modules=modules)
    assert (status, list(built["unusable"])) == (200, ["tool-a"])


async def test_modules_alone_need_no_wheels(runtime):
    (runtime.installed / "lying").mkdir(parents=True)
    modules = [used("tool-a", tree="lying")]
    status, built = await build(runtime, wheels=None, modules=modules)
    assert (status, built["distributions"], list(built["unusable"])) == (200, [], ["tool-a"])


async def test_a_package_of_a_module_that_no_profile_names_is_tried_too(runtime, wheels):
    _, built = await build(runtime, module(runtime, code="import nowhere"))
    assert list(built["unusable"]) == ["amplifier_module_tool_x"]


async def test_a_module_to_be_tried_leads_nowhere_else(runtime, wheels):
    (runtime.installed / "lying").mkdir()
    status, failure = await build(runtime, modules=[used("tool-a", tree="lying", subdirectory="../..")])
    assert (status, failure["code"]) == (422, "build_failed")


async def test_a_backend_that_never_ends_is_ended_with_all_that_it_started(runtime, wheels):
    mark = runtime.workspace / "alive"
    forks = "import os, time\nif os.fork() == 0:\n    time.sleep(1); open({!r}, 'w')\ntime.sleep(600)\n"
    wheel(wheels, "evil-backend", {"evil_backend.py": forks.format(str(mark))})
    one = module(runtime, build_requires=("evil-backend",), backend="evil_backend")
    status, failure = await build(runtime, one, timeout_seconds=0.5)
    assert (status, failure["code"]) == (422, "build_failed")
    assert not mark.exists()
    assert (await build(runtime, module(runtime, "tool-y")))[0] == 200


async def test_a_build_cannot_change_the_trees(runtime, wheels):
    code = BACKEND.replace("    return name", '    open("METADATA", "w").write("")\n    return name')
    wheel(wheels, "writer", {"writer.py": code})
    one = module(runtime, build_requires=("writer",), backend="writer")
    before = (runtime.installed / "tool-x" / "METADATA").read_text()
    assert (await build(runtime, one))[0] == 200
    assert (runtime.installed / "tool-x" / "METADATA").read_text() == before


async def test_two_wheels_with_one_file_that_differs_are_both_named(runtime, wheels):
    wheel(wheels, "one", {"shared.py": "1", "same.py": ""})
    wheel(wheels, "two", {"shared.py": "2", "same.py": ""})
    status, failure = await build(runtime, module(runtime, requires=("one", "two")))
    assert status == 422
    assert "one 1.0" in failure["detail"]
    assert "two 1.0" in failure["detail"]
    assert "shared.py" in failure["detail"]


async def test_an_archive_of_many_parts_is_whole(runtime, wheels, monkeypatch):
    monkeypatch.setattr("amplifier_api_server.runtime.wheels.PART_BYTES", 1000)
    one = module(runtime, code="x = 1\n" + "#" * 5_000)
    status, built = await build(runtime, one)
    assert status == 200, built
    parts = sorted((runtime.workspace / ".builds" / "b1" / "packages.zip").iterdir())
    assert {part.stat().st_size for part in parts[:-1]} == {1000}
    assert len(parts) > 5
    assert sum(part.stat().st_size for part in parts) == built["archive_bytes"]
    assert (await packages(runtime))["amplifier_module_tool_x/__init__.py"].startswith(b"x = 1\n#")


async def test_a_file_that_a_sandbox_may_not_write_is_named_with_the_bound(runtime, wheels, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (3_000, 3_000))
    wheel(wheels, "dep", {"dep/large.bin": "x" * 3_001})
    status, failure = await build(runtime, module(runtime, requires=("dep",)))
    assert (status, failure["code"]) == (422, "too_large")
    assert "'dep/large.bin', which has 3001 bytes" in failure["detail"]
    assert "at most 3000 (sandbox.file_size)" in failure["detail"]


async def test_of_one_name_from_two_sources_the_first_is_used_with_a_warning(runtime, wheels):
    first = module(runtime, "tool-x", "x = 1")
    project(runtime.installed / "copy", "amplifier-module-tool-x", {"amplifier_module_tool_x/__init__.py": "x = 2"})
    second = {"tree": "copy", "uri": "git+https://example.com/fork@main", "name": "tool"}
    status, built = await build(runtime, first, second)
    assert status == 200
    assert "fork" in built["warnings"][0]
    assert (await packages(runtime))["amplifier_module_tool_x/__init__.py"] == b"x = 1"


@pytest.mark.parametrize("tag", ["cp27-cp27mu-win32", "cp310-cp310-macosx_11_0_arm64"])
async def test_a_wheel_for_another_platform_is_refused(runtime, wheels, tag):
    wheel(wheels, "dep", tag=tag)
    status, failure = await build(runtime, module(runtime, requires=("dep",)))
    assert status == 422
    assert "another platform" in failure["detail"]


@pytest.mark.parametrize("name", ["../out.py", "/etc/out.py", "a\\..\\b.py"])
async def test_a_wheel_leads_nowhere_else(runtime, wheels, name):
    wheel(wheels, "dep", {name: ""})
    status, failure = await build(runtime, module(runtime, requires=("dep",)))
    assert status == 422
    assert "leads out" in failure["detail"]


async def test_what_a_wheel_has_for_other_folders_is_sorted(runtime, wheels):
    wheel(
        wheels,
        "dep",
        {"dep-1.0.data/purelib/dep.py": "", "dep-1.0.data/scripts/run": "", "dep-1.0.data/data/share/x": ""},
    )
    assert (await build(runtime, module(runtime, requires=("dep",))))[0] == 200
    files = await packages(runtime)
    assert "dep.py" in files
    assert not [name for name in files if name.endswith(("run", "share/x"))]


async def test_nobody_builds_in_a_runtime_that_is_nobodys(unclaimed):
    assert (await build(unclaimed))[0] == 409


async def test_a_project_leads_nowhere_else(runtime, wheels):
    one = module(runtime) | {"subdirectory": "../wheels"}
    assert (await build(runtime, one))[0] == 422
