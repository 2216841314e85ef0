"""What /metrics tells of providers: how long calls took, when the first token came, what failed. Labels are few."""

from __future__ import annotations

from .conftest import ask, streamed, told
from .scripted_upstream import DONE, answering, delta, usage_chunk
from .spoken import Chat


def count(house, name: str, **labels: str) -> float:
    return house.telemetry.registry.get_sample_value(f"amplifier_model_{name}", labels) or 0.0


async def test_a_stream_has_a_duration_and_a_first_token(house, upstream):
    upstream.script = answering(delta("a"), delta("b", "stop"), usage_chunk(5, 2), DONE)
    client = await house.runtime()
    await house.turn()
    await streamed(client)
    assert count(house, "call_duration_seconds_count", provider="up", outcome="ok") == 1
    assert count(house, "first_token_seconds_count", provider="up") == 1
    whole = count(house, "call_duration_seconds_sum", provider="up", outcome="ok")
    assert 0 < count(house, "first_token_seconds_sum", provider="up") <= whole


async def test_failures_are_counted_by_provider_and_status_each_attempt_for_itself(build, upstream):
    statuses = iter([500, 599])

    async def script(peer):
        await peer.whole(next(statuses), b"{}")

    upstream.script = script
    house = await build()
    client = await house.runtime()
    await house.turn()
    for _ in range(2):
        await told(client, Chat.path, ask())
    assert count(house, "errors_total", provider="up", status="500") == 1
    assert count(house, "errors_total", provider="up", status="other") == 1
    assert count(house, "call_duration_seconds_count", provider="up", outcome="failed") == 2
    assert count(house, "first_token_seconds_count", provider="up") == 0


async def test_what_was_refused_for_the_budget_is_no_call(house, upstream):
    client = await house.runtime()
    await house.turn(limit=3)
    await told(client, Chat.path, ask())
    assert b'outcome="' not in house.telemetry.exposition()
