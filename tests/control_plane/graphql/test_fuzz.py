"""Documents that nobody would write: whatever is asked, the answer is GraphQL's, and nothing of ours fails."""

import asyncio
import contextlib

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_graphql import from_schema, nodes

from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.graphql.context import Context
from amplifier_api_server.control_plane.graphql.engine import Asked, Engine, Unusable
from amplifier_api_server.control_plane.graphql.requests import of_members
from amplifier_api_server.control_plane.graphql.schema import SCHEMA
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import DomainError, Invalid
from tests.hostile_runtime import attacked


def scalars():
    text = st.text(max_size=20)
    return {
        "JSON": text.map(nodes.String),
        "BigInt": st.integers().map(nodes.Int),
        "DateTime": st.just(nodes.String("2026-01-31T10:30:00Z")),
        "Date": st.just(nodes.String("2026-01-31")),
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with attacked(tmp_path_factory.mktemp("fuzz"), graphql={"timeout": "5s"}) as one:
        yield one


async def answer(plane, document):
    services = plane.app.services
    who = await services.authenticator.authenticate([(b"x-api-key", plane.key.encode())])
    engine, asked = Engine(services.settings, FairQueue()), Asked(document)
    try:
        prepared = engine.prepared(asked)
    except (Unusable, Invalid):
        return []
    codes = []
    async with asyncio.timeout(60):
        async for payload in engine.stream(prepared, asked, Context(services, who)):
            codes += [one["extensions"]["code"] for one in payload.get("errors", [])]
    return codes


@pytest.mark.asyncio(loop_scope="module")
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(document=from_schema(SCHEMA.as_str(), custom_scalars=scalars(), allow_x00=True))
async def test_documents_that_fit_the_schema_fail_only_in_ways_that_are_foreseen(plane, document):
    assert "internal" not in await answer(plane, document)


@given(text=st.text(alphabet='{}()[]!:$@"\\#.,abq1 \n\x00é', max_size=60))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_text_is_a_document_or_is_refused(text):
    engine = Engine(Settings(), FairQueue())
    with contextlib.suppress(Unusable, Invalid):
        engine.prepared(Asked(text))


@given(
    found=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda one: (
            st.lists(one) | st.dictionaries(st.sampled_from(["query", "variables", "operationName", "extensions"]), one)
        ),
    )
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_json_is_a_request_or_is_refused(found):
    with contextlib.suppress(DomainError):
        of_members(found)
