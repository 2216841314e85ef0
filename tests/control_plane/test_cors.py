"""Pages of other origins: what they may send, and what they may read of an answer."""

import httpx
import pytest
from pydantic import ValidationError

from amplifier_api_server.control_plane.framework import with_cors
from amplifier_api_server.control_plane.limits import headers as limit_headers
from amplifier_api_server.control_plane.limits import wants
from amplifier_api_server.control_plane.limits.backend import Standing
from amplifier_api_server.control_plane.settings import Cors, Settings

ORIGIN = "https://app.example.com"


async def inner(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def asked(method, *, origin=ORIGIN, preflight=None, headers="", **cors):
    settings = Settings(cors=Cors(allowed_origins=(ORIGIN,), **cors))
    transport = httpx.ASGITransport(with_cors(inner, settings))
    sent = {"Origin": origin}
    if preflight is not None:
        sent |= {"Access-Control-Request-Method": preflight, "Access-Control-Request-Headers": headers}
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.request(method, "/v1/sessions", headers=sent)


@pytest.mark.parametrize(
    "headers",
    [
        "content-type,x-api-key",
        "authorization,idempotency-key,last-event-id",
        "baggage,content-type,sentry-trace,traceparent,tracestate",
        "apollo-require-preflight,cache-control,x-requested-with",
    ],
)
async def test_a_page_of_a_named_origin_may_send_any_header(headers):
    answer = await asked("OPTIONS", preflight="POST", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    allowed = {one.strip() for one in answer.headers["access-control-allow-headers"].lower().split(",")}
    assert set(headers.split(",")) <= allowed
    assert "access-control-allow-credentials" not in answer.headers
    assert (await asked("OPTIONS", origin="https://evil.example", preflight="POST", headers=headers)).status_code == 400


async def test_an_operator_can_name_the_headers_and_those_of_the_api_are_allowed_beside_them():
    few = {"allowed_headers": ("traceparent",)}
    assert (await asked("OPTIONS", preflight="HEAD", headers="traceparent, x-api-key", **few)).status_code == 200
    assert (await asked("OPTIONS", preflight="POST", headers="baggage", **few)).status_code == 400
    with pytest.raises(ValidationError, match="name of a header"):
        Cors(allowed_headers=("not a name",))


async def test_a_page_may_read_what_an_answer_says_in_its_headers():
    answer = await asked("GET")
    exposed = {one.strip().lower() for one in answer.headers["access-control-expose-headers"].split(",")}
    standings = [
        Standing(name=name, limit=10, used=1, reserved=0, remaining=9, resets_at=60.0)
        for name in (wants.REQUESTS, wants.TOKENS)
    ]
    told = {name.decode() for name, _ in limit_headers.of(standings, 0.0)}
    assert told | {"x-request-id", "retry-after", "location", "etag", "idempotent-replayed"} <= exposed
