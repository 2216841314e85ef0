"""Trying again: what is, where, after how long; and that nothing is once bytes reached the sandbox."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from amplifier_api_server.control_plane.model_gateway import calls
from amplifier_api_server.control_plane.settings import ModelProvider

from .conftest import KEY, told
from .scripted_upstream import ScriptedUpstream, answering
from .spoken import Responses

NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch):
    """Waits are what providers asked for, and no more."""
    real = calls.retry_delay_seconds
    monkeypatch.setattr(calls, "retry_delay_seconds", lambda *given, **more: real(*given, **more, chance=lambda: 0.0))


@pytest.fixture
async def second():
    async with ScriptedUpstream() as scripted:
        yield scripted


def in_turn(*scripts):
    """Each request meets the next script; the last one stays."""
    left = list(scripts)

    async def script(peer):
        await (left.pop(0) if len(left) > 1 else left[0])(peer)

    return script


def refusing(spoken, status: int, code: str, *headers: str, **more):
    async def script(peer):
        await peer.whole(status, spoken.error(code, **more), *headers)

    return script


async def hanging_up(peer):
    peer.cut()


async def asked(house, spoken, *, stream=True, runtime="run_1", **more):
    client = await house.runtime(runtime)
    await house.turn(runtime_id=runtime)
    got = await told(client, spoken.path, spoken.ask(stream=stream, **more))
    return got, await house.turns.finish("req_1", abort=False)


def provider(name: str, base_url: str, spoken, **more) -> ModelProvider:
    given = {"name": name, "base_url": base_url, "dialect": spoken.dialect, "models": ("m",), "api_key": SecretStr(KEY)}
    return ModelProvider(**(given | more))


@pytest.fixture
async def with_fallback(build, upstream, second, spoken):
    """A house whose model `both` is the first provider's, then the second's."""

    async def build_one(first: str | None = None, provider_options: dict | None = None, **more):
        providers = (
            provider("first", first or upstream.base_url, spoken, **(provider_options or {})),
            provider("second", second.base_url, spoken),
        )
        aliases = {"both": ("first/m", "second/m")}
        return await build(provider=False, providers=providers, aliases=aliases, **more)

    return build_one


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("status", "code"), [(500, "server_error"), (529, "overloaded_error"), (429, "rate_limit")])
async def test_a_failure_that_passes_is_tried_again_and_only_the_answer_is_seen(
    spoken_house, upstream, spoken, status, code, stream
):
    async def whole(peer):
        await peer.whole(200, spoken.whole("ok"))

    good = answering(*spoken.stream(["ok"])) if stream else whole
    upstream.script = in_turn(refusing(spoken, status, code), refusing(spoken, status, code), good)
    got, usages = await asked(await spoken_house(retries=2), spoken, stream=stream)
    assert (got.status, len(upstream.asked), len(usages)) == (200, 3, 1)
    assert got.body == (b"".join(spoken.stream(["ok"])) if stream else spoken.whole("ok"))


async def test_after_the_last_retry_the_last_failure_is_told(spoken_house, upstream, spoken):
    upstream.script = in_turn(refusing(spoken, 500, "server_error"), refusing(spoken, 429, "rate_limit_exceeded"))
    got, usages = await asked(await spoken_house(retries=1), spoken)
    assert (got.status, got.body) == (429, spoken.error("rate_limit_exceeded"))
    assert (len(upstream.asked), usages) == (2, [])


async def test_a_short_retry_after_is_waited_for(spoken_house, upstream, spoken):
    upstream.script = in_turn(
        refusing(spoken, 429, "rate_limit_exceeded", "Retry-After: 0.3"), answering(*spoken.stream(["ok"]))
    )
    house = await spoken_house(retries=1)
    started = time.monotonic()
    got, _ = await asked(house, spoken)
    assert spoken.text(got) == "ok"
    assert time.monotonic() - started >= 0.3


async def test_a_long_retry_after_is_passed_on_at_once(spoken_house, upstream, spoken):
    upstream.script = refusing(spoken, 429, "rate_limit_exceeded", "Retry-After: 21")
    got, _ = await asked(await spoken_house(retries=2), spoken)
    assert (got.status, got.headers["retry-after"], len(upstream.asked)) == (429, "21", 1)
    assert got.body == spoken.error("rate_limit_exceeded")


async def test_a_wait_that_would_outlast_the_call_is_not_begun(spoken_house, upstream, spoken):
    upstream.script = refusing(spoken, 429, "rate_limit_exceeded", "Retry-After: 15")
    got, _ = await asked(await spoken_house(retries=2, call_timeout=timedelta(seconds=10)), spoken)
    assert (got.status, len(upstream.asked)) == (429, 1)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_wrong_request_is_not_tried_again_anywhere(with_fallback, upstream, second, spoken, status):
    upstream.script = refusing(spoken, status, "invalid_request_error")
    got, _ = await asked(await with_fallback(retries=2), spoken, model="both")
    assert (got.status, len(upstream.asked), len(second.asked)) == (status, 1, 0)


async def test_a_connection_refused_falls_back_to_the_next(with_fallback, second, spoken):
    second.script = answering(*spoken.stream(["ok"]))
    got, [usage] = await asked(await with_fallback(NOWHERE, retries=1), spoken, model="both")
    assert (spoken.text(got), usage.provider, usage.estimated) == ("ok", "second", False)


async def test_a_connection_that_breaks_before_a_byte_is_tried_again(spoken_house, upstream, spoken):
    upstream.script = in_turn(hanging_up, answering(*spoken.stream(["ok"])))
    got, _ = await asked(await spoken_house(retries=1), spoken)
    assert (spoken.text(got), len(upstream.asked)) == ("ok", 2)


async def test_a_silent_provider_is_not_waited_for_twice(with_fallback, upstream, second, spoken):
    async def silent(peer):
        await peer.hung_up()

    upstream.script, second.script = silent, answering(*spoken.stream(["ok"]))
    house = await with_fallback(retries=2, idle_timeout=timedelta(seconds=0.15))
    got, _ = await asked(house, spoken, model="both")
    assert (spoken.text(got), len(upstream.asked)) == ("ok", 1)


@pytest.mark.parametrize("status", [401, 402, 404])
async def test_a_refused_key_or_a_missing_model_falls_back(with_fallback, upstream, second, spoken, status):
    upstream.script, second.script = refusing(spoken, status, "no"), answering(*spoken.stream(["ok"]))
    got, _ = await asked(await with_fallback(retries=2), spoken, model="both")
    assert (spoken.text(got), len(upstream.asked)) == ("ok", 1)


async def test_when_all_fail_the_last_failure_is_told(with_fallback, second, spoken):
    second.script = refusing(spoken, 404, "not_found_error")
    got, usages = await asked(await with_fallback(NOWHERE), spoken, model="both")
    assert (got.status, got.body, usages) == (404, spoken.error("not_found_error"), [])


async def test_nothing_is_tried_again_once_bytes_reached_the_sandbox(with_fallback, upstream, second, spoken):
    upstream.script = answering(*spoken.stream(["a", "b", "c"])[:-3])
    second.script = answering(*spoken.stream(["never"]))
    got, [usage] = await asked(await with_fallback(retries=3), spoken, model="both")
    assert (spoken.code(got), len(upstream.asked), second.asked) == ("provider_unavailable", 1, [])
    assert usage.provider == "first"


async def test_a_stream_that_begins_with_a_passing_error_is_tried_again(spoken_house, upstream, spoken):
    code = "rate_limit_error" if spoken.name == "messages" else "rate_limit_exceeded"
    upstream.script = in_turn(answering(spoken.error_event(code)), answering(*spoken.stream(["ok"])))
    got, [usage] = await asked(await spoken_house(retries=1), spoken)
    assert (got.body, len(upstream.asked)) == (b"".join(spoken.stream(["ok"])), 2)
    assert not usage.estimated


async def test_a_stream_that_is_nothing_but_an_error_passes_as_it_came(spoken_house, upstream, spoken):
    upstream.script = answering(spoken.error_event("something_else"))
    got, usages = await asked(await spoken_house(retries=3), spoken)
    assert (got.status, got.body, len(upstream.asked)) == (200, spoken.error_event("something_else"), 1)
    assert got.headers["content-type"].startswith("text/event-stream")
    assert usages == []


async def test_an_attempt_that_failed_is_counted_if_the_provider_counted_it(spoken_house, upstream, spoken):
    counted = spoken.usage(30, 5)
    upstream.script = in_turn(
        refusing(spoken, 500, "server_error", usage=counted), answering(*spoken.stream(["ok"], 11, 1))
    )
    house = await spoken_house(retries=1)
    got, usages = await asked(house, spoken)
    assert spoken.text(got) == "ok"
    assert [(one.prompt_tokens, one.completion_tokens, one.estimated) for one in usages] == [
        (30, 5, False),
        (11, 1, False),
    ]
    assert len({one.call_id for one in usages}) == 2


async def test_a_response_that_failed_and_was_counted_is_tried_again_and_paid_for(build, upstream):
    spoken = Responses()
    error = {"code": "server_error", "message": "oh"}
    failed = spoken.stream([], 20, 8, kind="failed", error=error)
    upstream.script = in_turn(answering(b"".join(failed)), answering(*spoken.stream(["ok"], 20, 1)))
    got, usages = await asked(await build(retries=1), spoken)
    assert (spoken.text(got), [one.completion_tokens for one in usages]) == ("ok", [8, 1])


async def test_all_attempts_of_a_call_pay_from_one_budget(spoken_house, upstream, spoken):
    counted = spoken.usage(190, 5)
    upstream.script = refusing(spoken, 500, "server_error", usage=counted)
    house = await spoken_house(retries=5)
    client = await house.runtime()
    await house.turn(limit=200)
    got = await told(client, spoken.path, spoken.ask(stream=True))
    assert (got.status, got.json["code"], len(upstream.asked)) == (402, "quota_exceeded", 1)
    assert [one.total_tokens for one in await house.turns.finish("req_1", abort=False)] == [195]


async def test_a_cancelled_turn_stops_waiting_at_once(spoken_house, upstream, spoken, monkeypatch):
    waits = asyncio.Event()

    def for_long(*_, **__):
        waits.set()
        return 600.0

    monkeypatch.setattr(calls, "retry_delay_seconds", for_long)
    upstream.script = refusing(spoken, 500, "server_error")
    house = await spoken_house(drain=timedelta(minutes=5))
    client = await house.runtime()
    await house.turn()
    call = asyncio.create_task(told(client, spoken.path, spoken.ask(stream=True)))
    await waits.wait()
    async with asyncio.timeout(60):
        assert await house.turns.finish("req_1", abort=False) == []
        assert (await call).json["code"] == "no_turn"
    assert len(upstream.asked) == 1


async def test_a_provider_that_keeps_failing_is_left_alone_and_said_so(with_fallback, upstream, second, spoken):
    upstream.script = refusing(spoken, 503, "overloaded_error")
    second.script = answering(*spoken.stream(["ok"]))
    house = await with_fallback(breaker_failures=2, breaker_open=timedelta(minutes=5))
    with capture_logs() as logs:
        for _ in range(4):
            got, _ = await asked(house, spoken, model="both")
            assert spoken.text(got) == "ok"
    assert len(upstream.asked) == 2
    assert [one["provider"] for one in logs if one["event"] == "model:provider_left_alone"] == ["first"]
    got, _ = await asked(house, spoken, model="first/m")
    assert (got.status, got.json["code"]) == (503, "provider_unavailable")
    assert 0 < int(got.headers["retry-after"]) <= 300


async def test_a_rate_limit_and_a_wrong_request_open_no_breaker(spoken_house, upstream, spoken):
    house = await spoken_house(breaker_failures=1)
    for status in (429, 400, 404, 401):
        upstream.script = refusing(spoken, status, "x")
        await asked(house, spoken)
    upstream.script = answering(*spoken.stream(["ok"]))
    assert spoken.text((await asked(house, spoken))[0]) == "ok"


async def test_an_empty_account_is_the_operators_trouble_also_where_it_looks_like_a_wrong_request(build, upstream):
    async def script(peer):
        message = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."
        body = b'{"type":"error","error":{"type":"invalid_request_error","message":"' + message.encode() + b'"}}'
        await peer.whole(400, body)

    upstream.script = script
    house = await build(provider={"dialect": "anthropic"})
    client = await house.runtime()
    await house.turn()
    got = await told(client, "/v1/messages", {"messages": [], "max_tokens": 5})
    assert (got.status, got.json["code"], "credit" in got.body.decode()) == (502, "provider_auth", False)
    assert got.headers["x-should-retry"] == "false"
