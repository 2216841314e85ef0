"""Health, claim, catalog, tools without a session: what is there before and beside any session."""

from __future__ import annotations

import pytest

from tests.runtime.conftest import Driver


async def test_a_runtime_is_claimed_once(unclaimed: Driver):
    assert (await unclaimed.call("GET", "/health"))[1] == {
        "protocol_version": 2,
        "open_sessions": [],
        "running_turns": [],
    }
    status, failure = await unclaimed.call("PUT", "/sessions/sess_1", {"profile": "foundation:base"})
    assert (status, failure["code"]) == (409, "not_claimed")
    await unclaimed.claim()
    await unclaimed.claim()
    assert (await unclaimed.call("GET", "/health"))[1]["runtime_id"] == "run_1"
    status, failure = await unclaimed.call("POST", "/claim", {"runtime_id": "run_1", "tenant_id": "ten_2"})
    assert (status, failure["code"]) == (409, "already_claimed")


async def test_the_catalog_needs_no_claim(unclaimed: Driver):
    _, catalog = await unclaimed.call("GET", "/catalog")
    assert "foundation:base" in [profile["name"] for profile in catalog["profiles"]]
    tools = {tool["name"]: tool for tool in catalog["tools"]}
    assert set(tools) == {"bash", "read_file", "write_file", "edit_file", "glob", "grep", "todo"}
    assert all(tool["description"] and tool["input_schema"]["type"] == "object" for tool in tools.values())


async def test_a_tool_without_a_session_leaves_nothing_for_the_next(runtime: Driver):
    await runtime.call("POST", "/tools/bash", {"input": {"command": "echo mine > note"}})
    status, outcome = await runtime.call("POST", "/tools/bash", {"input": {"command": "ls -A . .."}})
    assert (status, "note" in outcome["output"]["stdout"]) == (200, False)
    assert outcome["output"]["stdout"].count("tool-") == 1


async def test_a_tool_runs_without_a_session(runtime: Driver):
    status, outcome = await runtime.call("POST", "/tools/bash", {"input": {"command": "echo $((6*7))"}})
    assert status == 200
    assert (outcome["tool"], outcome["status"], outcome["output"]["stdout"]) == ("bash", "completed", "42\n")
    assert (await runtime.call("POST", "/tools/nope", {"input": {}}))[1]["code"] == "no_tool"


@pytest.mark.parametrize(
    ("name", "body", "error"),
    [
        ("bash", {"input": {}}, "command"),
        ("bash", {"input": {"command": "sleep 60"}, "timeout_seconds": 0.2}, "longer than 0.2 s"),
        ("bash", {"input": {"command": "sleep 60", "timeout": 0.2}}, "longer than 0.2 s"),
        ("read_file", {"input": {"file_path": "/etc/passwd"}}, "outside"),
    ],
)
async def test_a_tools_own_trouble_is_an_outcome(runtime: Driver, name: str, body, error: str):
    status, outcome = await runtime.call("POST", f"/tools/{name}", body)
    assert (status, outcome["status"]) == (200, "failed")
    assert error in outcome["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nope", 404),
        ("PATCH", "/health", 404),
        ("GET", "/sessions/sess_x/turns/req_x", 404),
        ("POST", "/sessions/sess_x/turns/req_x/cancel", 404),
        ("PUT", "/sessions/..%2f..", 422),
        ("DELETE", "/sessions/sess_x", 204),
    ],
)
async def test_what_is_not_there_is_told(runtime: Driver, method: str, path: str, status: int):
    body = {"profile": "foundation:base"} if method == "PUT" else None
    assert (await runtime.call_raw(method, path, body))[0] == status


@pytest.mark.parametrize("body", [{"prompt": ""}, {}, {"prompt": 7}, {"prompt": "x", "more": 1}, b"\xff"])
async def test_a_wrong_prompt_is_refused(runtime: Driver, body):
    await runtime.open()
    status, failure = await runtime.call("POST", "/sessions/sess_1/turns/req_a", body)
    assert (status, failure["code"]) == (422, "invalid_request")
