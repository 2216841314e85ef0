"""Approvals over runtimes that say what a test scripts: who may answer, what is told, and what a sandbox can't forge."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from amplifier_api_server.tenants.models import AuditEntry, TenantEvent
from tests.hostile_runtime import attacked

ID = "apr_" + "0" * 24


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


@pytest.fixture
async def me(plane):
    async with plane.client() as client:
        yield client


def approval(**more):
    expires = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    return {
        "approval_id": ID,
        "status": "requested",
        "prompt": "bash: rm x",
        "options": ["Allow once", "Deny"],
        "timeout_seconds": 300.0,
        "expires_at": expires,
        "tool": "bash",
        "call_id": "call_1",
        **more,
    }


class Waiting:
    """An execution whose one approval waits; its sandbox takes the first answer."""

    def __init__(self, plane, me):
        self._plane, self._me = plane, me
        self.answers, self.request = [], None
        self._there = asyncio.Event()

    async def begin(self):
        answers = self._plane.fleet.answers
        answers["POST", "turn"] = self._turn
        answers["GET", "approvals"] = lambda request: request.reply(
            200, {"approvals": [] if self.answers else [approval()]}
        )
        answers["POST", "approval"] = self._answer
        session = await self._plane.session()
        begun = await self._me.post(f"/v1/sessions/{session}/execute", json={"prompt": "hi", "background": True})
        await self._there.wait()
        return begun.headers["location"] + "/approvals"

    async def _turn(self, request):
        self.request = request
        self._there.set()
        await request.hang()

    async def _answer(self, request):
        if self.answers:
            await request.reply(409, {"code": "approval_closed", "detail": "somebody answered it"})
            return
        self.answers.append(request.body)
        choice = request.body["choice"] or ("Allow once" if request.body["approved"] else "Deny")
        granted = choice.startswith("Allow")
        await request.reply(200, approval(status="answered", choice=choice, approved=granted))


@pytest.fixture
async def waiting(plane, me):
    one = Waiting(plane, me)
    one.path = await one.begin()
    return one


async def rows(plane, model):
    async with plane.app.services.database.read() as db:
        return list((await db.execute(select(model))).scalars())


async def test_what_waits_is_listed_and_one_answer_is_taken_and_recorded(plane, me, waiting):
    (listed,) = (await me.get(waiting.path)).json()["approvals"]
    assert (listed["approval_id"], listed["status"], listed["prompt"], listed["options"], listed["tool"]) == (
        ID,
        "requested",
        "bash: rm x",
        ["Allow once", "Deny"],
        "bash",
    )
    assert waiting.path.endswith(f"{listed['session_id']}/executions/{listed['request_id']}/approvals")
    answer = await me.post(f"{waiting.path}/{ID}", json={"choice": "Allow once"})
    assert (answer.status_code, answer.json()["status"], answer.json()["approved"]) == (200, "answered", True)
    assert (await me.get(waiting.path)).json() == {"approvals": []}
    again = await me.post(f"{waiting.path}/{ID}", json={"approved": False})
    assert (again.status_code, again.json()["code"]) == (409, "approval_closed")
    (entry,) = [one for one in await rows(plane, AuditEntry) if one.action == "answerApproval"]
    assert (entry.target, entry.changes["choice"], entry.door) == (ID, [None, "Allow once"], "rest")
    (event,) = [one for one in await rows(plane, TenantEvent) if one.type == "approval.answered"]
    assert (event.data["approval_id"], event.data["approved"]) == (ID, True)
    assert "prompt" not in event.data


async def test_yes_and_no_are_answers_too(plane, me, waiting):
    assert (await me.post(f"{waiting.path}/{ID}", json={"approved": False})).json()["choice"] == "Deny"
    assert waiting.answers == [{"choice": None, "approved": False}]


@pytest.mark.parametrize("body", [{}, {"choice": "Deny", "approved": True}, {"approved": "perhaps"}, {"choice": 1}, []])
async def test_what_is_no_answer_never_reaches_the_sandbox(plane, me, waiting, body):
    assert (await me.post(f"{waiting.path}/{ID}", json=body)).status_code == 422
    assert waiting.answers == []


async def test_an_option_that_there_is_not_is_refused_with_those_that_there_are(plane, me, waiting):
    async def refuse(request):
        await request.reply(422, {"code": "invalid_choice", "detail": "it should be one of 'Allow once', 'Deny'"})

    plane.fleet.answers["POST", "approval"] = refuse
    answer = await me.post(f"{waiting.path}/{ID}", json={"choice": "Maybe"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_choice")
    assert "'Allow once', 'Deny'" in answer.json()["detail"]


async def test_who_may_only_read_sees_it_and_can_not_answer_and_another_tenant_sees_nothing(plane, me, waiting):
    made = (await me.post("/v1/keys", json={"name": "k", "role": "readonly"})).json()
    async with plane.client(made["key"]) as reader:
        assert len((await reader.get(waiting.path)).json()["approvals"]) == 1
        assert (await reader.post(f"{waiting.path}/{ID}", json={"approved": True})).status_code == 403
    async with plane.client(plane.operator_key) as operator:
        other_key = (await operator.post("/v1/tenants", json={"name": "o", "tier": "enterprise"})).json()["admin_key"]
    async with plane.client(other_key) as other:
        for answer in (
            await other.get(waiting.path),
            await other.post(f"{waiting.path}/{ID}", json={"approved": True}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "execution_not_found")
    assert waiting.answers == []


@pytest.mark.parametrize("approval_id", ["x", "..%2F..%2Fcancel", "apr_", "apr_" + "a" * 41, "apr_a%0D%0Ax"])
async def test_an_id_that_is_none_is_not_found_and_not_asked_for(plane, me, waiting, approval_id):
    answer = await me.post(f"{waiting.path}/{approval_id}", json={"approved": True})
    assert answer.status_code == 404
    assert waiting.answers == []


async def test_after_its_end_an_execution_has_none_and_takes_no_answer(plane, me, waiting):
    await me.post(waiting.path.replace("/approvals", "/cancel"))
    assert (await me.get(waiting.path)).json() == {"approvals": []}
    answer = await me.post(f"{waiting.path}/{ID}", json={"approved": True})
    assert (answer.status_code, answer.json()["code"]) == (409, "approval_closed")


async def test_before_its_session_has_woken_an_execution_has_none(plane, me):
    session = await plane.session()
    services = plane.app.services
    await services.turns._residency.suspend(next(iter(services.fleet.tenants.values())), session)
    go = asyncio.Event()

    async def wait(request):
        await go.wait()
        await request.reply(200, {"plan": {"a": 1}, "model": "m"})

    plane.fleet.answers["PUT", "session"] = wait
    begun = await me.post(f"/v1/sessions/{session}/execute", json={"prompt": "hi", "background": True})
    path = begun.headers["location"] + "/approvals"
    assert (await me.get(path)).json() == {"approvals": []}
    assert (await me.post(f"{path}/{ID}", json={"approved": True})).status_code == 404
    go.set()


@pytest.mark.parametrize(
    "reply",
    [
        (200, {"approvals": [{"approval_id": "apr_1"}]}),
        (200, [1]),
        (200, {"approvals": [approval(expires_at="tomorrow")]}),
        (200, {"approvals": [approval(expires_at="2026-01-01T00:00:00")]}),
        (200, {"approvals": [approval(options=["x" * 1000])]}),
        (200, {"approvals": [approval()] * 65}),
        (200, {"approvals": [approval(approval_id="../x")]}),
    ],
)
async def test_what_a_sandbox_says_that_is_none_is_not_shown(plane, me, waiting, reply):
    plane.fleet.answers["GET", "approvals"] = lambda request: request.reply(*reply)
    answer = await me.get(waiting.path)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_a_sandbox_that_answers_for_another_approval_is_not_believed(plane, me, waiting):
    async def lie(request):
        await request.reply(200, approval(approval_id="apr_1", status="answered", choice="Deny", approved=False))

    plane.fleet.answers["POST", "approval"] = lie
    assert (await me.post(f"{waiting.path}/{ID}", json={"approved": True})).status_code == 503
    assert not [one for one in await rows(plane, AuditEntry) if one.action == "answerApproval"]


async def test_a_sandbox_that_does_not_answer_is_unavailable(plane, me, waiting, monkeypatch):
    monkeypatch.setattr("amplifier_api_server.control_plane.sessions.approvals._ASK_SECONDS", 0.1)

    async def hang(request):
        await request.hang()

    plane.fleet.answers["GET", "approvals"] = plane.fleet.answers["POST", "approval"] = hang
    assert (await me.get(waiting.path)).status_code == 503
    assert (await me.post(f"{waiting.path}/{ID}", json={"approved": True})).status_code == 503


# What sandboxes tell


async def tell(waiting, turn_id=None, **more):
    runtime = waiting.request.runtime
    return await runtime.gateway("POST", f"/turns/{turn_id or waiting.request.turn_id}/approvals", approval(**more))


async def test_an_approval_is_an_event_of_the_tenant_when_it_is_asked_for_and_when_it_times_out(plane, me, waiting):
    assert (await tell(waiting)).status_code == 204
    assert (await tell(waiting, status="timed_out")).status_code == 204
    events = [one for one in await rows(plane, TenantEvent) if one.type.startswith("approval.")]
    assert [(one.type, one.data["status"]) for one in events] == [
        ("approval.requested", "requested"),
        ("approval.answered", "timed_out"),
    ]
    assert events[1].data["approved"] is False
    assert events[0].data["request_id"] == waiting.request.turn_id


async def test_an_execution_that_waits_says_so_and_is_listed_for_whoever_polls(plane, me, waiting):
    path, request_id = waiting.path.removesuffix("/approvals"), waiting.request.turn_id

    async def shown():
        query = (
            "{ tenantApprovals { nodes { id } } tenantExecutions(status: [WAITING_FOR_APPROVAL]) { nodes { status } } }"
        )
        data = (await me.post("/graphql", json={"query": query})).json()["data"]
        listed = (await me.get("/v1/executions", params={"status": "waiting_for_approval"})).json()["executions"]
        running = (await me.get("/v1/executions", params={"status": "running"})).json()["executions"]
        asked = (await me.get("/v1/approvals")).json()["approvals"]
        assert [one["id"] for one in data["tenantApprovals"]["nodes"]] == [one["approval_id"] for one in asked]
        assert [one["status"] for one in data["tenantExecutions"]["nodes"]] == [one["status"] for one in listed]
        assert [one["request_id"] for one in listed + running] == [request_id]
        return (await me.get(path)).json()["status"], len(listed), [one["request_id"] for one in asked]

    assert await shown() == ("running", 0, [])
    await tell(waiting)
    assert await shown() == ("waiting_for_approval", 1, [request_id])
    assert (await me.get("/v1/approvals", params={"session_id": "sess_none"})).json()["approvals"] == []
    assert (await me.get("/v1/executions", params={"session_id": "sess_none"})).status_code == 404
    assert (await me.post(f"{waiting.path}/{ID}", json={"approved": True})).status_code == 200
    assert await shown() == ("running", 0, [])
    await tell(waiting)
    await tell(waiting, status="timed_out")
    assert await shown() == ("running", 0, [])
    await tell(waiting, expires_at="2020-01-01T00:00:00Z")  # what nobody answered in its time is denied
    assert await shown() == ("running", 0, [])
    await me.post(f"{path}/cancel")
    assert [one["status"] for one in (await me.get("/v1/executions")).json()["executions"]] == ["cancelled"]


@pytest.mark.parametrize(
    "more", [{"status": "answered"}, {"status": "x"}, {"prompt": "x" * 4001}, {"approval_id": "1"}]
)
async def test_what_a_sandbox_may_not_tell_is_refused(plane, me, waiting, more):
    assert (await tell(waiting, **more)).status_code == 422
    assert not [one for one in await rows(plane, TenantEvent) if one.type.startswith("approval.")]


async def test_a_sandbox_tells_of_its_own_turns_only_and_not_without_end(plane, me, waiting, monkeypatch):
    assert (await tell(waiting, turn_id="req_another")).status_code == 404
    monkeypatch.setattr("amplifier_api_server.control_plane.sessions.approvals._TIMES_TOLD", 2)
    assert [(await tell(waiting)).status_code for _ in range(3)] == [204, 204, 429]
    await me.post(waiting.path.replace("/approvals", "/cancel"))
    assert (await tell(waiting)).status_code == 404
