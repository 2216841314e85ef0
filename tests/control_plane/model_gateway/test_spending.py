"""A day's budget under attack: whatever a sandbox asks for, and however, what providers bill stays within it.

The provider here bills as a vendor does: the prompt by its bytes, and an answer as long as it was allowed to be, wanted or
not, whether anybody reads it to the end or not.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from amplifier_api_server.control_plane.limits.backend import Budget

from .conftest import naming, told
from .scripted_upstream import ScriptedUpstream, event
from .spoken import Chat

LIMIT = 10_000
BOUNDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


class Biller:
    """Answers as long as it may: `wants` tokens where nothing bounds it, or always where it `ignores` bounds."""

    def __init__(
        self, upstream: ScriptedUpstream, spoken: Chat, *, wants=50_000, ignores=False, says=lambda count: count
    ):
        self.spoken, self.wants, self.ignores, self.says = spoken, wants, ignores, says
        self.billed: list[int] = []
        self.in_flight = self.most_in_flight = 0
        upstream.script = self.answer

    async def answer(self, peer):
        body = peer.asked.json
        bound = min((body[name] for name in BOUNDS if body.get(name)), default=self.wants)
        each = self.wants if self.ignores else min(bound, self.wants)
        prompt = len(json.dumps(body.get("input") or body["messages"])) // 4
        completion = each * body.get("n", 1)
        self.billed.append(prompt + completion)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)  # others come meanwhile
        try:
            if body.get("stream"):
                await peer.stream()
                chunks = self.spoken.stream(["aaaa"] * completion, self.says(prompt), self.says(completion))
                await peer.chunk(b"".join(chunks))
                await peer.end()
            else:
                await peer.whole(200, self.spoken.whole("aaaa" * completion, self.says(prompt), self.says(completion)))
        finally:
            self.in_flight -= 1

    @property
    def total(self) -> int:
        return sum(self.billed)


async def spent(house) -> int:
    return sum(usage.total_tokens for usage in await house.turns.finish("req_1", abort=False))


ATTACKS = {
    "no bound": {},
    "bound": {"max_tokens": 9000},
    "large bound": {"max_tokens": 10**9},
    "streams": {"stream": True, "max_tokens": 50_000},
    "large prompts": {"text": "word " * 1000, "max_tokens": 9000},
}


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
async def test_sixteen_calls_at_once_do_not_pass_the_budget(spoken_house, upstream, spoken, attack):
    biller = Biller(upstream, spoken)
    house = await spoken_house()
    client = await house.runtime()
    await house.turn(limit=LIMIT)
    asked = dict(ATTACKS[attack])
    if spoken.name == "responses" and "max_tokens" in asked:
        asked["max_output_tokens"] = asked.pop("max_tokens")
    got = await asyncio.gather(*(told(client, spoken.path, spoken.ask(**asked)) for _ in range(16)))
    assert 0 < biller.total <= LIMIT
    assert {one.status for one in got} == {200, 402}
    assert await spent(house) <= LIMIT


async def test_calls_one_after_the_other_use_the_budget_up_and_no_more(spoken_house, upstream, spoken):
    biller = Biller(upstream, spoken, wants=1500)
    house = await spoken_house()
    client = await house.runtime()
    await house.turn(limit=LIMIT)
    statuses = [(await told(client, spoken.path, spoken.ask())).status for _ in range(16)]
    assert statuses[0] == 200
    assert statuses[-1] == 402
    assert LIMIT - 100 <= biller.total <= LIMIT


@pytest.mark.parametrize("asked", [{"n": 8}, {"n": 8, "max_tokens": 9000}, {"n": 128, "max_completion_tokens": 9000}])
async def test_choices_multiply_what_is_reserved(build, upstream, asked):
    biller = Biller(upstream, Chat())
    house = await build()
    client = await house.runtime()
    await house.turn(limit=LIMIT)
    got = await told(client, Chat.path, Chat().ask(**asked))
    assert got.status == 200
    assert biller.total <= LIMIT
    assert upstream.asked[0].json.get("max_tokens", upstream.asked[0].json.get("max_completion_tokens")) <= LIMIT / 8


async def test_turns_of_several_members_and_sandboxes_share_the_day(spoken_house, upstream, spoken):
    biller = Biller(upstream, spoken)
    house = await spoken_house()
    clients = [await house.runtime(f"run_{number}") for number in range(6)]
    for number in range(6):
        await house.turn(f"req_{number}", f"run_{number}", limit=LIMIT)
    asks = (
        told(client, spoken.path, spoken.ask(), f"req_{number}")
        for number, client in enumerate(clients)
        for _ in range(5)
    )
    await asyncio.gather(*asks)
    assert biller.total <= LIMIT
    if spoken.name != "messages":  # there each asks for more than there is
        assert biller.most_in_flight > 1, "they ran side by side while there was room"


async def test_a_call_waits_for_room_that_calls_in_flight_give_back(spoken_house, upstream, spoken):
    """Two calls reserve all there is, and use little: the others are not refused for what is reserved alone."""
    Biller(upstream, spoken, wants=20)
    house = await spoken_house()
    client = await house.runtime()
    await house.turn(limit=LIMIT)
    got = await asyncio.gather(*(told(client, spoken.path, spoken.ask()) for _ in range(12)))
    assert {one.status for one in got} == {200}


async def test_what_a_call_did_not_use_is_free_for_other_turns_at_once(spoken_house, upstream, spoken):
    Biller(upstream, spoken, wants=20)
    house = await spoken_house()
    client = await house.runtime()
    await house.turn(limit=LIMIT)
    await told(client, spoken.path, spoken.ask())
    await house.turn("req_2", limit=LIMIT)
    assert (await told(client, spoken.path, spoken.ask(), "req_2")).status == 200
    standing = await house.limits.standing(Budget("tokens:ten_1", "t", LIMIT, "x", 1, 1, 60))
    assert standing.reserved <= 400


@pytest.mark.parametrize("says", [lambda _: 1, lambda _: "?"], ids=["a low count", "no count"])
@pytest.mark.parametrize("streams", [True, False])
async def test_what_is_not_counted_counts_by_its_length(spoken_house, upstream, spoken, says, streams):
    biller = Biller(upstream, spoken, says=says, wants=3000)
    house = await spoken_house()
    client = await house.runtime()
    await house.turn(limit=10 * LIMIT)
    await told(client, spoken.path, spoken.ask("word " * 2000, stream=streams))
    [usage] = await house.turns.finish("req_1", abort=False)
    assert usage.total_tokens >= biller.total * 0.9
    assert usage.estimated


@pytest.mark.parametrize("streams", [True, False])
async def test_a_provider_that_ignores_bounds_costs_one_call_and_is_not_asked_again(
    spoken_house, upstream, spoken, streams
):
    Biller(upstream, spoken, ignores=True, wants=30_000)
    house = await spoken_house()
    client = await house.runtime()
    await house.turn(limit=LIMIT)
    for _ in range(4):
        got = await told(client, spoken.path, spoken.ask(max_tokens=9000, stream=streams))
    assert got.status == 402
    assert len(upstream.asked) <= 2


@pytest.mark.parametrize(
    "text", [b"data: {oops\n\n", b'data: {"type": "new.kind", "words": "%s"}\n\n', b"data: %s\n\n"]
)
async def test_events_that_nobody_knows_are_cut_at_the_budget(spoken_house, upstream, spoken, text):
    sent = text.replace(b"%s", b"word " * 500).replace(b"oops", b"oops" * 500)

    async def script(peer):
        await peer.stream()
        while True:
            await peer.chunk(sent)
            await asyncio.sleep(0)

    upstream.script = script
    house = await spoken_house()
    client = await house.runtime()
    await house.turn(limit=LIMIT)
    got = await told(client, spoken.path, spoken.ask(stream=True))
    assert len(got.body) <= LIMIT * 5
    assert (await told(client, spoken.path, spoken.ask(stream=True))).status == 402


async def test_an_answer_in_one_piece_that_nobody_waits_for_costs_all_that_was_reserved(spoken_house, upstream, spoken):
    """The provider makes it to its end and bills it: whoever hangs up again and again would pay for prompts alone."""
    asked = asyncio.Event()

    async def script(peer):
        asked.set()
        await peer.hung_up()

    upstream.script = script
    house = await spoken_house()
    client = await house.runtime()
    await house.turn(limit=LIMIT)
    call = asyncio.create_task(client.post(spoken.path, json=spoken.ask(), headers=naming()))
    await asked.wait()
    [usage] = await house.turns.finish("req_1", abort=True)
    await call
    assert usage.total_tokens > 4096
    assert usage.estimated


FILES = {
    "chat": [{"type": "file", "file": {"file_id": "file-1"}}],
    "responses": [{"type": "input_file", "file_url": "https://example.com/1000_pages.pdf"}],
    "messages": [{"type": "document", "source": {"type": "url", "url": "https://example.com/1000_pages.pdf"}}],
}


async def test_a_document_that_is_elsewhere_counts_as_a_whole_window(spoken_house, upstream, spoken):
    Biller(upstream, spoken)
    house = await spoken_house()
    client = await house.runtime()
    await house.turn(limit=150_000)
    asked = spoken.ask()
    asked["input" if spoken.name == "responses" else "messages"] = [{"role": "user", "content": FILES[spoken.name]}]
    got = await told(client, spoken.path, asked)
    assert (got.status, upstream.asked) == (402, [])


async def test_text_does_not_hide_in_what_looks_like_a_picture(build, upstream):
    house = await build()
    client = await house.runtime()
    await house.turn(limit=LIMIT)
    part = {"type": "image_url", "image_url": {"url": "https://example.com/x.png", "alt": "word " * 10_000}}
    got = await client.post(Chat.path, json={"messages": [{"role": "user", "content": [part]}]}, headers=naming())
    assert (got.status_code, upstream.asked) == (402, [])


async def test_an_unseen_thought_is_bounded_too(build, upstream):
    """A reasoning model that streams nothing before it has thought: the bound that it gets was reserved."""
    biller = Biller(upstream, Chat(), wants=100_000)
    house = await build()
    client = await house.runtime()
    await house.turn(limit=LIMIT)
    for _ in range(3):
        await told(client, Chat.path, Chat().ask(stream=True, reasoning_effort="high"))
    assert biller.total <= LIMIT
    assert "max_completion_tokens" in upstream.asked[0].json


async def test_one_whole_answer_in_one_event_counts_as_what_it_is(build, upstream):
    async def script(peer):
        await peer.stream()
        await peer.chunk(event({"choices": [{"index": 0, "delta": {"content": "word " * 20_000}}]}))
        await peer.end()

    upstream.script = script
    house = await build()
    client = await house.runtime()
    await house.turn(limit=LIMIT)
    got = await told(client, Chat.path, Chat().ask(stream=True))
    assert "word" not in got.body.decode()
    assert await spent(house) > LIMIT, "the provider sent it, and bills it"
