"""What the model gateway refuses because the tenant may not is told as that, and not as a sandbox that failed."""

import json

import pytest
from structlog.testing import capture_logs

from tests.hostile_runtime import attacked

NOT_ALLOWED = ["model_not_allowed", "provider_key_required", "server_tool_not_allowed"]


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


def failing_with(plane, code):
    async def answer(request) -> None:
        failure = {"code": code, "detail": "you may not"}
        told = await request.runtime.hand_over(request, status="failed", failure=failure)
        assert told.status_code == 200, told.text
        await request.reply(200, told.json()["result"])

    plane.fleet.answers["POST", "turn"] = answer


@pytest.mark.parametrize(("code", "status"), [*((code, 403) for code in NOT_ALLOWED), ("model_failed", 502)])
async def test_an_execution_that_may_not_have_its_model_is_403(plane, code, status):
    failing_with(plane, code)
    async with plane.client() as client:
        session = (await client.post("/v1/sessions", json={"profile": "foundation:base"})).json()["session_id"]
        answer = await client.post(f"/v1/sessions/{session}/execute", json={"prompt": "x"})
        told = answer.json()
        assert (answer.status_code, told["status"], told["code"], told["detail"]) == (
            status,
            status,
            code,
            "you may not",
        )
        assert told["usage"]["total_tokens"] == 0
        recorded = (await client.get(f"/v1/sessions/{session}/executions/{told['request_id']}")).json()
        assert recorded["status"] == "failed"
        assert (recorded["problem"]["status"], recorded["problem"]["code"]) == (status, code)
        events = (await client.get(f"/v1/sessions/{session}/executions/{told['request_id']}/events")).text
        last = json.loads(events.strip().rpartition("data: ")[2])
        assert (last["status"], last["code"]) == (status, code)


@pytest.mark.parametrize(
    ("code", "title"),
    [
        ("provider_unavailable", "The model's provider failed"),
        ("step_limit", "The execution failed"),
        ("runtime_stopping", "The sandbox failed"),
    ],
)
async def test_what_failed_is_in_the_title_and_the_code_in_the_log(plane, code, title):
    failing_with(plane, code)
    async with plane.client() as client:
        session = (await client.post("/v1/sessions", json={"profile": "foundation:base"})).json()["session_id"]
        with capture_logs() as logs:
            answer = await client.post(f"/v1/sessions/{session}/execute", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["title"], answer.json()["code"]) == (502, title, code)
    assert [one["code"] for one in logs if one["event"] == "session:executed"] == [code]
