"""Sources from a real git server over HTTPS: refs and commits, redirects, limits, mirrors, and what is refused."""

import asyncio
import io
import threading
import zipfile

import pytest

from amplifier_api_server.control_plane.catalog import git as git_module
from amplifier_api_server.control_plane.catalog.source_limits import FetchLimits
from amplifier_api_server.control_plane.catalog.sources import Sources
from amplifier_api_server.control_plane.catalog.trees import Trees
from amplifier_api_server.runtime.protocol import SourceUri
from amplifier_api_server.tenants.errors import DomainError
from tests.git_server import GitServer

LIMITS = FetchLimits(max_bytes=4 * 1024**2, max_files=200, timeout_seconds=30)


@pytest.fixture
def server(tmp_path):
    with GitServer(tmp_path / "server") as running:
        yield running


@pytest.fixture
def trees(tmp_path):
    return Trees(tmp_path / "trees")


@pytest.fixture
def fetch(server, trees):
    """Fetch a uri as the operator's settings have it."""
    made = []

    async def fetch(uri, *, limits=LIMITS, settings=None):
        sources = Sources(settings or server.settings(), trees, resolve=server.resolve)
        made.append(sources)
        return await sources.fetch(uri if isinstance(uri, SourceUri) else SourceUri.parse(uri), limits=limits)

    yield fetch
    for one in made:
        one.close()


async def refused(fetching) -> str:
    with pytest.raises(DomainError) as error:
        await fetching
    return error.value.stable_code


def is_empty(trees) -> bool:
    """Nothing of a fetch that failed is left."""
    return not trees._folder.exists() or not list(trees._folder.iterdir())


@pytest.fixture
def tools(server):
    repository = server.repository("org/tools")
    repository.first = repository.commit({"bundle.md": "old"})
    repository.second = repository.commit(
        {"bundle.md": "new", "bin/run": ("#!/bin/sh", 0o755)}, parent=repository.first
    )
    repository.tag("v1", repository.first)
    repository.tag("v2", repository.second, annotated=True)
    repository.git("update-ref", "refs/heads/feature/x", repository.first)
    return repository


async def test_a_branch_is_fetched_with_its_commit_and_executable_files(server, trees, fetch, tools):
    found = await fetch(server.uri("org/tools", ref="main"))
    folder = trees.path(found.tree)
    assert found.commit == tools.second
    assert (folder / "bundle.md").read_text() == "new"
    assert (folder / "bin/run").stat().st_mode & 0o111
    assert not (folder / "bundle.md").stat().st_mode & 0o111
    assert sorted(path.name for path in folder.rglob("*")) == ["bin", "bundle.md", "run"]
    assert (found.files, found.size_bytes) == (3, 3 * 4096)  # two files and a folder


@pytest.mark.parametrize("ref", ["", "v2", "refs/heads/main", "SECOND", "SHORT SECOND"])
async def test_every_way_to_name_a_commit_leads_to_it(server, fetch, tools, ref):
    ref = {"SECOND": tools.second, "SHORT SECOND": tools.second[:8]}.get(ref, ref)
    uri = SourceUri("git", server.url("org/tools"), ref, "")
    assert (await fetch(uri)).commit == tools.second


@pytest.mark.parametrize("ref", ["v1", "feature/x", "FIRST", "SHORT FIRST"])
async def test_a_commit_that_is_not_the_newest_is_found_too(server, fetch, tools, ref):
    ref = {"FIRST": tools.first, "SHORT FIRST": tools.first[:8]}.get(ref, ref)
    found = await fetch(SourceUri("git", server.url("org/tools"), ref, ""))
    assert found.commit == tools.first


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("tags/pkg@1.2.0", "@pkg@1.2.0"),
        ("tags/pkg@1.2.0", "@pkg%401.2.0"),
        ("tags/@scope/pkg@1.0", "@@scope/pkg@1.0"),
        ("heads/fix#12", "@fix%2312"),
        ("heads/100%", "@100%25"),
        ("heads/ünïcode/ветка", "@ünïcode/ветка"),
        ("heads/ünïcode/ветка", "@%C3%BCn%C3%AFcode/%D0%B2%D0%B5%D1%82%D0%BA%D0%B0"),
        ("heads/a'b(c)&d;e$f", "@a'b(c)&d;e$f"),
        ("heads/release+1=x,y!", "@release+1=x,y!"),
    ],
)
async def test_every_name_that_git_allows_can_be_written(server, fetch, tools, name, written):
    tools.git("update-ref", f"refs/{name}", tools.first)
    uri = SourceUri.parse(f"git+{server.url('org/tools')}{written}#subdirectory=")
    assert (await fetch(uri)).commit == tools.first
    assert SourceUri.parse(uri.key) == uri


async def test_a_folder_of_any_name_can_be_written(server, fetch, tools):
    tools.commit({"with space/bundle.md": "a", "ümlaut#1/bundle.md": "b"}, branch="folders")
    for written in ("with%20space", "%C3%BCmlaut%231"):
        await fetch(SourceUri.parse(f"git+{server.url('org/tools')}@folders#subdirectory={written}"))


@pytest.mark.parametrize(
    "hidden", ["@a%00b", "@a%0Ab", "@%FF", "@main#subdirectory=%2e%2e/x", "@main#subdirectory=a%5Cb"]
)
def test_what_is_no_name_is_not_hidden_by_percent_encoding(hidden):
    with pytest.raises(ValueError, match=r"percent-encoded|leads out"):
        SourceUri.parse(f"git+https://host/org/repo{hidden}")


async def test_a_branch_goes_before_a_tag_of_its_name(server, fetch, tools):
    tools.tag("main", tools.first)
    assert (await fetch(server.uri("org/tools", ref="main"))).commit == tools.second


@pytest.mark.parametrize(
    "ref",
    [
        "nope",
        "f" * 40,
        "abcdef12",
        "--upload-pack=touch /tmp/x",
        "-x",
        "a..b",
        "main^{tree}",
        "HEAD~1",
        "*",
        "a b",
        "@",
        ".x",
        "a.lock",
        "a:b",
    ],
)
async def test_a_ref_that_is_not_there_or_none_is_not_found(server, trees, fetch, tools, ref):
    assert await refused(fetch(SourceUri("git", server.url("org/tools"), ref, ""))) == "source_not_found"
    assert is_empty(trees)


async def test_a_subdirectory_must_be_there_and_the_whole_tree_is_kept(server, trees, fetch, tools):
    found = await fetch(server.uri("org/tools", subdirectory="bin"))
    assert (trees.path(found.tree) / "bundle.md").exists()
    assert await refused(fetch(server.uri("org/tools", subdirectory="nope"))) == "source_not_found"


@pytest.mark.parametrize("name", ["org/nope", "nope"])
async def test_a_repository_that_is_not_there_is_not_found(server, fetch, tools, name):
    assert await refused(fetch(server.uri(name))) == "source_not_found"


async def test_an_empty_repository_is_not_found(server, fetch):
    server.repository("empty")
    assert await refused(fetch(server.uri("empty", ref=""))) == "source_not_found"


async def test_a_page_that_is_no_repository_is_not_found(server, fetch):
    server.files["/page/info/refs"] = ("text/html", b"<html>")
    assert await refused(fetch(server.uri("page"))) == "source_not_found"


async def test_a_server_that_wants_credentials_is_not_found_and_asked_for_none(server, fetch):
    server.handlers["/private"] = lambda handler: handler.answer(401, b"", WWW_Authenticate="Basic")
    assert await refused(fetch(server.uri("private"))) == "source_not_found"


async def test_a_server_that_turns_to_nonsense_is_unreachable(server, trees, fetch, tools):
    server.handlers["/org/tools/git-upload-pack"] = lambda handler: handler.answer(200, b"nonsense")
    assert await refused(fetch(server.uri("org/tools"))) == "source_unreachable"
    assert is_empty(trees)


async def test_a_redirect_is_followed_to_where_the_repository_is_now(server, fetch, tools):
    server.redirects["/old/name"] = "/org/tools"
    assert (await fetch(server.uri("old/name"))).commit == tools.second


@pytest.mark.parametrize(
    "target", ["https://169.254.169.254/repo", "https://private.test/repo", "http://git.test/repo"]
)
async def test_a_redirect_to_a_private_address_or_to_http_is_refused(server, fetch, target):
    server.redirects["/old"] = target
    assert await refused(fetch(server.uri("old/name"))) == "source_not_allowed"
    assert len(server.asked) == 1


async def test_a_redirect_of_gits_own_second_request_is_not_followed(server, fetch, tools):
    """The first answer is honest; what git asks for next leads elsewhere."""
    server.redirects["/org/tools/git-upload-pack"] = "/elsewhere"
    assert await refused(fetch(server.uri("org/tools"))) == "source_unreachable"
    assert not [path for path in server.asked if path.startswith("/elsewhere")]


async def test_git_connects_to_the_address_that_was_checked_and_resolves_nothing(server, fetch, tools):
    """No resolver but the test's knows the name: were git to ask for it again, there would be no such host."""
    assert (await fetch(server.uri("org/tools", host="git.test"))).commit == tools.second


async def test_alternates_that_a_dumb_server_names_are_not_followed(server, fetch, tools):
    """The first look is smart, what git sees is a plain folder of files that names objects on another host."""
    asked = []

    def two_faced(handler):
        asked.append(handler.path)
        if len(asked) > 1:
            refs = f"{tools.second}\trefs/heads/main\n".encode()
            return handler.answer(200, refs, content_type="text/plain")
        return handler.answer(200, b"x", content_type="application/x-git-upload-pack-advertisement")

    server.handlers["/dumb/info/refs"] = two_faced
    server.files["/dumb/HEAD"] = ("text/plain", b"ref: refs/heads/main\n")
    server.files["/dumb/objects/info/http-alternates"] = ("text/plain", server.url("stolen/objects\n").encode())
    assert await refused(fetch(server.uri("dumb"))) in ("source_unreachable", "source_not_found")
    assert not [path for path in server.asked if path.startswith("/stolen")]


@pytest.mark.parametrize(
    "uri",
    [
        "git+https://127.0.0.1/repo@main",
        "git+https://10.0.0.1/repo@main",
        "git+https://[::1]/repo@main",
        "git+https://2130706433/repo@main",
        "git+https://169.254.169.254/repo@main",
        "git+https://private.test/repo@main",
        "git+https://git.test:22/repo@main",
        "https://192.168.1.1/collection.zip",
        "git+http://git.test/repo@main",
        "git+ssh://git.test/repo@main",
        "git+file:///etc@main",
        "file:///etc/collection.zip",
    ],
)
async def test_what_is_not_public_or_not_https_is_not_allowed(server, fetch, uri):
    assert await refused(fetch(uri)) == "source_not_allowed"
    assert server.asked == []


async def test_hosts_that_the_operator_does_not_allow_are_refused(server, fetch, tools):
    assert await refused(fetch(server.uri("org/tools"), settings=server.settings(hosts=["github.com"])))
    denied = server.settings(denied_hosts=["localhost"])
    assert await refused(fetch(server.uri("org/tools"), settings=denied)) == "source_not_allowed"


async def test_a_certificate_that_nobody_trusts_is_unreachable(server, fetch, tools):
    settings = server.settings(ca_file=None)
    assert await refused(fetch(server.uri("org/tools"), settings=settings)) == "source_unreachable"


async def test_git_trusts_no_other_certificates_than_the_client_does(server, trees, tools, monkeypatch):
    sources = Sources(server.settings(), trees, resolve=server.resolve)
    sources._git._ca_bundle = lambda: None
    try:
        uri = SourceUri.parse(server.uri("org/tools"))
        assert await refused(sources.fetch(uri, limits=LIMITS)) == "source_unreachable"
    finally:
        sources.close()


# Bounds.


async def test_too_many_bytes_are_too_large_and_leave_nothing(server, trees, fetch):
    server.repository("big").commit({"zeros": b"\0" * 5 * 1024**2})
    assert await refused(fetch(server.uri("big"))) == "source_too_large"
    assert is_empty(trees)


async def test_too_many_files_are_too_large(server, fetch):
    server.repository("many").commit({f"f{n}": "" for n in range(201)})
    assert await refused(fetch(server.uri("many"))) == "source_too_large"


async def test_a_pack_that_is_larger_than_allowed_is_stopped_while_it_comes(server, trees, fetch, monkeypatch):
    import random

    monkeypatch.setattr(git_module, "_SLACK_BYTES", 100_000)
    server.repository("noise").commit({"noise": random.Random(1).randbytes(3 * 1024**2)})
    limits = FetchLimits(max_bytes=500_000, max_files=10, timeout_seconds=30)
    assert await refused(fetch(server.uri("noise"), limits=limits)) == "source_too_large"
    assert is_empty(trees)


async def test_a_tree_that_grows_without_end_is_too_large(server, fetch):
    """Ten folders in each of ten levels, all of them one object: a few hundred bytes, ten thousand million files."""
    repository = server.repository("bomb")
    tree = repository.tree_of({"f": "x"})
    for _ in range(10):
        tree = repository.tree([("040000", "tree", tree, f"d{n}") for n in range(10)])
    repository.commit_tree(tree)
    assert await refused(fetch(server.uri("bomb"))) == "source_too_large"


async def test_a_slow_server_is_left_and_git_with_it(server, trees, fetch, tools):
    entered = threading.Event()

    def slow(handler):
        entered.set()
        handler.server.is_ending.wait(600)

    server.handlers["/org/tools/git-upload-pack"] = slow
    limits = FetchLimits(max_bytes=10**6, max_files=10, timeout_seconds=1)
    assert await refused(fetch(server.uri("org/tools"), limits=limits)) == "source_timeout"
    assert entered.is_set()
    assert is_empty(trees)


async def test_a_cancelled_fetch_ends_git_and_leaves_nothing(server, trees, fetch, tools):
    entered = threading.Event()

    def slow(handler):
        entered.set()
        handler.server.is_ending.wait(600)

    server.handlers["/org/tools/git-upload-pack"] = slow
    task = asyncio.ensure_future(fetch(server.uri("org/tools")))
    await asyncio.to_thread(entered.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    assert is_empty(trees)


async def test_without_git_it_is_said_what_to_do(server, fetch, tools, monkeypatch):
    monkeypatch.setattr(git_module, "is_there", lambda program: False)
    assert await refused(fetch(server.uri("org/tools"))) == "git_not_available"


# Zips.


def zipped(files) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in files.items():
            out.writestr(name, content)
    return made.getvalue()


async def test_a_zip_is_fetched_and_is_the_same_tree_as_the_repository_of_the_same_files(server, fetch):
    server.repository("org/plain").commit({"bundle.md": "x", "a/b": "y"})
    server.files["/plain.zip"] = ("application/zip", zipped({"plain-main/bundle.md": "x", "plain-main/a/b": "y"}))
    one, two = await fetch(server.url("plain.zip")), await fetch(server.uri("org/plain"))
    assert one.tree == two.tree
    assert one.commit is None


async def test_a_zip_that_breaks_out_or_is_none_is_invalid(server, trees, fetch):
    server.files["/slip.zip"] = ("application/zip", zipped({"fine": "", "../evil": "x"}))
    server.files["/none.zip"] = ("application/zip", b"<html>")
    for name in ("slip.zip", "none.zip"):
        assert await refused(fetch(server.url(name))) == "invalid_archive"
    assert is_empty(trees)


async def test_a_zip_that_is_too_large_packed_or_unpacked_is_too_large(server, trees, fetch):
    server.files["/bomb.zip"] = ("application/zip", zipped({"zeros": b"\0" * 20 * 1024**2}))
    server.files["/long.zip"] = ("application/zip", b"x" * 5 * 1024**2)
    for name in ("bomb.zip", "long.zip"):
        assert await refused(fetch(server.url(name))) == "source_too_large"
    assert is_empty(trees)


async def test_a_zip_that_is_not_there_is_not_found_and_a_servers_trouble_is_its_own(server, fetch):
    assert await refused(fetch(server.url("nope.zip"))) == "source_not_found"
    server.handlers["/down.zip"] = lambda handler: handler.answer(503, b"")
    assert await refused(fetch(server.url("down.zip"))) == "source_unreachable"


# Mirrors.


async def test_a_mirror_on_this_machine_stands_in_for_a_repository(server, fetch, tools, trees):
    settings = server.settings(hosts=[], mirrors={"https://github.com/org": f"file://{server.root}/org"})
    for ref, commit in (
        ("main", tools.second),
        ("v1", tools.first),
        ("", tools.second),
        (tools.first[:9], tools.first),
    ):
        found = await fetch(SourceUri("git", "https://github.com/org/tools", ref, ""), settings=settings)
        assert found.commit == commit
    assert server.asked == []
    other = "git+https://github.com/org/tools@nope"
    assert await refused(fetch(other, settings=settings)) == "source_not_found"


async def test_a_mirror_on_this_machine_may_be_a_zip(server, fetch, trees, tmp_path):
    (tmp_path / "tools.zip").write_bytes(zipped({"bundle.md": "zipped"}))
    settings = server.settings(mirrors={"https://github.com/org/": f"file://{tmp_path}/"})
    for uri in ("git+https://github.com/org/tools@main", "https://github.com/org/tools.zip"):
        found = await fetch(uri, settings=settings)
        assert (trees.path(found.tree) / "bundle.md").read_text() == "zipped"
        assert found.commit is None


async def test_a_mirror_may_be_at_a_private_address_by_its_own_name_only(server, fetch, tools):
    settings = server.settings(hosts=[], private_hosts=[], mirrors={"https://github.com": server.url("")})
    assert (await fetch("git+https://github.com/org/tools@main", settings=settings)).commit == tools.second
    assert await refused(fetch(server.uri("org/tools"), settings=settings)) == "source_not_allowed"


async def test_a_mirror_may_be_without_tls_and_nothing_else_is(server, fetch, tmp_path):
    with GitServer(tmp_path / "plain", tls=False) as plain:
        commit = plain.repository("org/tools").commit({"a": "x"})
        plain.files["/org/tools.zip"] = ("application/zip", zipped({"a": "x"}))
        settings = plain.settings(ca_file=None, private_hosts=[], mirrors={"https://github.com": plain.url("")})
        assert (await fetch("git+https://github.com/org/tools@main", settings=settings)).commit == commit
        assert (await fetch("https://github.com/org/tools.zip", settings=settings)).files == 1
        named = plain.settings(ca_file=None)
        assert await refused(fetch(plain.uri("org/tools"), settings=named)) == "source_not_allowed"


async def test_a_repository_at_a_bare_address_that_the_operator_names_is_fetched(server, fetch, tools):
    assert (await fetch(server.uri("org/tools", host="127.0.0.1"))).commit == tools.second


async def test_the_longest_mirror_wins_and_a_name_is_never_cut_in_two(server, fetch, tools):
    settings = server.settings(
        mirrors={
            "https://github.com/": "file:///nowhere/",
            "https://github.com/org/tool": "file:///nowhere/",
            "https://github.com/org": f"file://{server.root}/org",
        }
    )
    assert (await fetch("git+https://github.com/org/tools@main", settings=settings)).commit == tools.second
    assert await refused(fetch("git+https://github.com/other/x@main", settings=settings)) == "source_not_found"


async def test_a_mirror_is_left_by_no_dots(server, fetch, tools, tmp_path):
    """The path below a mirror is the tenant's to write."""
    (tmp_path / "secret.zip").write_bytes(zipped({"secret": "x"}))
    settings = server.settings(mirrors={"https://github.com/org": f"file://{server.root}/org"})
    for path in ("org/../../../secret", "org/%2e%2e/%2e%2e/%2e%2e/secret", "org/tools/../../../../secret"):
        uri = SourceUri("git", f"https://github.com/{path}", "", "")
        assert await refused(fetch(uri, settings=settings)) == "source_not_found"
