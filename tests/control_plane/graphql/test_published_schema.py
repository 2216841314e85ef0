"""The schema that was published first is in ours, with the same types to the letter."""

from pathlib import Path

import pytest
from graphql import (
    FieldDefinitionNode,
    GraphQLScalarType,
    InputValueDefinitionNode,
    ObjectTypeDefinitionNode,
    parse,
    print_ast,
)

from amplifier_api_server.control_plane.graphql.schema import CORE

PUBLISHED = [
    one
    for one in parse(Path(__file__).with_name("published.graphql").read_text()).definitions
    if isinstance(one, ObjectTypeDefinitionNode)
]
FIELDS = [(kind.name.value, field) for kind in PUBLISHED for field in kind.fields or ()]


def test_there_are_all_of_them():
    assert [one.name.value for one in PUBLISHED] == [
        "Query",
        "Mutation",
        "Subscription",
        "Session",
        "ExecutionResult",
        "StreamEvent",
    ]
    assert len(FIELDS) == 23


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=[f"{kind}.{field.name.value}" for kind, field in FIELDS])
def test_a_field_is_as_it_was_published(kind: str, field: FieldDefinitionNode):
    ours = CORE.type_map[kind].fields[field.name.value]
    assert str(ours.type) == print_ast(field.type)
    for argument in field.arguments or ():
        assert isinstance(argument, InputValueDefinitionNode)
        assert str(ours.args[argument.name.value].type) == print_ast(argument.type)
    more = ours.args.keys() - {one.name.value for one in field.arguments or ()}
    assert not [name for name in more if str(ours.args[name].type).endswith("!")], "what is new can be left out"


@pytest.mark.parametrize("name", ["JSON", "DateTime"])
def test_a_scalar_has_its_name(name):
    assert isinstance(CORE.type_map[name], GraphQLScalarType)


async def test_a_document_that_was_written_against_it_runs(door):
    said = await door.ask(
        """
        query Everything {
          sessions { id profile status messages { role content } createdAt }
          profiles { name source }
          collections { name }
          tools { name }
        }
        """
    )
    assert said["sessions"] == []
    made = await door.ask(
        """
        mutation Begin($profile: String!, $context: JSON) {
          createSession(profile: $profile, context: $context) { id profile status messages { role } createdAt }
        }
        """,
        profile="foundation:base",
        context={"project": "my-project"},
    )
    session = made["createSession"]
    assert (session["profile"], session["status"], session["messages"]) == ("foundation:base", "ACTIVE", [])
    done = await door.ask(
        """
        mutation Work($id: ID!) {
          execute(sessionId: $id, prompt: "Explain the flow") {
            requestId response usage { promptTokens completionTokens totalTokens } toolCalls { tool }
          }
          closeSession(sessionId: $id)
        }
        """,
        id=session["id"],
    )
    assert done["execute"]["response"] == "done"
    assert done["closeSession"] is True
    assert (await door.ask("query($id: ID!) { session(id: $id) { status } }", id=session["id"])) == {
        "session": {"status": "CLOSED"}
    }
