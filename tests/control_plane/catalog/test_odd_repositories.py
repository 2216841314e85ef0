"""Repositories that are made to do harm: links, submodules, git's own names, doubles, lies, and what they leave out."""

import pytest

from amplifier_api_server.control_plane.catalog.file_names import TakenNames, UnsafeName, is_git_folder, safe_path
from amplifier_api_server.control_plane.catalog.git_trees import read_listing
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


@pytest.fixture(params=["https", "mirror"])
async def fetch(request, server, trees):
    """Both ways a repository is read: over the network, where git checks it too, and from a folder of the operator's."""
    mirrors = {server.url("odd"): f"file://{server.root}/odd.git"} if request.param == "mirror" else {}
    sources = Sources(server.settings(mirrors=mirrors), trees, resolve=server.resolve)
    yield lambda: sources.fetch(SourceUri.parse(server.uri("odd")), limits=LIMITS)
    sources.close()


def names(trees, found):
    folder = trees.path(found.tree)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


async def fetched_or_refused(fetch):
    """None where git itself refuses the repository's objects; a mirror's are not its to check."""
    try:
        return await fetch()
    except DomainError as error:
        if error.stable_code != "invalid_archive":
            raise
        return None


async def test_links_are_left_out_and_told(server, trees, fetch):
    odd = server.repository("odd")
    link = odd.blob("/etc/passwd")
    odd.commit_tree(odd.tree([("120000", "blob", link, "link"), ("100644", "blob", odd.blob("x"), "file")]))
    found = await fetch()
    assert names(trees, found) == ["file"]
    assert found.warnings == ("'link' is a link: it was left out",)


async def test_a_submodule_even_of_a_local_path_does_nothing(server, trees, fetch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    odd = server.repository("odd")
    modules = odd.blob(f'[submodule "s"]\n\tpath = s\n\turl = {other}\n\tupdate = !touch {tmp_path}/ran\n')
    odd.commit_tree(
        odd.tree(
            [
                ("100644", "blob", odd.blob("x"), "file"),
                ("100644", "blob", modules, ".gitmodules"),
                ("160000", "commit", "1" * 40, "s"),
            ]
        )
    )
    if (found := await fetched_or_refused(fetch)) is not None:
        assert names(trees, found) == [".gitmodules", "file"]
        assert found.warnings == ("'s' is a submodule: it was left out",)
    assert not (tmp_path / "ran").exists()
    assert not [path for path in server.asked if "other" in path]


async def test_a_plain_submodule_is_left_out_and_told(server, trees, fetch):
    odd = server.repository("odd")
    modules = odd.blob('[submodule "s"]\n\tpath = s\n\turl = ../../../../etc\n')
    entries = [("100644", "blob", modules, ".gitmodules"), ("160000", "commit", "1" * 40, "s")]
    odd.commit_tree(odd.tree(entries))
    found = await fetch()
    assert names(trees, found) == [".gitmodules"]
    assert found.warnings == ("'s' is a submodule: it was left out",)


@pytest.mark.parametrize(
    "name", [".git", ".GIT", ".Git", "git~1", ".g\u200cit", ".git ", ".git.", ".git::$INDEX_ALLOCATION"]
)
async def test_no_folder_that_some_system_takes_for_gits_own_is_written(server, trees, fetch, name):
    odd = server.repository("odd")
    hook = odd.tree([("100755", "blob", odd.blob("#!/bin/sh"), "post-checkout")])
    odd.commit_tree(
        odd.tree(
            [
                ("040000", "tree", odd.tree([("040000", "tree", hook, "hooks")]), name),
                ("100644", "blob", odd.blob("x"), "z"),
            ]
        )
    )
    if (found := await fetched_or_refused(fetch)) is not None:
        assert names(trees, found) == ["z"]
        assert len(found.warnings) == 1


@pytest.mark.parametrize("name", ["..", "."])
async def test_a_tree_that_leads_upwards_is_refused_or_left_out(server, trees, fetch, name):
    odd = server.repository("odd")
    inner = odd.tree([("100644", "blob", odd.blob("x"), "evil")])
    raw = f"40000 {name}\0".encode() + bytes.fromhex(inner) + b"100644 z\0" + bytes.fromhex(odd.blob("y"))
    tree = odd.git("hash-object", "-w", "--literally", "-t", "tree", "--stdin", given=raw)
    odd.commit_tree(tree)
    if (found := await fetched_or_refused(fetch)) is not None:
        assert names(trees, found) == ["z"]


async def test_names_with_control_characters_or_no_utf8_are_left_out(server, trees, fetch):
    odd = server.repository("odd")
    blob = bytes.fromhex(odd.blob("x"))
    raw = b"".join(b"100644 " + name + b"\0" + blob for name in (b"a\nb", b"a\x1bb", b"fine", b"x\\y", b"\xff\xfe"))
    odd.commit_tree(odd.git("hash-object", "-w", "--literally", "-t", "tree", "--stdin", given=raw))
    found = await fetch()
    assert names(trees, found) == ["fine"]
    assert len(found.warnings) == 4
    assert all(warning.isprintable() for warning in found.warnings)


async def test_names_that_are_one_where_case_is_folded_are_one_here(server, trees, fetch):
    server.repository("odd").commit({"README": "a", "readme": "b", "A/x": "1", "a/y": "2", "ﬁle": "c", "file": "d"})
    found = await fetch()
    assert len(names(trees, found)) == 3
    assert len(found.warnings) == 3


async def test_a_file_and_a_folder_of_one_name_are_refused_or_one_is_left_out(server, trees, fetch):
    odd = server.repository("odd")
    blob, inner = odd.blob("x"), odd.tree([("100644", "blob", odd.blob("y"), "b")])
    raw = b"100644 a\0" + bytes.fromhex(blob) + b"40000 a\0" + bytes.fromhex(inner)
    odd.commit_tree(odd.git("hash-object", "-w", "--literally", "-t", "tree", "--stdin", given=raw))
    if (found := await fetched_or_refused(fetch)) is not None:
        assert names(trees, found) == ["a"]


async def test_attributes_and_filters_of_a_repository_change_nothing(server, trees, fetch):
    files = {
        ".gitattributes": "* text eol=crlf export-subst filter=evil\nsecret export-ignore\n",
        "a": "$Format:%H$\n",
        "secret": "s",
    }
    server.repository("odd").commit(files)
    found = await fetch()
    assert names(trees, found) == [".gitattributes", "a", "secret"]
    assert (trees.path(found.tree) / "a").read_bytes() == b"$Format:%H$\n"


async def test_many_odd_names_make_few_warnings(server, trees, fetch):
    odd = server.repository("odd")
    link = odd.blob("/etc/passwd")
    odd.commit_tree(odd.tree([("120000", "blob", link, f"l{n}") for n in range(150)] + [("100644", "blob", link, "z")]))
    assert len((await fetch()).warnings) == 51


async def test_a_repository_of_links_alone_holds_no_file(server, fetch):
    odd = server.repository("odd")
    odd.commit_tree(odd.tree([("120000", "blob", odd.blob("x"), "link")]))
    with pytest.raises(DomainError) as error:
        await fetch()
    assert error.value.stable_code == "invalid_archive"


async def test_the_hooks_of_a_mirror_and_its_configuration_run_nothing(server, trees, tmp_path):
    odd = server.repository("odd")
    odd.commit({"a": "x"})
    for hook in ("post-checkout", "reference-transaction", "post-index-change", "fsmonitor-watchman"):
        path = odd.folder / "hooks" / hook
        path.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        path.chmod(0o755)
    odd.git("config", "core.fsmonitor", f"touch {tmp_path}/ran")
    sources = Sources(server.settings(mirrors={server.url("odd"): f"file://{odd.folder}"}), trees)
    try:
        await sources.fetch(SourceUri.parse(server.uri("odd")), limits=LIMITS)
    finally:
        sources.close()
    assert not (tmp_path / "ran").exists()


def test_a_listing_that_lies_or_breaks_off_is_bounded():
    for raw in (b"\0\0", b"100644 blob " + b"1" * 40 + b"\0", b"\tname\0", b"100644 blob x -\tname\0"):
        with pytest.raises(DomainError):
            read_listing(raw, LIMITS)


@pytest.mark.parametrize("name", ["a", "a/b.c", ".gitignore", ".github/x", "git", "-rf", "a b", "é"])
def test_usual_names_are_taken(name):
    assert safe_path(name).as_posix() == name
    assert not any(map(is_git_folder, safe_path(name).parts))


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "./a", "a/./b", "../a", "a/..", "a\\b", "a\0b", "x" * 300, "d/" * 30 + "f"]
)
def test_odd_names_are_not_taken(name):
    with pytest.raises(UnsafeName):
        safe_path(name)


def test_a_name_that_was_refused_takes_no_place():
    taken = TakenNames()
    taken.take(safe_path("a/b"))
    for name in ("a/b", "A/b", "a", "A/c", "a/b/c"):
        with pytest.raises(UnsafeName):
            taken.take(safe_path(name))
    taken.take(safe_path("a/c"))
