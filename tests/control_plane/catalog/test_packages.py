"""What a sandbox says it has built is checked, bounded and unpacked as any stranger's archive is."""

import io
import zipfile

import pytest

from tests.control_plane.catalog.workbench import asks, bench, die, inspection, says
from tests.hostile_runtime import Request


@pytest.fixture
async def made(tmp_path):
    async with bench(tmp_path, max_size="1MiB") as one:
        builds(one)
        yield one


def builds(one, answer=None, archive: bytes | None = None, status: int = 200) -> None:
    """Have every collection be one module to build, whose build says `answer` and gives `archive`."""

    def wants(image):
        tree, uri = image["root"]["tree"], image["root"]["uri"]
        return inspection(builds=[{"tree": tree, "uri": uri, "name": "tool"}])

    async def build(request: Request) -> None:
        body = answer or {"distributions": [{"name": "t", "version": "1", "sha256": "0", "source": "upload"}]}
        await request.reply(status, body)

    async def packages(request: Request) -> None:
        raw = archive if archive is not None else archived({"t/__init__.py": b"", "distributions.txt": b""})
        await request.say(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(raw), raw)

    one.inspects(asks(wants))
    one.plane.fleet.answers["POST", "build"] = build
    one.plane.fleet.answers["GET", "packages"] = packages


def archived(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


async def test_what_was_built_is_a_tree_of_the_collection(made):
    view = (await made.upload()).json()
    assert [one["name"] for one in view["distributions"]] == ["t"]
    assert len(made.trees) == 2
    assert made.asked().count("POST inspect") == 2  # once more with what was built


@pytest.mark.parametrize(
    "files", [{"../out": b""}, {"/etc/out": b""}, {"a": b"", "A": b""}, {"x": b"0" * 2_000_000}], ids=range(4)
)
async def test_an_archive_that_leads_out_or_is_too_large_is_refused(made, files):
    builds(made, archive=archived({"distributions.txt": b""} | files))
    answer = await made.upload()
    assert answer.status_code in (413, 422), answer.text
    assert answer.json()["code"] in ("invalid_archive", "build_failed", "too_large")
    assert made.trees == []


@pytest.mark.parametrize("source", [None, "https://elsewhere.example.com/x.zip"])
async def test_what_came_from_nowhere_is_refused(made, source):
    builds(made, {"distributions": [{"name": "t", "version": "1", "sha256": "0", "source": source}]})
    assert (await made.upload()).json()["code"] == "build_failed"
    assert made.trees == []


async def test_why_a_build_failed_is_told(made):
    builds(made, {"code": "build_failed", "detail": "no compiler"}, status=422)
    answer = await made.upload()
    assert (answer.json()["code"], answer.json()["detail"]) == ("build_failed", "no compiler")


@pytest.mark.parametrize("asked", [("POST", "build"), ("GET", "packages")])
async def test_a_sandbox_that_dies_of_it_fails_the_build(made, asked):
    made.plane.fleet.answers[asked] = die
    assert (await made.upload()).json()["code"] == "build_failed"
    assert made.trees == []


async def test_warnings_of_the_build_are_the_jobs(made):
    builds(made, {"distributions": [], "warnings": ["x is built from two sources"]})
    answer = await made.upload()
    job = (await made.jobs())[0]
    assert answer.status_code == 201
    assert "GET packages" not in made.asked()
    assert job["warnings"] == answer.json()["warnings"] == ["x is built from two sources"]
    assert job["installation_id"] == answer.json()["installation_id"]


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (
            {
                "distributions": [{"name": "t", "version": "1", "sha256": "0", "source": "upload"}],
                "archive_bytes": 2**40,
            },
            "max_size",
        ),
        (
            {"code": "too_large", "detail": "x holds 'y', and a file has at most 1 (sandbox.file_size)"},
            "sandbox.file_size",
        ),
    ],
)
async def test_packages_beyond_a_bound_are_too_large_and_the_bound_is_named(made, build, told):
    builds(made, build, status=422 if "code" in build else 200)
    answer = await made.upload()
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert told in answer.json()["detail"]
    assert made.trees == []


def tries(made, why: str = "no", **more) -> dict[str, list[str]]:
    """Have every collection use one module that can't be imported. What it was installed without, each time it was asked."""
    seen: dict[str, list[str]] = {"lacks": []}
    uri = "git+https://git.example/acme/tool@main"

    def wants(image):
        seen["lacks"] = image["lacks"]
        return inspection(modules=[{"id": "tool-x", "uri": uri, "named_at": "bundle.md:7", **more}])

    async def build(request: Request) -> None:
        await request.reply(200, {"unusable": {"tool-x": why, "stranger": "no"}})

    made.inspects(asks(wants))
    made.plane.fleet.answers["POST", "build"] = build
    return seen


async def test_a_module_that_cannot_be_imported_fails_the_installation(made):
    tries(made, "No module named 'nowhere'")
    answer = await made.upload()
    assert answer.json()["code"] == "build_failed"
    for told in ("tool-x", "acme/tool@main", "bundle.md:7", "No module named 'nowhere'", "skip_missing"):
        assert told in answer.json()["detail"]


@pytest.mark.parametrize(("query", "more"), [("?skip_missing=true", {}), ("", {"optional": True})])
async def test_a_module_that_cannot_be_imported_is_left_out_where_that_is_asked_for(made, query, more):
    seen = tries(made, **more)
    answer = await made.upload(query=query)
    part = "git+https://git.example/acme/tool@main#module=tool-x"
    assert (answer.status_code, answer.json()["left_out"], seen["lacks"]) == (201, [part], [part])
    warnings = (await made.jobs())[0]["warnings"]
    assert "bundle.md:7" in warnings[0]
    assert warnings[1] == "stranger can't be imported: no"


async def test_no_packages_when_nothing_is_to_be_built(made):
    made.inspects(says(inspection()))
    assert (await made.upload()).status_code == 201
    assert "POST build" not in made.asked()
