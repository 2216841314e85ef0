from __future__ import annotations

import asyncio
import json

import pytest

from tests.runtime.conftest import Driver, text_of
from tests.runtime.fake_gateway import DONE, CutOff, answers, calls, chunk, raw, says


def problem(code: str) -> dict:
    return {"type": "about:blank", "title": "t", "status": 503, "code": code, "detail": "why"}


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (answers(402, {"code": "quota_exceeded", "detail": "spent"}), "quota_exceeded"),
        (answers(503, problem("provider_unavailable")), "provider_unavailable"),
        (
            answers(429, {"error": {"message": "slow down", "code": "rate_limited"}}, {"retry-after": "7"}),
            "rate_limited",
        ),
        (
            answers(400, {"error": {"message": "bad", "type": "invalid_request_error", "code": None}}),
            "invalid_request_error",
        ),
        (answers(500, b"<html>oops</html>"), "model_failed"),
        (answers(418, b""), "model_failed"),
        (
            raw(chunk({"content": "a"}), b'data: {"error": {"code": "quota_exceeded", "message": "cut"}}\n\n'),
            "quota_exceeded",
        ),
        (raw(chunk({"content": "a"}), b'data: {"code": "x", "error": "plain words"}\n\n'), "model_failed"),
        (raw(chunk({"content": "a"})), "model_failed"),
        (raw(b"data: {broken\n\n"), "model_failed"),
        (raw(b"data: [1, 2]\n\n"), "model_failed"),
        (raw(chunk(finish="content_filter"), DONE), "content_filtered"),
        (raw(chunk(finish="length"), DONE), "answer_cut_off"),
        (raw(DONE), "model_failed"),
    ],
)
async def test_a_failed_model_call_fails_the_turn_with_its_code_and_leaves_no_trace(runtime: Driver, script, code: str):
    await runtime.open()
    await runtime.ask("before")
    runtime.gateway.scripts.append(script)
    events = await runtime.stream("failing")
    assert events[-1].name == "error"
    assert events[-1].data["code"] == code
    checkpoint = runtime.gateway.checkpoints[-1]
    assert (checkpoint["status"], checkpoint.get("messages", []), checkpoint["base"]) == ("failed", [], 2)
    await runtime.ask("after")
    assert [one["content"] for one in runtime.gateway.requests[-1]["messages"][1:]] == [
        "before",
        "Hello world",
        "after",
    ]


async def test_a_retry_after_reaches_the_caller(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.append(answers(429, {"error": {"message": "slow down"}}, {"retry-after": "7"}))
    assert (await runtime.ask())["problem"]["retry_after_seconds"] == 7


async def test_a_stream_that_breaks_off_fails_the_turn(runtime: Driver):
    await runtime.open()

    async def script(body, write):
        await write(chunk({"content": "a"}))
        raise CutOff

    runtime.gateway.scripts.append(script)
    result = await runtime.ask()
    assert (result["status"], result["problem"]["code"]) == ("failed", "model_failed")


async def test_a_silent_model_is_given_up_after_the_idle_timeout(unclaimed: Driver):
    await unclaimed.claim(model_idle_timeout_seconds=0.2)
    await unclaimed.open()

    async def script(body, write):
        await write(chunk({"content": "a"}))
        await asyncio.Event().wait()

    unclaimed.gateway.scripts.append(script)
    result = await unclaimed.ask()
    assert (result["status"], result["problem"]["code"]) == ("failed", "model_timeout")


async def test_text_split_inside_a_character_and_events_in_any_division_come_out_whole(runtime: Driver):
    await runtime.open()
    text = "añ€😀 \u2028"
    stream = b"".join(
        b"data: " + json.dumps({"choices": [{"delta": {"content": one}}]}, ensure_ascii=False).encode() + b"\r\n\r\n"
        for one in text
    )
    stream += chunk(finish="stop") + DONE
    for size in (1, 2, 3, 7, 1000, len(stream)):
        runtime.gateway.scripts.append(raw(*[stream[at : at + size] for at in range(0, len(stream), size)]))
        events = await runtime.stream()
        assert (text_of(events), events[-1].name) == (text, "complete"), size


async def test_half_a_surrogate_pair_becomes_a_replacement_character(runtime: Driver):
    await runtime.open()
    runtime.gateway.scripts.append(
        raw(b'data: {"choices":[{"delta":{"content":"x\\ud83d y"},"finish_reason":"stop"}]}\n\n', DONE)
    )
    events = await runtime.stream()
    assert events[-1].name in ("complete", "error")
    assert "\ud83d" not in text_of(events)
    assert (await runtime.ask())["status"] == "completed"


async def test_doubled_and_missing_call_ids_are_made_unique(runtime: Driver):
    await runtime.open()
    call = {"type": "function", "function": {"name": "todo", "arguments": '{"action": "list"}'}}
    deltas = [{"index": 0, "id": "same", **call}, {"index": 1, "id": "same", **call}, {"index": 2, **call}]
    runtime.gateway.scripts.extend([raw(chunk({"tool_calls": deltas}), chunk(finish="tool_calls"), DONE), says("ok")])
    assert (await runtime.ask())["status"] == "completed"
    ids = [one["tool_call_id"] for one in runtime.gateway.checkpoints[0]["messages"] if one["role"] == "tool"]
    assert len(set(ids)) == 3


async def test_a_checkpoint_is_tried_again_until_it_gets_through(runtime: Driver):
    await runtime.open()
    runtime.gateway.checkpoint_answers.extend([None, 503, None])
    assert (await runtime.ask())["status"] == "completed"
    assert len(runtime.gateway.checkpoints) == 1


@pytest.mark.parametrize("status", [409, 404, 422])
async def test_a_refused_checkpoint_ends_the_turn_as_not_durable_and_rolls_it_back(runtime: Driver, status: int):
    await runtime.open()
    runtime.gateway.checkpoint_answers.append(status)
    runtime.gateway.scripts.append(
        calls(("todo", {"action": "create", "todos": [{"content": "x", "status": "pending"}]}))
    )
    events = await runtime.stream("lost", request_id="req_a")
    assert [event.name for event in events if event.name in ("complete", "error")] == ["error"]
    assert events[-1].data["code"] == "not_durable"
    assert "not this one" in events[-1].data["detail"]
    assert (await runtime.call("GET", "/sessions/sess_1/turns/req_a"))[1]["status"] == "failed"
    await runtime.ask("next")
    assert [one["content"] for one in runtime.gateway.requests[-1]["messages"][1:]] == ["next"]
    assert "state" not in runtime.gateway.checkpoints[-1] or runtime.gateway.checkpoints[-1]["state"] == {}


async def test_a_checkpoint_that_never_gets_through_is_not_durable(runtime: Driver, monkeypatch):
    monkeypatch.setattr("amplifier_api_server.runtime.checkpoint.deliver.__kwdefaults__", {"within_seconds": 0.3})
    await runtime.open()
    runtime.gateway.checkpoint_answers.extend([None] * 50)
    result = await runtime.ask()
    assert (result["status"], result["problem"]["code"]) == ("failed", "not_durable")
    assert "could not be reached" in result["problem"]["detail"]


async def test_a_gateway_that_is_away_for_a_moment_costs_no_turn(runtime: Driver):
    await runtime.open()
    await runtime.gateway.stop()
    runtime.gateway.path.unlink()
    turn = asyncio.create_task(runtime.ask())
    await asyncio.sleep(0.1)
    await runtime.gateway.start()
    assert (await turn)["status"] == "completed"


async def test_a_gateway_that_is_gone_fails_the_turn_by_name(runtime: Driver, monkeypatch):
    monkeypatch.setattr("amplifier_api_server.runtime.checkpoint.deliver.__kwdefaults__", {"within_seconds": 0.1})
    monkeypatch.setattr("amplifier_api_server.runtime.dialects.exchange.DIAL_DELAYS_SECONDS", (0.01,))
    await runtime.open()
    await runtime.gateway.stop()
    runtime.gateway.path.unlink()
    result = await runtime.ask()
    assert result["problem"]["code"] == "not_durable"
    await runtime.gateway.start()
    assert (await runtime.ask())["status"] == "completed"


async def test_a_gateway_without_a_place_is_asked_again_a_few_times(runtime: Driver, monkeypatch):
    monkeypatch.setattr("amplifier_api_server.runtime.dialects.exchange.BUSY_DELAYS_SECONDS", (0.01, 0.01))
    await runtime.open()
    busy = answers(503, {"code": "busy", "detail": "no place"})
    runtime.gateway.scripts.extend([busy, busy, says("here")])
    assert (await runtime.ask())["status"] == "completed"
    runtime.gateway.scripts.extend([busy] * 3)
    result = await runtime.ask()
    assert result["problem"]["code"] == "busy"
