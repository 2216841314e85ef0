"""What a document may cost is known before anything of it is done."""

import time

import pytest

from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.graphql.engine import Asked, Engine, Unusable
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import DomainError, Invalid
from tests.hostile_runtime import attacked


def engine(**limits):
    return Engine(Settings.model_validate({"graphql": limits}), FairQueue())


def prepare(query, variables=None, **limits):
    return engine(**limits).prepared(Asked(query, variables or {}))


def refused(query, variables=None, **limits) -> str:
    with pytest.raises((Invalid, Unusable)) as caught:
        prepare(query, variables, **limits)
    error = caught.value
    return error.detail if isinstance(error, DomainError) else error.errors[0].message


def test_depth_is_bounded_through_fragments_too():
    query = "{ sessionsConnection { nodes { ...f } } } fragment f on Session { executions { nodes { usage { totalTokens } } } }"
    prepare(query, max_depth=6)
    assert "deeper than 5" in refused(query, max_depth=5)


def test_a_fragment_that_holds_itself_ends():
    assert "nested deeper" in refused("{ me { ...f } } fragment f on Me { tenant { ...f } }")
    assert "costs more" in refused(
        "{ sessions { ...f } } fragment f on Session { executions { nodes { session: usage { ...f } } } }"
    )


def test_aliases_are_bounded():
    prepare("{ a: me { role } b: me { role } }", max_aliases=2)
    assert "more than 1 aliases" in refused("{ a: me { role } b: me { role } }", max_aliases=1)


def test_tokens_are_bounded():
    assert "more than 100 tokens" in refused("{" + "me { role } " * 60 + "}", max_tokens=100)


def test_pages_multiply():
    query = "query($n: Int = 200) { sessionsConnection(first: $n) { nodes { messagesConnection(first: 200) { nodes { role } } } } }"
    assert "costs more" in refused(query)
    prepare(query, {"n": 10})
    assert "costs more" in refused(query, {"n": 10**9}), "a page is never longer than the longest"


def test_everything_that_was_published_first_at_once_may_be_asked():
    prepare(
        """query { sessions { id profile status messages { role content } createdAt }
                   profiles { name source } collections { name } tools { name } }"""
    )


HOSTILE = {
    "fragments that spread one another twice each": "{ ...f0 } "
    + " ".join(f"fragment f{i} on Query {{ ...f{i + 1} ...f{i + 1} }}" for i in range(90))
    + " fragment f90 on Query { me { role } }",
    "fragments within aliases": "{ sessions { ...f0 } } "
    + " ".join(
        f"fragment f{i} on Session {{ x: usage {{ ...f{i + 1} }} y: usage {{ ...f{i + 1} }} }}" for i in range(60)
    )
    + " fragment f60 on Session { id }",
    "one field over and over": "{ " + "me { role } " * 450 + "}",
    "one field over and over, in fragments": "{ " + "... { me { role } } " * 240 + "}",
    "many fragments in one place": "{ "
    + " ".join(f"...f{i}" for i in range(120))
    + " }"
    + " ".join(f"fragment f{i} on Query {{ me {{ role }} }}" for i in range(120)),
    "nesting": "{" + "a{" * 900 + "b" + "}" * 901,
    "nested values": "{ exportSession(sessionId: " + "[" * 900 + "]" * 900 + ") }",
    "many characters": "{ me { role } } #" + "x" * 70_000,
    "a long text": '{ profile(name: """' + "\\n" * 40_000 + '""") { name } }',
    "one fragment in many operations": " ".join(f"query q{i} {{ ...f }}" for i in range(250))
    + f" fragment f on Query {{ {'me { role } limits { tier } ' * 20} }}",
    "unused fragments": "{ me { role } } "
    + " ".join(f"fragment f{i} on Query {{ {'me { role } ' * 9} }}" for i in range(40)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_document_that_would_take_long_is_refused_soon(name):
    spent = time.process_time()
    assert refused(HOSTILE[name])
    assert time.process_time() - spent < 1.0


def test_introspection_can_be_switched_off_with_all_that_it_would_tell():
    prepare("{ __schema { types { name } } }")
    assert "introspection" in refused("{ __schema { types { name } } }", introspection=False).lower()
    assert "Did you mean" in refused("{ sesions { id } }")
    assert "Did you mean" not in refused("{ sesions { id } }", introspection=False)


async def test_whoever_is_at_its_limit_may_ask_what_its_limits_are(tmp_path):
    async with attacked(tmp_path) as plane:
        async with plane.client(plane.operator_key) as operator:
            limits = {"requests_per_minute": 2}
            made = await operator.post("/v1/tenants", json={"name": "small", "limits": limits})
        async with plane.client(made.json()["admin_key"]) as client:

            async def codes(query):
                answer = await client.post("/graphql", json={"query": query})
                if answer.headers["content-type"] == "application/problem+json":
                    return [answer.json()["code"]]
                return [one["extensions"]["code"] for one in answer.json().get("errors", [])]

            assert await codes("{ a: sessions { id } b: sessions { id } }") == []
            assert await codes("{ sessions { id } }") == ["rate_limited"]
            assert await codes("{ limits { lastRefusal { limit } } me { role } }") == []
            assert await codes("{ nothing }") == ["rate_limited"]
            assert await codes("{ __typename }") == ["rate_limited"]
            assert await codes("{ me { role } } #" + "x" * 3000) == ["rate_limited"]


async def test_what_is_too_much_to_read_is_not_read(tmp_path):
    async with attacked(tmp_path, graphql={"max_transcripts": 100}) as plane, plane.client() as client:
        session = await plane.session()

        async def speaks(request):
            messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x" * 500}]
            answer = await request.runtime.hand_over(request, response="done", messages=messages)
            await request.reply(200, answer.json()["result"])

        plane.fleet.answers["POST", "turn"] = speaks
        assert (await plane.execute(session)).status_code == 200
        answer = await client.post("/graphql", json={"query": "{ sessions { messages { role } } }"})
        assert [one["extensions"]["code"] for one in answer.json()["errors"]] == ["too_large"]
        answer = await client.post(
            "/graphql", json={"query": "{ sessions { messagesConnection(first: 1) { nodes { text } } } }"}
        )
        assert answer.json()["errors"][0]["extensions"]["code"] == "too_large"


async def spoken(plane, pairs):
    """A session with so many tiny messages of both sides."""
    session = await plane.session()

    async def speaks(request):
        messages = [{"role": role, "content": "x"} for role in ("user", "assistant")] * pairs
        answer = await request.runtime.hand_over(request, response="done", messages=messages)
        await request.reply(200, answer.json()["result"])

    plane.fleet.answers["POST", "turn"] = speaks
    assert (await plane.execute(session)).status_code == 200
    return session


async def test_lists_that_turn_out_to_be_long_cost_what_they_are_long(tmp_path):
    """A transcript of a thousand tiny messages is few bytes, and thousands of fields on everybody's event loop."""
    async with attacked(tmp_path, graphql={"max_cost": 1000}) as plane, plane.client() as client:
        asking = '{ session(id: "%s") { messages { %s } } }'
        session = await spoken(plane, 150)
        answer = await client.post("/graphql", json={"query": asking % (session, "text role seq")})
        assert len(answer.json()["data"]["session"]["messages"]) == 300
        answer = await client.post("/graphql", json={"query": asking % (session, "text role seq body")})
        assert [one["extensions"]["code"] for one in answer.json()["errors"]] == ["document_too_complex"]


async def test_many_small_messages_are_too_much_to_read_too(tmp_path):
    async with attacked(tmp_path, graphql={"max_transcripts": 64 * 1024}) as plane, plane.client() as client:
        await spoken(plane, 50)
        answer = await client.post("/graphql", json={"query": "{ sessions { messages { role } } }"})
        assert [one["extensions"]["code"] for one in answer.json()["errors"]] == ["too_large"]


def test_a_pages_length_may_be_written_as_a_float():
    query = "query($n: Int) { sessionsConnection(first: $n) { nodes { messagesConnection(first: $n) { nodes { role seq } } } } }"
    prepare(query, {"n": 50})
    assert "costs more" in refused(query, {"n": 200.0})
