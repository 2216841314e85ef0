from __future__ import annotations

import os
from pathlib import Path

import pytest

from amplifier_api_server.runtime.modules.tool_filesystem import tools
from amplifier_api_server.runtime.tools import Bench


@pytest.fixture
def run(tmp_path: Path):
    folder = tmp_path / "w"
    folder.mkdir()
    by_name = {tool.name: tool for tool in tools(folder, Bench({}))}

    async def call(name: str, **given):
        result = await by_name[name].execute(given)
        return result.output if result.success else result.error["message"]

    return call


async def test_what_is_written_can_be_read_edited_and_found(run, tmp_path: Path):
    assert await run("write_file", file_path="a/b.txt", content="one\ntwo\nthree") == {
        "file_path": "a/b.txt",
        "bytes": 13,
    }
    read = await run("read_file", file_path="a/b.txt", offset=2, limit=1)
    assert (read["content"], read["total_lines"]) == ("     2\ttwo", 3)
    assert await run("edit_file", file_path="a/b.txt", old_string="two", new_string="2") == {
        "file_path": "a/b.txt",
        "replacements": 1,
    }
    assert (tmp_path / "w" / "a" / "b.txt").read_text() == "one\n2\nthree"
    assert (await run("glob", pattern="**/*.txt"))["matches"] == ["a/b.txt"]
    assert (await run("read_file", file_path="."))["entries"] == ["a/"]


async def test_an_edit_wants_to_know_which_place(run):
    await run("write_file", file_path="x", content="a a")
    assert "2 times" in await run("edit_file", file_path="x", old_string="a", new_string="b")
    assert (await run("edit_file", file_path="x", old_string="a", new_string="b", replace_all=True))[
        "replacements"
    ] == 2
    assert "is not in" in await run("edit_file", file_path="x", old_string="zz", new_string="b")
    assert "empty" in await run("edit_file", file_path="x", old_string="", new_string="b")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "link/passwd", "x\0y"])
async def test_paths_outside_the_folder_are_refused(run, tmp_path: Path, path: str):
    (tmp_path / "w" / "link").symlink_to("/etc")
    for name, more in (
        ("read_file", {}),
        ("write_file", {"content": "x"}),
        ("edit_file", {"old_string": "a", "new_string": "b"}),
    ):
        message = await run(name, file_path=path, **more)
        assert "outside" in message or "NUL" in message
    assert not (tmp_path / "x").exists()


async def test_what_is_no_text_file_is_refused_and_nothing_hangs(run, tmp_path: Path):
    os.mkfifo(tmp_path / "w" / "fifo")
    (tmp_path / "w" / "binary").write_bytes(b"\0\1")
    with (tmp_path / "w" / "huge").open("wb") as huge:
        huge.truncate(20_000_000)
    assert "no regular file" in await run("read_file", file_path="fifo")
    assert isinstance(await run("write_file", file_path="fifo", content="x"), str)
    assert "binary" in await run("read_file", file_path="binary")
    assert "more than" in await run("read_file", file_path="huge")
    assert "folder" in await run("write_file", file_path=".", content="x")
    assert "more than" in await run("edit_file", file_path="huge", old_string="x", new_string="y")


async def test_bytes_that_are_no_utf_8_survive_an_edit(run, tmp_path: Path):
    (tmp_path / "w" / "latin").write_bytes(b"caf\xe9 one")
    await run("edit_file", file_path="latin", old_string="one", new_string="two")
    assert (tmp_path / "w" / "latin").read_bytes() == b"caf\xe9 two"


@pytest.mark.parametrize("pattern", ["../*", "/etc/*", "", "a/../../*"])
async def test_patterns_that_leave_are_refused(run, pattern: str):
    assert "relative" in await run("glob", pattern=pattern)


async def test_wrong_inputs_say_what_is_wrong(run):
    assert await run("read_file") == "file_path is missing"
    assert "type string" in await run("read_file", file_path=3)
    assert "at least 1" in await run("read_file", file_path="x", offset=0)
