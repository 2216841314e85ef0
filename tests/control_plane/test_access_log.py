"""One line of the log tells all of a request."""

import re

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
    assert len(line.pop("http_request_id")) == 24
    assert line == {
        "event": "api:response",
        "log_level": "info",
        "method": "GET",
        "path": "/v1/sessions/sess_none",
        "route": "/v1/sessions/{session_id}",
        "status": 422,
        "code": "invalid_request",
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


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize("given", ["my-trace-1", "a" * 128, "aws:1-63441c4a-abcdef.x/y=z@w+v_"])
async def test_the_id_that_a_client_gives_its_request_is_kept(plane, given):
    with capture_logs() as logged:
        async with plane.client() as client:
            plane.app.services.telemetry._log = plane.app.services.telemetry._log.new()
            headers = {"X-Request-Id": given, "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            answer = await client.get("/v1/sessions/sess_none", headers=headers)
            await client.post("/v1/keys", json={"name": "k", "role": "readonly"}, headers=headers)
            (entry,) = (await client.get("/v1/audit", params={"action": "createKey", "limit": 1})).json()[
                "audit_entries"
            ]
    assert answer.headers["x-request-id"] == given
    assert "request_id" not in answer.json()
    assert entry["http_request_id"] == given
    for event in ("api:request", "api:response", "api:error"):
        assert [one["trace_id"] for one in logged if one.get("http_request_id") == given and one["event"] == event]


@pytest.mark.parametrize("given", ["", "two words", "a" * 129, "<script>", "a~b", '"}', "\u00e9"])
async def test_an_id_that_can_not_be_one_is_replaced(plane, given):
    async with plane.client() as client:
        answer = await client.get("/health", headers=[(b"X-Request-Id", given.encode("latin-1"))])
    assert re.fullmatch("[0-9a-f]{24}", answer.headers["x-request-id"])


@pytest.mark.parametrize(
    "given", ["nonsense", f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-{TRACE.upper()}-b7ad6b7169203331-01"]
)
async def test_a_trace_that_is_none_is_in_no_line(plane, monkeypatch, given):
    assert "trace_id" not in await asked(plane, monkeypatch, "GET", "/health", headers={"traceparent": given})
