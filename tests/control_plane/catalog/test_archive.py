"""Where a stranger's file names may lead: below one folder, as plain files, within bounds."""

import io
import stat
import struct
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.catalog import archive, trees
from amplifier_api_server.control_plane.catalog.archive import unpack
from amplifier_api_server.tenants.errors import DomainError, InsufficientStorage, Invalid, TooLarge
from tests.small_disk import small_disk


def zipped(files, *, compression=zipfile.ZIP_DEFLATED):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as out:
        for name, content in files:
            out.writestr(name, content)
    made.seek(0)
    return made


def test_files_are_unpacked_as_they_are(tmp_path):
    found = unpack(zipped([("pyproject.toml", "a"), ("profiles/x.md", "b")]), tmp_path / "new")
    assert (found.folder / "profiles/x.md").read_text() == "b"
    assert stat.S_IMODE((found.folder / "pyproject.toml").stat().st_mode) == 0o644


def test_a_folder_around_everything_is_left_out(tmp_path):
    found = unpack(zipped([("repo-main/pyproject.toml", "a"), ("repo-main/profiles/x.md", "b")]), tmp_path / "new")
    assert (found.folder / "pyproject.toml").exists()


@pytest.mark.parametrize(
    "beside",
    [
        "__MACOSX/birds/._pyproject.toml",
        "__MACOSX/._birds",
        ".DS_Store",
        "birds/.DS_Store",
        "Thumbs.db",
        "birds/._x.md",
    ],
)
def test_what_desktops_put_beside_files_is_left_out(tmp_path, beside):
    found = unpack(zipped([("birds/", ""), ("birds/pyproject.toml", "a"), (beside, "junk")]), tmp_path / "new")
    assert [path.name for path in found.folder.iterdir()] == ["pyproject.toml"]


UMLAUT = "context/übersicht.md"


def renamed(raw: bytes, *, extra: bytes = b"", system: int = 3) -> io.BytesIO:
    """An archive whose second entry has this name, byte for byte, and no word of what it is written in."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as out:
        out.writestr("pyproject.toml", "a")
        info = zipfile.ZipInfo("x" * len(raw))
        info.extra, info.create_system = extra, system
        out.writestr(info, "b")
    return io.BytesIO(made.getvalue().replace(b"x" * len(raw), raw))


def unicode_path(raw: bytes, name: str) -> bytes:
    field = b"\x01" + zlib.crc32(raw).to_bytes(4, "little") + name.encode()
    return struct.pack("<HHHH", 0x5455, 0, 0x7075, len(field)) + field


@pytest.mark.parametrize(
    "given",
    [
        renamed(UMLAUT.encode()),
        renamed(UMLAUT.encode("cp437")),
        renamed(b"context/?bersicht.md", extra=unicode_path(b"context/?bersicht.md", UMLAUT)),
        renamed(UMLAUT.encode(), extra=unicode_path(b"another name", "other.md")),
        renamed(b"./" + UMLAUT.encode()),
        renamed(b"././context/./" + UMLAUT.removeprefix("context/").encode()),
        renamed(UMLAUT.replace("/", "\\").encode("cp437"), system=0),
        renamed(b".\\" + UMLAUT.replace("/", "\\").encode(), system=3),
        zipped([("./", ""), ("pyproject.toml", "a"), ("./context/", ""), (UMLAUT, "b")]),
        zipped([("pyproject.toml", "a"), (UMLAUT, "b")]),
    ],
    ids=[
        "UTF-8 unsaid",
        "cp437",
        "a Unicode path",
        "a Unicode path of another",
        "from here",
        "from here, again and again",
        "backslashes",
        "backslashes of Unix",
        "the folder itself",
        "UTF-8",
    ],
)
def test_a_name_is_what_it_was_whoever_wrote_the_archive(tmp_path, given):
    found = unpack(given, tmp_path / "new")
    assert (found.folder / UMLAUT).read_text() == "b"


@pytest.mark.parametrize("raw", [b"..\\x", b"a\\..\\..\\x", b"C:\\..\\..\\x", b"\\x", b"a\x00b"])
def test_no_spelling_of_a_name_leads_elsewhere(tmp_path, raw):
    with pytest.raises(Invalid):
        unpack(renamed(raw, system=0), tmp_path / "new")
    with pytest.raises(Invalid):
        unpack(renamed(b"y" * 8, extra=unicode_path(b"y" * 8, "../x")), tmp_path / "new")


def test_the_hash_is_of_names_and_bytes_not_of_the_archive(tmp_path):
    files = [("a", "1"), ("b/c", "2")]
    one = unpack(zipped(files), tmp_path / "1")
    two = unpack(zipped(list(reversed(files)), compression=zipfile.ZIP_STORED), tmp_path / "2")
    other = unpack(zipped([("a", "1"), ("b/c", "3")]), tmp_path / "3")
    assert one.content_hash == two.content_hash != other.content_hash


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/passwd", "a\\..\\b", "a/\x01b", "x" * 500, "/".join("d" * 30), "n" * 300]
)
def test_a_name_that_leads_elsewhere_is_refused_and_leaves_nothing(tmp_path, name):
    with pytest.raises(Invalid) as refused:
        unpack(zipped([("fine", "x"), (name, "y")]), tmp_path / "new")
    assert refused.value.stable_code == "invalid_archive"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path, kind):
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    with pytest.raises(Invalid):
        unpack(zipped([(info, "/etc/passwd")]), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_the_same_name_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        doubled = zipped([("a", "1"), ("a", "2")])
    with pytest.raises(Invalid):
        unpack(doubled, tmp_path / "new")


def test_a_file_where_a_folder_must_be_is_refused(tmp_path):
    with pytest.raises(Invalid):
        unpack(zipped([("a", "1"), ("a/b", "2")]), tmp_path / "new")


def test_a_bomb_is_stopped_while_it_unpacks(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_MAX_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(TooLarge):
        unpack(zipped([("zeros", b"\0" * 5_000_000)]), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_too_many_entries_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_MAX_FILES", 10)
    with pytest.raises(TooLarge):
        unpack(zipped([(f"f{n}", "") for n in range(11)]), tmp_path / "new")


def test_folders_count_as_files_and_nothing_is_written_before_they_are_counted(tmp_path, monkeypatch):
    nested = [(f"{n}/" + "/".join("abcdefghij") + "/x", "") for n in range(90)]  # 90 files in 990 folders
    monkeypatch.setattr(archive, "_extract", lambda *_: pytest.fail("it was written"))
    with pytest.raises(TooLarge, match="1000 files and folders"):
        unpack(zipped(nested), tmp_path / "new", max_files=1000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("files", [[(f"f{n}", "") for n in range(300)], [(f"d{n}/f", "x") for n in range(150)]])
def test_what_is_empty_takes_a_block_all_the_same(tmp_path, files):
    with pytest.raises(TooLarge, match="bytes on the disk"):
        unpack(zipped(files), tmp_path / "new", max_bytes=299 * 4096)
    kept = trees.measure(unpack(zipped(files), tmp_path / "new", max_bytes=300 * 4096).folder)
    assert (kept.size_bytes, kept.files) == (300 * 4096, 300)


def test_an_archive_that_lies_about_its_sizes_unpacks_to_no_more_than_it_may(tmp_path):
    raw = bytearray(zipped([("zeros", b"\0" * 5_000_000)]).getvalue())
    place = raw.index(b"PK\1\2")
    raw[place + 24 : place + 28] = (1).to_bytes(4, "little")  # the uncompressed size, in the table of contents
    with pytest.raises(DomainError):
        unpack(io.BytesIO(raw), tmp_path / "new", max_bytes=1_000_000)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_not_the_archives_fault(tmp_path):
    with small_disk(tmp_path / "disk", mib=1) as disk:
        with pytest.raises(InsufficientStorage):
            unpack(zipped([("zeros", b"\0" * 2_000_000)]), disk / "new")
        assert list(disk.iterdir()) == []


def test_an_archive_without_a_file_is_refused(tmp_path):
    with pytest.raises(Invalid):
        unpack(zipped([]), tmp_path / "new")


@given(junk=st.binary(max_size=300), cut=st.integers(0, 300))
def test_no_bytes_break_it(tmp_path_factory, junk, cut):
    whole = zipped([("pyproject.toml", "x" * 100)]).getvalue()
    for raw in (junk, whole[:cut] + junk + whole[cut:], whole[:cut]):
        folder = tmp_path_factory.mktemp("archive") / "new"
        try:
            unpack(io.BytesIO(raw), folder)
        except DomainError:
            assert not folder.exists()


def test_gits_own_folder_is_left_out_however_it_is_written(tmp_path):
    found = unpack(zipped([("bundle.md", "x"), (".git/config", "y"), ("a/.GIT/hooks/x", "z")]), tmp_path / "new")
    assert [path.name for path in found.folder.rglob("*")] == ["bundle.md"]


@pytest.mark.parametrize(("one", "two"), [("README", "readme"), ("A/x", "a/y"), ("ﬁle", "file")])
def test_names_that_are_one_where_case_is_folded_are_refused(tmp_path, one, two):
    with pytest.raises(Invalid, match="collides"):
        unpack(zipped([(one, "1"), (two, "2")]), tmp_path / "new")


def test_the_executable_bit_is_kept_and_no_other(tmp_path):
    run, secret = zipfile.ZipInfo("run"), zipfile.ZipInfo("secret")
    run.external_attr, secret.external_attr = (stat.S_IFREG | 0o6777) << 16, (stat.S_IFREG | 0o600) << 16
    folder = unpack(zipped([(run, "x"), (secret, "y")]), tmp_path / "new").folder
    assert stat.S_IMODE((folder / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o644


def test_a_table_of_contents_that_would_take_all_memory_is_refused_unread(tmp_path, monkeypatch):
    made = zipped([(f"{n:0300}", "") for n in range(100)])
    monkeypatch.setattr(archive.zipfile, "ZipFile", lambda *_: pytest.fail("it was read"))
    with pytest.raises(TooLarge, match="table of contents"):
        unpack(made, tmp_path / "new", max_files=10)
