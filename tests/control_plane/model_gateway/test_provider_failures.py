"""What a provider's failure becomes: what concerns the request passes, what concerns the operator stays with the operator."""

from __future__ import annotations

import json

import pytest
from structlog.testing import capture_logs

from .conftest import CHAT, KEY, ask, naming, streamed
from .scripted_upstream import DONE, answering, delta, whole_answer


async def answer_to(house, upstream, status: int, body: bytes, *headers: str, content_type: str = "application/json"):
    async def script(peer):
        await peer.whole(status, body, *headers, content_type=content_type)

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, json=ask(stream=True), headers=naming())
    assert await house.turns.finish("req_1", abort=True) == []
    return got


def error(code: str, message: str = "no") -> bytes:
    return json.dumps({"error": {"message": message, "type": "t", "code": code}}).encode()


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_an_error_of_the_request_passes_as_it_came(house, upstream, status):
    got = await answer_to(house, upstream, status, error("context_length_exceeded"))
    assert (got.status_code, got.content) == (status, error("context_length_exceeded"))


async def test_a_providers_rate_limit_passes_with_its_retry_after(house, upstream):
    got = await answer_to(house, upstream, 429, error("rate_limit_exceeded"), "Retry-After: 7", "X-Secret: 1")
    assert (got.status_code, got.headers["retry-after"]) == (429, "7")
    assert got.json()["error"]["code"] == "rate_limit_exceeded"
    assert "x-secret" not in got.headers


async def test_a_retry_after_that_is_no_number_is_dropped(house, upstream):
    got = await answer_to(house, upstream, 429, error("rate_limit_exceeded"), f"Retry-After: {KEY}")
    assert "retry-after" not in got.headers


@pytest.mark.parametrize(
    ("status", "code"), [(401, "invalid_api_key"), (403, "x"), (402, "x"), (429, "insufficient_quota")]
)
async def test_what_is_the_operators_trouble_is_502_and_logged_without_the_key(house, upstream, status, code):
    with capture_logs() as logs:
        got = await answer_to(house, upstream, status, error(code, f"Incorrect API key provided: {KEY}"))
    assert (got.status_code, got.json()["code"], got.json()["error"]["code"]) == (502, "provider_auth", "provider_auth")
    assert KEY not in got.text
    assert KEY not in str(logs)
    assert [log["status"] for log in logs if log["event"] == "model:provider_refused_us"] == [status]


@pytest.mark.parametrize("status", [500, 502, 503, 529, 301, 204, 409])
async def test_other_failures_are_502(house, upstream, status):
    got = await answer_to(house, upstream, status, b"" if status == 204 else error("boom"), "Retry-After: 3")
    assert (got.status_code, got.json()["code"], got.json()["retry_after_seconds"]) == (
        502,
        "provider_unavailable",
        3.0,
    )


async def test_an_error_page_is_not_passed_on(house, upstream):
    got = await answer_to(house, upstream, 404, b"<html>nginx on db-7.internal</html>", content_type="text/html")
    assert (got.status_code, got.json()["code"]) == (404, "provider_error")
    assert "db-7" not in got.text


async def test_a_provider_that_echoes_the_key_in_an_error_is_redacted(house, upstream):
    got = await answer_to(house, upstream, 400, error("bad", f"headers: Bearer {KEY}"))
    assert got.status_code == 400
    assert KEY not in got.text
    assert "[redacted]" in got.text


async def test_a_provider_that_echoes_the_key_in_a_stream_is_redacted(house, upstream):
    text = delta(f"your key is {KEY}, ")
    upstream.script = answering(text[:40], text[40:70], text[70:], delta("", "stop"), DONE)
    client = await house.runtime()
    await house.turn()
    assert (await streamed(client)).text == "your key is [redacted], "


async def test_a_provider_that_echoes_the_key_in_one_piece_is_redacted(house, upstream):
    async def script(peer):
        await peer.whole(200, whole_answer(KEY, 1, 1))

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, json=ask(), headers=naming())
    assert KEY not in got.text


async def test_a_provider_that_is_not_there_is_502(build):
    house = await build(provider={"base_url": "http://127.0.0.1:9/v1"})
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, json=ask(), headers=naming())
    assert (got.status_code, got.json()["code"]) == (502, "provider_unavailable")
    assert await house.turns.finish("req_1", abort=False) == []
