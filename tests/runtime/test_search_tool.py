from __future__ import annotations

from pathlib import Path

import pytest

from amplifier_api_server.runtime.modules import tool_search
from amplifier_api_server.runtime.tools import Bench


@pytest.fixture
async def run(tmp_path: Path):
    folder = tmp_path / "w"
    for name, text in {
        "a.py": "import os\nprint('one')\n",
        "pkg/b.py": "import sys\nPRINT = 2\nx = 1\n",
        "pkg/c.ts": "print()\n",
        "node_modules/d.py": "print('hidden')\n",
        ".hidden.md": "print it\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    bench = Bench({"session.working_dir": str(folder)})
    await tool_search.mount(bench, {"timeout": 5})

    async def call(tool: str = "grep", **given):
        result = await bench.tools[tool].execute(given)
        return result.output if result.success else result.error["message"]

    return call


async def test_files_that_match_are_listed_without_what_tools_put_there(run):
    found = await run(pattern="print")
    assert found["files"] == [".hidden.md", "a.py", "pkg/c.ts"]
    assert (found["total_matches"], found["matches_count"]) == (3, 3)
    assert "node_modules/d.py" in (await run(pattern="print", include_ignored=True))["files"]


async def test_lines_come_with_their_numbers_and_surroundings(run):
    found = await run(pattern="PRINT", output_mode="content", **{"-C": 1})
    assert found["results"] == [
        {"file": "pkg/b.py", "line_number": 2, "content": "PRINT = 2", "before": ["import sys"], "after": ["x = 1"]}
    ]
    assert "line_number" not in (await run(pattern="PRINT", output_mode="content", **{"-n": False}))["results"][0]


async def test_matches_are_counted_and_case_can_be_ignored(run):
    assert (await run(pattern="print", output_mode="count", **{"-i": True}))["counts"] == {
        ".hidden.md": 1,
        "a.py": 1,
        "pkg/b.py": 1,
        "pkg/c.ts": 1,
    }


@pytest.mark.parametrize(
    ("narrowing", "files"),
    [
        ({"type": "py"}, ["a.py"]),
        ({"glob": "*.ts"}, ["pkg/c.ts"]),
        ({"glob": "**/*.{ts,md}"}, [".hidden.md", "pkg/c.ts"]),
        ({"path": "pkg"}, ["pkg/c.ts"]),
        ({"path": "a.py"}, ["a.py"]),
    ],
)
async def test_a_search_is_narrowed(run, narrowing: dict, files: list[str]):
    assert (await run(pattern="print", **narrowing))["files"] == files


async def test_a_match_may_span_lines(run):
    assert (await run(pattern="os.print", multiline=True, output_mode="content"))["results"][0]["line_number"] == 1


async def test_entries_come_in_pages(run):
    first = await run(pattern="print", head_limit=2)
    rest = await run(pattern="print", head_limit=2, offset=2)
    assert (len(first["files"]), first["results_capped"]) == (2, True)
    assert rest["files"] == ["pkg/c.ts"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "pattern is missing"),
        ({"pattern": "("}, "pattern:"),
        ({"pattern": ""}, "1 to"),
        ({"pattern": "x", "path": "../.."}, "outside"),
        ({"pattern": "x", "path": "nowhere"}, "does not exist"),
        ({"pattern": "x", "type": "cobol"}, "should be one of"),
        ({"pattern": "x", "output_mode": "all"}, "should be one of"),
        ({"pattern": "x", "head_limit": -1}, "at least 0"),
        ({"pattern": "x", "path": "@birds:x"}, "names nothing"),
    ],
)
async def test_wrong_inputs_say_what_is_wrong(run, given: dict, said: str):
    assert said in await run(**given)


async def test_an_expression_that_never_ends_is_ended(run, tmp_path: Path):
    (tmp_path / "w" / "evil").write_text("a" * 60 + "!")
    assert "longer than" in await run(pattern="(a+)+$", path="evil")


async def test_glob_comes_with_it_and_leaves_out(run):
    found = await run("glob", pattern="**/*", type="file", exclude=["*.ts"])
    assert sorted(found["matches"]) == [".hidden.md", "a.py", "pkg/b.py"]
    assert (await run("glob", pattern="*", type="dir"))["matches"]
