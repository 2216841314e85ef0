"""A large document is carried out a little in each turn of the event loop: fields are counted, nothing is timed."""

import asyncio
import itertools

import pytest
from graphql import get_introspection_query

from amplifier_api_server.control_plane.fair_queue import TURN_SECONDS
from amplifier_api_server.control_plane.graphql.execution import FIELDS_AT_ONCE, ExecutionInTurns
from tests.control_plane.graphql.test_batching import filled

_WIDTH = 150  # of one item of a list, which is completed with what is in it


@pytest.fixture
def each_turn(monkeypatch, door):
    """How many fields each turn of the loop has completed, those of all documents together."""
    counts, execute_fields, late = [0], ExecutionInTurns.execute_fields, itertools.count(0, 3600)
    queue = door.plane.app.services.fair_queue
    # So many fields take the time of one turn, and so much time passes in between that nobody had their share.
    queue._worked = lambda: sum(counts) * TURN_SECONDS / FIELDS_AT_ONCE
    queue._now = queue._all._now = lambda: next(late)

    def counted(self, parent_type, source_value, path, grouped_field_set, position):
        if counts[-1] == 0:
            asyncio.get_running_loop().call_soon(counts.append, 0)
        counts[-1] += len(grouped_field_set)
        return execute_fields(self, parent_type, source_value, path, grouped_field_set, position)

    monkeypatch.setattr(ExecutionInTurns, "execute_fields", counted)
    return counts


async def test_introspection_takes_many_turns(door, each_turn):
    await door.ask(get_introspection_query())
    assert sum(each_turn) > 8 * FIELDS_AT_ONCE
    assert max(each_turn) <= FIELDS_AT_ONCE + _WIDTH


async def test_documents_of_one_caller_take_no_more_of_a_turn_together(door, each_turn):
    await asyncio.gather(*(door.ask(get_introspection_query()) for _ in range(5)))
    assert sum(each_turn) > 40 * FIELDS_AT_ONCE
    assert max(each_turn) <= 2 * FIELDS_AT_ONCE + _WIDTH, "a document's begin may come in the turn of another one's end"


async def test_long_lists_of_sessions_take_many_turns(door, each_turn):
    await filled(door, 100)
    said = await door.ask(
        """{ sessions { id profile status createdAt lastActiveAt
             messages { role text body seq createdAt } executions(first: 20) { nodes { requestId status startedAt } } } }"""
    )
    assert len(said["sessions"]) == 100
    assert all(len(one["messages"]) == 3 and len(one["executions"]["nodes"]) == 2 for one in said["sessions"])
    assert sum(each_turn) > 2 * FIELDS_AT_ONCE
    assert max(each_turn) <= FIELDS_AT_ONCE + _WIDTH
