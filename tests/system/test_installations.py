"""Collections from a git server, with modules that are built in a sandbox and need wheels: installed, used, updated, removed."""

import pytest

from tests.system.forge import ended, install, stocked
from tests.system.server import FREE


@pytest.fixture(scope="module")
def forge(tmp_path_factory):
    one = stocked(tmp_path_factory.mktemp("forge"))
    with one.git:
        yield one


@pytest.fixture(scope="module")
def settings(forge, tmp_path_factory):
    return forge.configuration(tmp_path_factory.mktemp("settings") / "config.yaml")


def profile(view) -> str:
    (only,) = view["profiles"]
    return only


@pytest.fixture
def kit(me, forge):
    """Installed."""
    answer = install(me, forge.git.uri("acme/kit"))
    assert answer.status == 201, answer.body
    return answer.json


def test_a_collection_from_git_is_installed_with_all_that_it_includes(me, forge, kit):
    greet = forge.repositories["acme/tool-greet"].git("rev-parse", "main")
    assert kit["commit"] == forge.repositories["acme/kit"].git("rev-parse", "main")
    assert [(one["uri"], one["commit"]) for one in kit["sources"][1:]] == [(forge.git.uri("acme/tool-greet"), greet)]
    built = {one["name"]: one["source"] for one in kit["distributions"]}
    assert built == {"amplifier-module-tool-greet": forge.git.uri("acme/tool-greet"), "greetings": None}
    assert me.get("/v1/collections/kit") == kit | {"installation_id": None}
    (job,) = me.get("/v1/collections/installations")["installations"]
    assert (job["status"], job["done"], job["warnings"]) == ("installed", 2, [])


def test_its_tool_runs_in_a_session(me, kit):
    assert me.tool(me.session(profile(kit)), "greet")["output"] == "hello 1"


def test_the_same_again_is_the_same_content(me, forge, kit):
    again = install(me, forge.git.uri("acme/kit")).json
    assert again | {"installation_id": kit["installation_id"]} == kit


def test_an_update_is_for_new_sessions_and_a_removal_for_none_that_are(me, forge, kit):
    forge.push_tool("moving")
    source = forge.push_kit("moving", "moving")
    first = install(me, source).json
    old = me.session(profile(first))
    forge.push_tool("moving", version="2")
    second = install(me, source).json
    assert second["commit"] == first["commit"]
    assert second["content_hash"] != first["content_hash"]
    assert me.tool(me.session(profile(second)), "moving")["output"] == "hello 2"
    assert me.tool(old, "moving")["output"] == "hello 1"
    assert me.call("DELETE", "/v1/collections/moving").status == 204
    assert me.tool(old, "moving")["output"] == "hello 1"
    assert me.call("POST", "/v1/sessions", {"profile": profile(second)}).code == "profile_not_found"


def test_another_tenant_has_nothing_of_it(server, me, kit):
    other = server.tenant(**FREE)
    assert other.get("/v1/collections")["collections"] == []
    assert other.get("/v1/collections/installations")["installations"] == []
    assert other.call("GET", "/v1/collections/kit").code == "collection_not_found"
    assert other.call("POST", "/v1/sessions", {"profile": profile(kit)}).code == "profile_not_found"


def test_what_is_missing_is_told_with_its_file_and_line(me, forge):
    answer = install(me, forge.push_kit("broken", "nowhere"))
    assert answer.code in ("source_not_found", "source_unreachable")
    assert "bundle.md:" in answer.json["detail"]
    assert me.get("/v1/collections")["collections"] == []


def test_a_module_that_cannot_be_imported_is_told_at_install_and_left_out_where_that_is_asked_for(me, forge):
    uri = forge.push_tool("lacking", code="import nowhere\n", requires=[])
    source = forge.push_kit("lacking", "lacking")
    refused = install(me, source)
    assert refused.code == "build_failed"
    assert all(
        told in refused.json["detail"] for told in ("tool-lacking", "nowhere", "lacking/bundle.md:", "skip_missing")
    )
    assert me.get("/v1/collections")["collections"] == []
    view = install(me, source, skip_missing=True).json
    assert view["left_out"] == [f"{uri}#module=tool-lacking"]
    job = me.get("/v1/collections/installations")["installations"][0]
    assert any("nowhere" in one for one in job["warnings"])
    session = me.session(profile(view))
    assert me.call("POST", f"/v1/sessions/{session}/execute", {"prompt": "hello"}).status == 200


_READER = """
from pathlib import Path
from amplifier_core import ToolResult


async def mount(coordinator, config=None):
    await coordinator.mount("tools", Reader(config["shelves"]), name="shelf")


class Reader:
    name = "shelf"
    description = "Reads what its configuration names."
    input_schema = {"type": "object", "properties": {}}

    def __init__(self, shelves):
        self.shelves = shelves

    async def execute(self, input):
        return ToolResult(success=True, output=" ".join(p.read_text() for one in self.shelves for p in Path(one).glob("*.md")))
"""


def test_repositories_that_a_modules_configuration_names_are_pinned_with_the_collection(me, forge):
    forge.push_tool("shelf", code=_READER, requires=[])
    forge.push("acme/books", {"shelf/one.md": "once upon a time", "other.md": "no"})
    books = forge.git.uri("acme/books")
    source = forge.push_kit("shelf", "shelf")
    whole = forge.repositories["acme/shelf"].git("show", "main:bundle.md")
    named = (
        f"tool-shelf@main\n    config:\n      shelves: ['{books}#subdirectory=shelf', '{forge.git.uri('acme/gone')}']\n"
    )
    forge.push("acme/shelf", {"bundle.md": whole.replace("tool-shelf@main\n", named) + "\n"})
    view = install(me, source).json
    assert books in [one["uri"] for one in view["sources"]]
    job = me.get("/v1/collections/installations")["installations"][0]
    assert any("acme/gone" in one and "shelf/bundle.md:" in one for one in job["warnings"])
    session = me.session(profile(view))
    forge.push("acme/books", {"shelf/one.md": "changed"})
    assert me.tool(session, "shelf")["output"] == "once upon a time"


EVIL = {
    "fails": ("raise SystemExit('no such compiler')", "no such compiler"),
    "dies": ("import os; os.kill(os.getpid(), 9)", "signal 9"),
    "kills its runtime": (
        "import os, signal\nfor _ in range(2): os.kill(os.getppid(), 9)\nimport time; time.sleep(60)",
        "",
    ),
    "eats memory": ("held = []\nwhile True: held.append(bytearray(b'x') * 50_000_000)", ""),
    "forks": ("import os\nwhile True: os.fork()", ""),
    "asks the network": ("import socket; socket.create_connection(('1.1.1.1', 53), 5)", "Network is unreachable"),
}


@pytest.mark.parametrize("way", EVIL)
def test_a_build_that_means_harm_fails_and_harms_nobody(server, me, forge, way):
    code, told = EVIL[way]
    name = way.replace(" ", "_")
    files = {"evil_backend.py": f"def build_wheel(*_):\n    {code.replace(chr(10), chr(10) + '    ')}\n"}
    backend = {"backend": "evil_backend", "build_requires": [], "requires": [], "files": files}
    forge.push_tool(name, **backend)
    pyproject = forge.repositories[f"acme/tool-{name}"]
    tree = pyproject.git("show", "main:pyproject.toml").replace("[project]", 'backend-path = ["."]\n[project]')
    forge.push_tool(name, **backend | {"files": files | {"pyproject.toml": tree + "\n"}})
    other = server.tenant(**FREE)
    session = other.session()
    answer = install(me, forge.push_kit(name, name))
    job = answer.json if answer.status != 202 else ended(me, answer)["problem"]
    assert job["code"] == "build_failed", job
    assert told in job["detail"]
    assert me.get("/v1/collections")["collections"] == []
    assert "hello" in other.shell(session, "echo hello")


def test_after_a_restart_what_was_installed_is_there_and_what_was_not_has_failed(make_server, forge, tmp_path):
    server = make_server(**forge.configuration(tmp_path / "config.yaml", wait="50ms")).start()
    me = server.caller()
    forge.push_tool("slow", code=None, files={})
    done = ended(me, install(me, forge.git.uri("acme/kit")))
    session = me.session(me.get(f"/v1/collections/{done['collection']}")["profiles"][0])
    forge.git.handlers["/acme/late"] = lambda handler: forge.git._httpd.is_ending.wait(5)
    try:
        waiting = install(me, forge.git.uri("acme/late"))
        assert waiting.status == 202
        server.kill()
        server.start()
        me = server.caller()
        job = me.get(waiting.headers["location"])
        assert (job["status"], job["problem"]["code"]) == ("failed", "server_restarted")
        assert me.tool(session, "greet")["output"] == "hello 1"
    finally:
        del forge.git.handlers["/acme/late"]
