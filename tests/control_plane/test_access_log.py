"""One line of the log tells all of a request."""

import pytest
from structlog.testing import capture_logs

from tests.hostile_runtime import attacked


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


def lines(logged):
    return [one for one in logged if one["event"] == "api:response"]


async def asked(plane, monkeypatch, method, path, **more):
    with capture_logs() as logged:
        monkeypatch.setattr(plane.app.services.telemetry, "_log", plane.app.services.telemetry._log.new())
        async with plane.client() as client:
            await client.request(method, path, **more)
    (line,) = lines(logged)
    return line


async def test_an_answer_says_who_asked_for_what_and_from_where(plane, monkeypatch):
    line = await asked(plane, monkeypatch, "GET", "/v1/sessions/sess_none?secret=x")
    async with plane.client() as client:
        me = (await client.get("/v1/me")).json()
    assert line.pop("duration_ms") > 0
    assert len(line.pop("request_id")) == 24
    assert line == {
        "event": "api:response",
        "log_level": "info",
        "method": "GET",
        "path": "/v1/sessions/sess_none",
        "route": "/v1/sessions/{session_id}",
        "status": 404,
        "code": "not_found",
        "client": "127.0.0.1",
        "tenant_id": me["tenant"]["id"],
        "user_id": me["member"]["id"],
    }


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/health", 200, None), ("/v1/sessions", 401, "unauthenticated"), ("/nowhere/" + "x" * 500, 404, "no_such_path")],
)
async def test_so_does_one_to_nobody_who_is_known(plane, monkeypatch, path, status, code):
    line = await asked(plane, monkeypatch, "GET", path, headers={"X-API-Key": "amp_live_wrong"})
    assert (line["status"], line["code"], line["tenant_id"], line["user_id"]) == (status, code, None, None)
    assert line["path"] == path[:200]


async def test_a_path_can_not_write_a_line_of_its_own(plane, monkeypatch):
    line = await asked(plane, monkeypatch, "GET", '/nowhere%0A{"event":"api:response"}%1b[31m')
    assert line["path"].isprintable()
