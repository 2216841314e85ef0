"""Installing is a job: it fetches what a collection names, tells how far it is, and leaves nothing when it fails."""

import asyncio
import contextlib
import sqlite3
from datetime import timedelta

import pytest

from amplifier_api_server.control_plane.app import Application
from tests.control_plane.catalog.workbench import (
    HOST,
    asks,
    bench,
    die,
    hang,
    has,
    inspection,
    says,
)
from tests.hostile_runtime import Request


@pytest.fixture
async def made(tmp_path):
    async with bench(tmp_path) as one:
        yield one


@pytest.fixture
async def slow(tmp_path):
    """Every installation is answered with its job."""
    async with bench(tmp_path, wait="1ms") as one:
        yield one


def gate():
    """An inspection that waits to be let through."""
    reached, go = asyncio.Event(), asyncio.Event()

    async def inspect(request: Request) -> None:
        reached.set()
        await go.wait()
        await request.reply(200, inspection())

    return inspect, reached, go


async def test_a_quick_installation_is_answered_with_the_collection(made):
    answer = await made.upload()
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert answer.headers["location"] == "/v1/collections/kit"
    assert (await made.call("GET", "/v1/collections/kit")).json() == view | {"installation_id": None}
    assert view["sources"] == [{"uri": "upload", "commit": None, "tree": made.trees[0]}]
    (job,) = await made.jobs()
    assert (job["status"], job["collection"], job["phase"]) == ("installed", "kit", "")


async def test_a_slow_one_is_answered_with_a_job_that_ends_in_the_collection(slow):
    answer = await slow.upload()
    assert answer.json()["status"] == "running"
    assert (await slow.ended(answer))["collection"] == "kit"
    assert (await slow.call("GET", "/v1/collections/kit")).status_code == 200


async def test_all_that_a_collection_names_is_fetched_and_shown(made):
    root, a, b = made.publish("root"), made.publish("a"), made.publish("b")

    def wants(image):
        wanted = [{"uri": a, "wanted_by": "bundle.md:3"}] if not has(image, a) else []
        if has(image, a) and not has(image, b):
            wanted = [{"uri": b, "wanted_by": "a/bundle.md:1"}]
        return inspection(wanted=wanted)

    made.inspects(asks(wants))
    view = (await made.install(root)).json()
    assert [one["uri"] for one in view["sources"]] == [root, a, b]
    assert sorted(one["tree"] for one in view["sources"]) == made.trees
    (job,) = await made.jobs()
    assert (job["done"], job["total"]) == (3, 3)


async def test_what_is_missing_is_told_with_who_wants_it(made):
    root = made.publish("root")
    made.inspects(says(inspection(wanted=[{"uri": HOST + "gone.zip", "wanted_by": "bundle.md:7"}])))
    answer = await made.install(root)
    assert answer.status_code == 422
    assert answer.json()["code"] == "source_not_found"
    assert "bundle.md:7" in answer.json()["detail"]
    assert made.trees == []
    (job,) = await made.jobs()
    assert job["problem"]["code"] == "source_not_found"


async def test_all_that_is_missing_is_told_at_once(made):
    wanted = [{"uri": f"{HOST}gone{index}.zip", "wanted_by": f"bundle.md:{index}"} for index in range(3)]
    made.inspects(says(inspection(wanted=wanted)))
    detail = (await made.install(made.publish("root"))).json()["detail"]
    assert all(f"gone{index}" in detail and f"bundle.md:{index}" in detail for index in range(3))


async def test_what_is_optional_and_missing_is_left_out_with_a_warning(made):
    gone = HOST + "gone.zip"
    wanted = [{"uri": gone, "wanted_by": "bundle.md:7", "optional": True}]
    made.inspects(says(inspection(wanted=wanted)))
    view = (await made.install(made.publish("root"))).json()
    assert view["left_out"] == [gone]
    assert "bundle.md:7" in (await made.jobs())[0]["warnings"][0]


async def test_what_is_missing_is_left_out_with_a_warning_where_that_is_asked_for(made):
    gone = HOST + "gone.zip"
    made.inspects(says(inspection(wanted=[{"uri": gone, "wanted_by": "bundle.md:7"}])))
    root = made.publish("root")
    assert (await made.install(root, skip_missing=True)).json()["left_out"] == [gone]
    assert "bundle.md:7" in (await made.jobs())[0]["warnings"][0]
    assert (await made.upload(query="?skip_missing=true")).json()["left_out"] == [gone]
    assert (await made.install(root)).status_code == 422


@pytest.mark.parametrize("modules", ["own", "source"])
async def test_whose_modules_are_used_is_asked_for_and_kept(made, modules):
    asked = []

    async def inspect(request: Request) -> None:
        asked.append(request.body["use"])
        await request.reply(200, inspection())

    made.inspects(inspect)
    assert (await made.install(made.publish("root"), modules=modules)).status_code == 201
    assert set(asked) == {modules}
    rows = await made.plane.app.services.catalogue.collections(tenant_ids(made)[0])
    assert rows[0].image["modules"] == modules


def tenant_ids(made) -> list[str]:
    path = made.plane.app.services.settings.server.data_dir / "amplifier.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("select distinct tenant_id from installation")]


async def test_it_may_be_given_another_name(made):
    made.inspects(asks(lambda image: inspection(image["name"] or "kit")))
    assert (await made.install(made.publish("root"), name="mine")).json()["name"] == "mine"
    assert (await made.upload(query="?name=other")).json()["name"] == "other"
    assert (await made.upload(query="?name=No")).status_code == 422


async def test_sources_that_never_end_do(made):
    count = 0

    def more(image):
        nonlocal count
        count += 1
        return inspection(wanted=[{"uri": made.publish(f"n{count}"), "wanted_by": "bundle.md:1"}])

    made.inspects(asks(more))
    answer = await made.install(made.publish("root"))
    assert answer.json()["code"] == "collection_invalid"
    assert made.trees == []


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ({"max_sources": 2}, "too_large"),
        ({"max_size": "100"}, "source_too_large"),
        ({"max_files": 2}, "source_too_large"),
    ],
)
async def test_no_collection_is_larger_than_it_may_be_with_all_that_it_names(tmp_path, limit, code):
    async with bench(tmp_path, **limit) as made:
        names = [made.publish(f"n{index}", file="x" * 40) for index in range(4)]
        made.inspects(
            asks(lambda image: inspection(wanted=[{"uri": n, "wanted_by": "b:1"} for n in names if not has(image, n)]))
        )
        answer = await made.install(names[0].replace("n0", "n1"))
        assert answer.status_code == 413, answer.text
        assert answer.json()["code"] in (code, "too_large")
        assert made.trees == []


@pytest.mark.parametrize("behaviour", [die, says({"manifest": 1}), says({"code": "x", "detail": "y"}, 500)])
async def test_a_sandbox_that_breaks_over_it_makes_it_invalid_and_breaks_nothing_else(made, behaviour):
    session_id = await made.plane.session()
    made.inspects(behaviour)
    answer = await made.upload()
    assert answer.json()["code"] == "collection_invalid", answer.text
    assert made.trees == []
    assert (await made.plane.execute(session_id)).status_code == 200
    made.inspects(says(inspection()))
    assert (await made.upload()).status_code == 201


async def test_one_that_hangs_is_ended_in_time(tmp_path):
    async with bench(tmp_path, install_timeout="300ms") as made:
        made.inspects(hang)
        answer = await made.upload()
        assert answer.json()["code"] == "installation_timeout"
        assert made.trees == []


async def test_a_cancelled_one_leaves_nothing(slow):
    inspect, reached, _ = gate()
    slow.inspects(inspect)
    job = await slow.upload()
    await reached.wait()
    assert (await slow.call("DELETE", job.headers["location"])).status_code == 204
    ended = await slow.ended(job)
    assert (ended["status"], ended["problem"]["code"]) == ("failed", "installation_cancelled")
    assert slow.trees == []
    assert (await slow.call("DELETE", job.headers["location"])).status_code == 204


async def test_its_sandbox_is_nobodys_but_its_own_and_takes_no_place(made):
    """The tenant may have one sandbox, and has it; and no session comes to the installation's."""
    key = await made.tenant(sandboxes=1)
    inspect, reached, go = gate()
    made.inspects(inspect)
    installing = asyncio.create_task(made.upload(key=key))
    await reached.wait()
    async with made.plane.client(key) as client:
        assert (await client.post("/v1/sessions", json={"profile": "foundation:base"})).status_code == 201
        limits = (await client.get("/v1/limits")).json()["limits"]
    assert next(one for one in limits if one["name"] == "sandboxes")["used"] == 1
    private = next(one for one in made.plane.fleet.runtimes.values() if "POST inspect" in one.seen)
    assert "PUT session" not in private.seen
    go.set()
    assert (await installing).status_code == 201
    assert made.plane.app.services.fleet.address(private.runtime_id) is None


async def test_its_sandbox_does_not_end_for_being_idle(tmp_path):
    async with bench(tmp_path, wait="1ms", sandbox={"idle_timeout": "1ms"}) as made:
        inspect, reached, go = gate()
        made.inspects(inspect)
        job = await made.upload()
        await reached.wait()
        reconciler = made.plane.app.services.reconciler
        for _ in range(3):
            await reconciler.run_pass()
            await reconciler.settle()
        go.set()
        assert (await made.ended(job))["status"] == "installed"


async def test_why_its_sandbox_ended_is_told(made):
    """Its runtime is killed for its memory, say: the tenant reads so."""

    reading = asyncio.Queue()

    async def read(request: Request) -> None:
        reading.put_nowait(request.runtime.runtime_id)
        await request.hang()

    made.inspects(read)
    installing = asyncio.create_task(made.upload())
    launcher = made.plane.app.services.fleet.launcher
    await launcher.crash(await reading.get(), "killed: memory over 512 MiB")
    answer = await installing
    assert answer.json()["code"] == "collection_invalid"
    assert "memory over 512 MiB" in answer.json()["detail"]


async def test_a_tenants_installations_go_one_after_the_other_and_not_too_many_wait(slow):
    inspect, reached, go = gate()
    slow.inspects(inspect)
    jobs = [await slow.upload(f"{index}") for index in range(4)]
    await reached.wait()
    refused = await slow.upload("5")
    assert (refused.status_code, refused.json()["code"]) == (409, "installation_running")
    assert len(refused.json()["installations"]) == 4
    assert slow.asked().count("POST inspect") == 1
    assert [one["phase"] for one in await slow.jobs()].count("waiting") == 3
    go.set()
    for job in jobs:
        assert (await slow.ended(job))["status"] == "installed"


async def test_so_many_are_worked_on_at_once_as_is_set(tmp_path):
    async with bench(tmp_path, wait="1ms", max_installations=1) as made:
        inspect, reached, go = gate()
        made.inspects(inspect)
        first = await made.upload()
        await reached.wait()
        other = await made.tenant()
        second = await made.upload("other", key=other)
        assert (await made.jobs(other))[0]["phase"] == "waiting"
        go.set()
        assert (await made.ended(first))["status"] == "installed"
        assert (await made.ended(second, other))["status"] == "installed"


async def test_another_tenant_sees_nothing_of_it(slow):
    other = await slow.tenant()
    job = await slow.upload()
    await slow.ended(job)
    assert await slow.jobs(other) == []
    for method, path in (("GET", job.headers["location"]), ("DELETE", job.headers["location"])):
        assert (await slow.call(method, path, key=other)).json()["code"] == "installation_not_found"
    assert (await slow.call("GET", "/v1/collections/kit", key=other)).status_code == 404
    assert (await slow.call("GET", "/v1/collections", key=other)).json()["collections"] == []


async def test_after_a_restart_those_that_ran_have_failed(slow):
    inspect, reached, _ = gate()
    slow.inspects(inspect)
    job = await slow.upload()
    await reached.wait()
    app = slow.plane.app
    again = Application(app.services.settings, pepper=app.services.pepper, make_launcher=slow.plane.fleet.make_launcher)
    assert await again.services.installations.recover() == 1
    found = (await slow.call("GET", job.headers["location"])).json()
    assert (found["status"], found["problem"]["code"]) == ("failed", "server_restarted")
    await again.services.database.close()


async def test_the_tenants_end_is_its_installations(slow):
    inspect, reached, _ = gate()
    slow.inspects(inspect)
    await slow.upload()
    await reached.wait()
    services = slow.plane.app.services
    (tenant_id,) = tenant_ids(slow)
    await services.on_tenant_stopped(tenant_id)
    assert services.installations._jobs == {}
    assert slow.trees == []


async def test_the_same_content_again_is_the_same_collection(made):
    source = made.publish("root")
    first = (await made.install(source)).json()
    again = (await made.install(source)).json()
    assert again | {"installation_id": first["installation_id"]} == first
    made.publish("root", file="changed")
    assert (await made.install(source)).json()["content_hash"] != first["content_hash"]


@pytest.mark.parametrize("name", ["foundation", "installations"])
async def test_a_name_that_is_taken_is_refused(made, name):
    made.inspects(says(inspection(name)))
    answer = await made.upload()
    assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")
    assert made.trees == []


async def test_no_collection_names_its_profiles_for_another(made):
    made.inspects(says({"manifest": {"name": "kit", "profiles": [{"name": "other:base"}]}}))
    assert (await made.upload()).json()["code"] == "collection_invalid"


@pytest.mark.parametrize("source", ["git+ssh:example.com", "../here", "git+https://user:word@example.com/x", "x y"])
async def test_what_is_no_address_is_refused_at_once(made, source):
    answer = await made.install(source)
    assert (answer.status_code, answer.json()["code"]) == (422, "source_not_supported")
    assert await made.jobs() == []


async def test_an_archive_that_is_none_is_told_at_once(made):
    answer = await made.call("POST", "/v1/collections", content=b"nothing", headers={"content-type": "application/zip"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_archive")


async def test_what_failed_is_deleted_unless_somebody_installs_the_same(made):
    """Two tenants may send the same archive at once; one's failure must not take the other's files."""
    inspect, reached, go = gate()
    made.inspects(inspect)
    kept = asyncio.create_task(made.upload("same"))
    await reached.wait()
    made.inspects(says({"code": "collection_invalid", "detail": "no"}, 422))
    other = await made.tenant()
    for text in ("same", "other"):
        assert (await made.upload(text, key=other)).status_code == 422
    go.set()
    assert (await kept).status_code == 201
    assert made.trees == [(await kept).json()["sources"][0]["tree"]]


async def test_replaced_and_removed_content_goes_after_a_while(made):
    garbage = made.plane.app.services.garbage
    assert [(await made.upload(text)).status_code for text in ("a", "b", "c")] == [201] * 3
    assert len(made.trees) == 3
    assert await garbage.collect() == 2
    assert len(made.trees) == 1
    assert (await made.call("DELETE", "/v1/collections/kit")).status_code == 204
    assert await garbage.collect(min_age=timedelta(minutes=1)) == 0
    assert await garbage.collect() == 1
    assert made.trees == []


async def test_a_session_keeps_what_it_was_made_with(made):
    assert (await made.upload("old")).status_code == 201
    async with made.plane.client() as client:
        session = (await client.post("/v1/sessions", json={"profile": "kit:p"})).json()["session_id"]
    old = made.trees
    assert (await made.upload("new")).status_code == 201
    garbage = made.plane.app.services.garbage
    assert await garbage.collect() == 0
    assert set(old) < set(made.trees)
    async with made.plane.client() as client:
        assert (await client.delete(f"/v1/sessions/{session}")).status_code == 204
    assert await garbage.collect() == 1
    assert not set(old) & set(made.trees)


async def test_installations_are_listed_in_pages(made):
    for text in ("a", "b", "c"):
        await made.upload(text)
    first = (await made.call("GET", "/v1/collections/installations?limit=2")).json()
    rest = (await made.call("GET", f"/v1/collections/installations?limit=2&cursor={first['next_cursor']}")).json()
    assert len(first["installations"]) == 2
    assert len(rest["installations"]) == 1
    assert rest["next_cursor"] is None
