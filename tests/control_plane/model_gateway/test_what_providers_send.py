"""What the gateway makes of what providers really send: each row of the table of cases, through a whole gateway.

The runtime's reader reads what the gateway passed on, and finds the same answer.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from dataclasses import dataclass, replace
from datetime import timedelta

import httpx2
import pytest
from amplifier_core import LLMError

from amplifier_api_server.control_plane.model_gateway import attempt
from amplifier_api_server.control_plane.model_gateway.dialects import CHAT, MESSAGES, RESPONSES
from amplifier_api_server.control_plane.model_gateway.sse import EventSplitter, data_of
from tests.dialect_cases import CASES, named
from tests.dialect_cases.case import Case
from tests.dialect_cases.reading import is_as_expected

from .conftest import House, ask, naming, told
from .scripted_upstream import ScriptedUpstream
from .spoken import ALL, Told

SPOKEN = {one.name: one for one in ALL}
READERS = {one.name: one.reader for one in (CHAT, MESSAGES, RESPONSES)}
STREAM, JSON = "text/event-stream", "application/json"


@dataclass
class Gateway:
    """A gateway that tries once more at once, and its provider, which is told what to send."""

    house: House
    upstream: ScriptedUpstream
    client: httpx2.AsyncClient
    turns: int = 0

    async def passes(self, case: Case, *headers: str, label: str, chunk_bytes: int = 10**6) -> tuple[Told, list]:
        """What the sandbox got, and what was counted."""

        async def script(peer):
            await peer.stream("\r\n".join([label, *headers]))
            for at in range(0, len(case.sent), chunk_bytes):
                await peer.chunk(case.sent[at : at + chunk_bytes])
            await peer.end()

        self.upstream.script = script
        self.upstream.asked.clear()
        self.turns += 1
        turn_id, spoken = f"req_{self.turns}", SPOKEN[case.dialect]
        await self.house.turn(turn_id)
        got = await told(self.client, spoken.path, spoken.ask(stream=case.is_stream), turn_id)
        return got, await self.house.turns.finish(turn_id, abort=False)


@pytest.fixture
async def gateway(build, upstream, spoken) -> Gateway:
    dialect = {"dialect": spoken.dialect}
    house = await build(provider=dialect, retries=1, retry_max_delay=timedelta(0), breaker_failures=100)
    return Gateway(house, upstream, await house.runtime())


def is_passed_on(case: Case, got) -> None:
    """The sandbox got the answer, or the provider's own words why there is none, or ours."""
    if case.fails == "" and not case.is_error:
        if got.status == 200:  # it had begun
            assert case.tries == 1
            is_as_expected(replace(case, fails="provider_unavailable"), [got.body])
        else:
            assert (got.status, got.json["code"]) == (502, "provider_unavailable")
        return
    assert got.status == 200
    assert got.headers["content-type"].startswith(STREAM if case.is_stream else JSON)
    passed = case.sent.rstrip(b"\r\n")
    assert got.body.startswith(passed) or passed.startswith(got.body.rstrip(b"\r\n"))  # nothing passes after the end
    is_as_expected(case, [got.body])


def is_counted(case: Case, usages) -> None:
    if case.usage:
        counts = {"cache_read_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 0, **case.usage}
        for usage in usages:
            assert (usage.prompt_tokens, usage.completion_tokens) == (counts["input_tokens"], counts["output_tokens"])
            assert (usage.cached_tokens, usage.reasoning_tokens) == (
                counts["cache_read_tokens"],
                counts["reasoning_tokens"],
            )
            assert not usage.estimated
        assert usages
    elif case.fails == "" and not case.is_error and case.tries > 1:
        assert usages == []  # it was no answer: nobody pays for it
    elif case.fails is None:
        assert [usage.estimated for usage in usages] == [True]


async def test_what_a_provider_sends_passes_and_is_counted(gateway, spoken):
    wrong = {}
    for case in [one for one in CASES if one.dialect == spoken.name]:
        got, usages = await gateway.passes(case, label=STREAM if case.is_stream else JSON)
        try:
            is_passed_on(case, got)
            is_counted(case, usages)
            assert len(gateway.upstream.asked) == case.tries
        except (AssertionError, LLMError, ValueError) as error:
            wrong[case.name] = error
    assert wrong == {}


@pytest.mark.parametrize("case", CASES, ids=named)
def test_all_that_is_said_counts_and_a_cut_at_the_bound_is_seen(case: Case):
    reader = READERS[case.dialect](is_running_count=False)
    splitter = EventSplitter(10**6)
    for event in [*splitter.feed(case.sent), splitter.rest()] if case.is_stream else []:
        reader.read(data_of(event))
    if not case.is_stream:
        reader.read(case.sent)
    assert reader.said_bytes >= len(case.text.encode())
    assert reader.completion_tokens >= bool(case.text or case.calls)
    assert reader.is_length == (case.finish == "length" or case.fails == "answer_cut_off")
    assert reader.failed == case.is_error


def short(spoken, sent: bytes | None = None, **more) -> Case:
    """A short answer, as a stream unless something else is sent."""
    sent = b"".join(spoken.stream(["a", "b"])) if sent is None else sent
    return Case("", spoken.name, sent, text="ab", usage={"input_tokens": 11, "output_tokens": 2}, **more)


@pytest.mark.parametrize(
    ("label", "begin"),
    [(JSON, b""), ("text/plain", b": hi\n\n"), ("", b"\xef\xbb\xbf"), ("application/octet-stream", b"\n")],
)
async def test_events_are_events_whatever_they_are_labelled_as(gateway, spoken, label, begin):
    case = short(spoken)
    case = replace(case, sent=begin + case.sent)
    got, usages = await gateway.passes(case, label=label, chunk_bytes=3)
    is_passed_on(case, got)
    is_counted(case, usages)
    assert len(gateway.upstream.asked) == 1


async def test_an_answer_in_one_piece_is_one_though_it_is_labelled_as_events(gateway, spoken):
    got, usages = await gateway.passes(case := short(spoken, spoken.whole("ab")), label=STREAM, chunk_bytes=7)
    assert got.headers["content-type"] == JSON
    is_as_expected(replace(case, is_stream=False), [got.body])
    is_counted(case, usages)


def gzipped(data: bytes) -> bytes:
    """As two members, one after the other."""
    return gzip.compress(data[:50]) + gzip.compress(data[50:])


def raw_deflated(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush()


@pytest.mark.parametrize(
    ("coding", "packed"),
    [("gzip", gzipped), ("X-GZIP, identity", gzipped), ("deflate", zlib.compress), ("deflate", raw_deflated)],
)
async def test_an_answer_that_is_compressed_unasked_is_read_all_the_same(gateway, spoken, coding, packed):
    for case, label in (short(spoken), STREAM), (short(spoken, spoken.whole("ab"), is_stream=False), JSON):
        sent = replace(case, sent=packed(case.sent))
        got, usages = await gateway.passes(sent, f"Content-Encoding: {coding}", label=label, chunk_bytes=9)
        is_passed_on(case, got)
        is_counted(case, usages)
        assert "content-encoding" not in got.headers


@pytest.mark.parametrize(("coding", "tries"), [("br", 1), ("gzip, gzip", 1), ("gzip", 2)])
async def test_what_can_not_be_unpacked_is_one_clear_error_and_is_not_asked_for_in_vain(gateway, spoken, coding, tries):
    got, usages = await gateway.passes(short(spoken), f"Content-Encoding: {coding}", label=STREAM)
    assert (got.status, got.json["code"], usages) == (502, "provider_unavailable", [])
    assert len(gateway.upstream.asked) == tries
    assert tries > 1 or f"compressed ({coding})" in got.json["detail"]


async def test_a_small_body_that_is_huge_unpacked_is_cut(build, upstream):
    house = await build(max_response=1_000_000, retries=0)
    gateway = Gateway(house, upstream, await house.runtime())
    case = Case("", "chat", gzip.compress(b'{"x":"' + b"x" * 20_000_000), is_stream=False)
    got, _ = await gateway.passes(case, "Content-Encoding: gzip", label=JSON)
    assert (got.status, "larger than allowed" in got.json["detail"]) == (502, True)


async def test_an_error_in_a_list_passes_as_the_error(gateway, spoken):
    async def script(peer):
        await peer.whole(400, b'[{"error": {"code": 400, "message": "no such model", "status": "INVALID_ARGUMENT"}}]')

    gateway.upstream.script = script
    await gateway.house.turn()
    got = await told(gateway.client, spoken.path, spoken.ask(stream=True))
    assert (got.status, got.json["error"]["message"]) == (400, "no such model")


async def test_what_says_nothing_passes_after_a_while_and_is_not_asked_again_then(build, upstream, monkeypatch):
    async def script(peer):
        await peer.stream()
        await peer.chunk(b": waiting\n\n")
        await seen.wait()
        await peer.chunk(b"data: [DONE]\n\n")
        await peer.end()

    seen, upstream.script = asyncio.Event(), script
    monkeypatch.setattr(attempt, "_LONGEST_WAIT_SECONDS", 0)
    house = await build(retries=1)
    client = await house.runtime()
    await house.turn()
    async with client.stream("POST", SPOKEN["chat"].path, json=ask(stream=True), headers=naming()) as answer:
        parts = answer.aiter_raw()
        assert await anext(parts) == b": waiting\n\n"
        seen.set()
        assert b"provider_unavailable" in b"".join([part async for part in parts])
    assert len(upstream.asked) == 1
