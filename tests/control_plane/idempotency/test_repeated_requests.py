"""`Idempotency-Key` by REST: a whole control plane, whose runtimes are scripted."""

import asyncio
import json

import pytest

from amplifier_api_server.control_plane.idempotency import answers
from amplifier_api_server.control_plane.keys import service as keys
from amplifier_api_server.tenants.errors import Refused, Unavailable
from tests.hostile_runtime import attacked, complete

REPLAYED = "Idempotent-Replayed"


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


@pytest.fixture
async def client(plane):
    async with plane.client() as one:
        yield one


def body(name: str = "bot") -> dict:
    return {"name": name, "role": "developer"}


def keyed(key: str = "k-1") -> dict[str, str]:
    return {"Idempotency-Key": key}


async def names(client) -> list[str]:
    return sorted(one["name"] for one in (await client.get("/v1/keys")).json()["keys"])


async def test_a_repetition_gets_the_same_answer_and_makes_nothing(client):
    first = await client.post("/v1/keys", json=body(), headers=keyed())
    again = await client.post("/v1/keys", json=body(), headers=keyed())
    assert (first.status_code, first.headers.get(REPLAYED)) == (201, None)
    assert (again.status_code, again.headers[REPLAYED]) == (201, "true")
    assert again.content == first.content, "the new key, too"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]
    assert "X-RateLimit-Remaining" in again.headers, "it counts as a request"
    assert (await names(client)).count("bot") == 1


async def test_a_body_that_says_the_same_is_the_same(client):
    headers = keyed() | {"Content-Type": "application/json"}
    first = await client.post("/v1/keys", content=b'{"name": "bot", "role": "developer"}', headers=headers)
    again = await client.post("/v1/keys", content=b'{"role":"developer","name":"bot"}', headers=headers)
    assert first.status_code == 201
    assert again.content == first.content


async def test_another_request_with_the_same_key_is_refused(client):
    await client.post("/v1/keys", json=body(), headers=keyed())
    for path, other in (("/v1/keys", body("other")), ("/v1/sessions", {})):
        answer = await client.post(path, json=other, headers=keyed())
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


async def test_without_a_key_nothing_is_repeated(client):
    for _ in range(2):
        assert (await client.post("/v1/keys", json=body())).status_code == 201
    assert (await names(client)).count("bot") == 2


async def test_a_key_that_is_none_is_refused_before_any_work(client):
    answer = await client.post("/v1/keys", json=body(), headers=keyed("a b"))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_idempotency_key")
    assert "bot" not in await names(client)


async def test_of_many_at_once_exactly_one_makes_something(client):
    found = await asyncio.gather(*(client.post("/v1/keys", json=body(), headers=keyed()) for _ in range(30)))
    assert {one.status_code for one in found} <= {201, 409}
    assert len({one.content for one in found if one.status_code == 201}) == 1
    assert {one.json()["code"] for one in found if one.status_code == 409} <= {"idempotency_in_flight"}
    assert all(one.headers["Retry-After"] == "1" for one in found if one.status_code == 409)
    assert (await names(client)).count("bot") == 1


async def test_what_is_refused_for_good_is_refused_again(client):
    first = await client.post("/v1/keys", json=body() | {"expires_at": "2020-01-01T00:00:00Z"}, headers=keyed())
    again = await client.post("/v1/keys", json=body() | {"expires_at": "2020-01-01T00:00:00Z"}, headers=keyed())
    assert (first.status_code, again.headers[REPLAYED]) == (422, "true")
    assert again.content == first.content


@pytest.mark.parametrize("wrong", [b"{", b'{"name": 1}', b"\xff"])
async def test_a_body_that_can_not_be_read_leaves_the_key_free(client, wrong):
    headers = keyed() | {"Content-Type": "application/json"}
    assert (await client.post("/v1/keys", content=wrong, headers=headers)).status_code in (400, 422)
    assert (await client.post("/v1/keys", json=body(), headers=keyed())).status_code == 201


@pytest.mark.parametrize(
    "refusal",
    [Refused("slowly", retry_after_seconds=3), Unavailable("not now"), Unavailable("x", retry_after_seconds=1)],
)
async def test_what_says_not_now_leaves_the_key_free(client, monkeypatch, refusal):
    async def refuse(*_):
        raise refusal

    with monkeypatch.context() as busy:
        busy.setattr(keys, "create", refuse)
        assert (await client.post("/v1/keys", json=body(), headers=keyed())).status_code in (429, 503)
    assert (await client.post("/v1/keys", json=body(), headers=keyed())).status_code == 201


async def test_a_commit_that_was_not_told_is_not_done_again(client, monkeypatch):
    create = keys.create

    async def untold(*arguments):
        await create(*arguments)
        raise Unavailable("the database can't be used now; try again", retry_after_seconds=2)

    with monkeypatch.context() as broken:
        broken.setattr(keys, "create", untold)
        assert (await client.post("/v1/keys", json=body(), headers=keyed())).status_code == 503
    answer = await client.post("/v1/keys", json=body(), headers=keyed())
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_lost")
    assert (await names(client)).count("bot") == 1


async def test_a_mistake_of_ours_after_the_work_is_not_done_again(client, monkeypatch):
    create = keys.create

    async def broken_after(*arguments):
        await create(*arguments)
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(keys, "create", broken_after)
        assert (await client.post("/v1/keys", json=body(), headers=keyed())).status_code == 500
    assert (await client.post("/v1/keys", json=body(), headers=keyed())).json()["code"] == "idempotency_lost"
    assert (await names(client)).count("bot") == 1


async def test_a_mistake_of_ours_before_the_work_leaves_the_key_free(client, monkeypatch):
    async def broken_before(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(keys, "create", broken_before)
        assert (await client.post("/v1/keys", json=body(), headers=keyed())).status_code == 500
    assert (await client.post("/v1/keys", json=body(), headers=keyed())).status_code == 201


async def test_who_may_no_more_is_not_told_what_was_answered(client, plane):
    """The same member by another credential: the permission is asked first, every time."""
    made = (await client.post("/v1/keys", json=body() | {"role": "admin"})).json()
    readonly = {"name": "eye", "role": "readonly", "member_id": made["member_id"]}
    weak = (await client.post("/v1/keys", json=readonly)).json()
    async with plane.client(made["key"]) as strong, plane.client(weak["key"]) as other:
        assert (await strong.post("/v1/keys", json=body("z"), headers=keyed())).status_code == 201
        assert (await other.post("/v1/keys", json=body("z"), headers=keyed())).status_code == 403


async def test_another_tenants_same_key_is_another_request(client, plane):
    async with plane.client(plane.operator_key) as operator:
        made = await operator.post("/v1/tenants", json={"name": "t", "tier": "pro"}, headers=keyed())
        again = await operator.post("/v1/tenants", json={"name": "t", "tier": "pro"}, headers=keyed())
        assert again.content == made.content
    async with plane.client(made.json()["admin_key"]) as other:
        first = await client.post("/v1/keys", json=body(), headers=keyed())
        second = await other.post("/v1/keys", json=body(), headers=keyed())
    assert first.status_code == second.status_code == 201
    assert first.json()["key"] != second.json()["key"]


async def test_an_answer_that_is_too_large_arrives_and_is_not_repeated(client, monkeypatch):
    monkeypatch.setattr(answers, "MAX_ANSWER_BYTES", 10)
    monkeypatch.setattr("amplifier_api_server.control_plane.idempotency.edge.MAX_ANSWER_BYTES", 10)
    first = await client.post("/v1/keys", json=body(), headers=keyed())
    assert (first.status_code, first.json()["name"]) == (201, "bot")
    again = await client.post("/v1/keys", json=body(), headers=keyed())
    assert (again.status_code, again.json()["code"]) == (409, "idempotency_answer_too_large")


class TestExecutions:
    @pytest.fixture
    async def path(self, plane):
        return f"/v1/sessions/{await plane.session()}/execute"

    def turns(self, plane) -> int:
        return sum(one.seen.count("POST turn") for one in plane.fleet.runtimes.values())

    async def test_a_repetition_gets_the_result_and_runs_nothing(self, client, plane, path):
        first = await client.post(path, json={"prompt": "hi"}, headers=keyed())
        again = await client.post(path, json={"prompt": "hi"}, headers=keyed())
        assert (first.status_code, again.headers[REPLAYED]) == (200, "true")
        assert again.json() == first.json()
        assert self.turns(plane) == 1

    async def test_a_failure_is_told_again(self, client, plane, path):
        async def fail(request):
            told = await request.runtime.hand_over(
                request, status="failed", failure={"code": "model_failed", "detail": "no"}
            )
            await request.reply(200, told.json()["result"])

        plane.fleet.answers["POST", "turn"] = fail
        first = await client.post(path, json={"prompt": "hi"}, headers=keyed())
        again = await client.post(path, json={"prompt": "hi"}, headers=keyed())
        assert (first.status_code, again.status_code, again.headers[REPLAYED]) == (502, 502, "true")
        assert again.json() == first.json()
        assert self.turns(plane) == 1

    async def test_while_it_runs_a_repetition_learns_which_it_is(self, client, plane, path):
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def slow(request):
            begun.set()
            await may_end.wait()
            await complete(request)

        plane.fleet.answers["POST", "turn"] = slow
        running = asyncio.create_task(client.post(path, json={"prompt": "hi"}, headers=keyed()))
        await begun.wait()
        again = await client.post(path, json={"prompt": "hi"}, headers=keyed())
        assert (again.status_code, again.json()["code"]) == (409, "idempotency_in_flight")
        may_end.set()
        first = (await running).json()
        assert again.json()["request_id"] == first["request_id"]
        assert (await client.post(path, json={"prompt": "hi"}, headers=keyed())).json() == first

    async def test_of_many_at_once_exactly_one_runs(self, client, plane, path):
        found = await asyncio.gather(*(client.post(path, json={"prompt": "hi"}, headers=keyed()) for _ in range(20)))
        assert {one.status_code for one in found} <= {200, 409}
        assert {one.json()["code"] for one in found if one.status_code == 409} <= {"idempotency_in_flight"}
        assert self.turns(plane) == 1

    async def test_a_background_execution_is_begun_once(self, client, plane, path):
        asked = {"prompt": "hi", "background": True}
        first = await client.post(path, json=asked, headers=keyed())
        again = await client.post(path, json=asked, headers=keyed())
        assert (first.status_code, again.status_code, again.headers[REPLAYED]) == (202, 202, "true")
        assert again.json() == first.json()
        assert again.headers["Location"] == first.headers["Location"]
        await asyncio.gather(*(turn.ended for turn in plane.app.services.turns.live.all()))
        assert self.turns(plane) == 1

    async def test_a_recorded_stream_is_sent_again_from_the_start_or_from_where_one_was(self, client, plane, path):
        first = await client.post(path, json={"prompt": "hi"}, headers=keyed("other"))
        asked = {"prompt": "hi", "stream": True}

        async def stream(request):
            frames = "".join(f"id: {request.turn_id}:{n}\nevent: token\ndata: {{}}\n\n" for n in (1, 2))
            told = (await request.runtime.hand_over(request, base=0, events=frames, last_event=2)).json()
            last = (
                f"id: {request.turn_id}:3\nevent: complete\ndata: {json.dumps(told['data'], separators=(',', ':'))}\n\n"
            )
            raw = (frames + last).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(raw)
            await request.say(head + raw)

        plane.fleet.answers["POST", "turn"] = stream
        first = await client.post(path, json=asked, headers=keyed())
        again = await client.post(path, json=asked, headers=keyed())
        assert first.headers["content-type"] == again.headers["content-type"]
        assert again.headers[REPLAYED] == "true"
        assert again.text == first.text
        last = first.text.split("\n")[0].removeprefix("id: ")
        later = await client.post(path, json=asked, headers=keyed() | {"Last-Event-ID": last})
        assert later.text == first.text.partition("\n\n")[2]
        assert self.turns(plane) == 2

    async def test_one_that_could_not_begin_leaves_the_key_free(self, client, plane, path):
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def slow(request):
            begun.set()
            await may_end.wait()
            await complete(request)

        plane.fleet.answers["POST", "turn"] = slow
        running = asyncio.create_task(client.post(path, json={"prompt": "one"}))
        await begun.wait()
        answer = await client.post(path, json={"prompt": "two"}, headers=keyed())
        assert answer.json()["code"] == "turn_running"
        may_end.set()
        assert (await running).status_code == 200
        assert (await client.post(path, json={"prompt": "two"}, headers=keyed())).status_code == 200

    @pytest.mark.parametrize("wrong", [{"prompt": 1}, {}, {"prompt": "x", "more": 1}])
    async def test_a_wrong_body_leaves_the_key_free(self, client, path, wrong):
        assert (await client.post(path, json=wrong, headers=keyed())).status_code == 422
        assert (await client.post(path, json={"prompt": "x"}, headers=keyed())).status_code == 200

    async def test_a_session_that_could_not_wake_leaves_the_key_free(self, client, plane, path, monkeypatch):
        async def busy(*_):
            raise Unavailable("no room", code="no_runtime", retry_after_seconds=1)

        residency = plane.app.services.turns._residency
        session_id = path.split("/")[3]
        tenant_id = next(iter(plane.app.services.fleet.tenants.values()))
        await residency.suspend(tenant_id, session_id)
        with monkeypatch.context() as full:
            full.setattr(residency, "ensure", busy)
            assert (await client.post(path, json={"prompt": "x"}, headers=keyed())).status_code == 503
        assert (await client.post(path, json={"prompt": "x"}, headers=keyed())).status_code == 200

    async def test_a_session_that_is_not_there_is_not_there_again(self, client):
        for _ in range(2):
            answer = await client.post("/v1/sessions/sess_x/execute", json={"prompt": "x"}, headers=keyed())
            assert answer.status_code == 404


async def test_a_session_is_made_once(client):
    first = await client.post("/v1/sessions", json={"profile": "foundation:base"}, headers=keyed())
    again = await client.post("/v1/sessions", json={"profile": "foundation:base"}, headers=keyed())
    assert (first.status_code, again.content) == (201, first.content)
    assert len((await client.get("/v1/sessions")).json()["sessions"]) == 1
    limits = {one["name"]: one for one in (await client.get("/v1/limits")).json()["limits"]}
    assert limits["sessions_per_user"]["used"] == 1


async def test_every_operation_that_takes_a_key_says_so(plane):
    document = plane.app.asgi._inner.openapi()
    for route in plane.app.routes.routes:
        item = document["paths"].get(route.template, {}).get(route.method.lower())
        if item is None:
            continue
        listed = [one["name"] for one in item.get("parameters", [])]
        assert ("Idempotency-Key" in listed) is route.operation.takes_key, route.template
        if route.operation.takes_key:
            assert {"409", "422"} <= item["responses"].keys()


class TestDocuments:
    """`POST /graphql`: the key is for the whole document, if that changes something."""

    MAKE = 'mutation { createKey(name: "bot", role: "developer") { id } }'

    async def ask(self, client, query, key="k-1"):
        return await client.post("/graphql", json={"query": query}, headers=keyed(key))

    async def test_a_document_with_a_mutation_is_done_once(self, client):
        first, again = await self.ask(client, self.MAKE), await self.ask(client, self.MAKE)
        assert first.json().get("errors") is None, first.text
        assert (again.headers[REPLAYED], again.content) == ("true", first.content)
        assert (await names(client)).count("bot") == 1
        other = await self.ask(client, self.MAKE.replace("bot", "other"))
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")

    async def test_what_was_answered_to_more_rights_is_not_told_to_less(self, plane, client):
        make = 'mutation { createKey(name: "bot", role: "admin") { key } }'
        admin = (await client.get("/v1/me")).json()["member"]["id"]
        weak = (await client.post("/v1/keys", json={"name": "w", "role": "readonly", "member_id": admin})).json()["key"]
        secret = (await self.ask(client, make)).json()["data"]["createKey"]["key"]
        async with plane.client(weak) as other:
            told = await self.ask(other, make)
        assert secret not in told.text
        assert told.json()["code"] == "idempotency_key_reused"

    async def test_a_document_without_one_needs_no_key_and_takes_none(self, client):
        for query in ("{ me { role } }", "{ __typename }"):
            answer = await self.ask(client, query)
            assert (answer.status_code, answer.headers.get(REPLAYED)) == (200, None), answer.text

    async def test_a_document_that_is_refused_as_a_whole_leaves_the_key_free(self, client):
        for wrong in ("mutation { noSuchField }", "mutation {", "mutation { createKey { id } }"):
            assert (await self.ask(client, wrong)).json()["errors"]
        assert (await self.ask(client, self.MAKE)).json().get("errors") is None
