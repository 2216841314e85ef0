"""The schema: every type and root field together. What is bound to no operation stops the start."""

from __future__ import annotations

from typing import Final

import strawberry
from graphql import GraphQLObjectType, GraphQLSchema
from strawberry.schema.config import StrawberryConfig

from amplifier_api_server.control_plane.graphql.fields import operation_of
from amplifier_api_server.control_plane.graphql.nodes import NodeQueries
from amplifier_api_server.control_plane.graphql.scalars import SCALARS
from amplifier_api_server.control_plane.graphql.subscriptions import Subscription
from amplifier_api_server.control_plane.graphql.tenant_mutations import TenantMutations
from amplifier_api_server.control_plane.graphql.tenant_queries import TenantQueries
from amplifier_api_server.control_plane.graphql.work_mutations import WorkMutations
from amplifier_api_server.control_plane.graphql.work_queries import WorkQueries
from amplifier_api_server.control_plane.operations import Operation

_DEFINITION: Final = "strawberry-definition"


@strawberry.type(description="What can be asked.")
class Query(WorkQueries, TenantQueries, NodeQueries):
    pass


@strawberry.type(description="What can be done.")
class Mutation(WorkMutations, TenantMutations):
    pass


SCHEMA: Final = strawberry.Schema(
    Query, Mutation, Subscription, config=StrawberryConfig(scalar_map=SCALARS, relay_max_results=1000)
)
# Documents are carried out by graphql-core itself (`engine`), on what strawberry made of the types.
CORE: Final[GraphQLSchema] = SCHEMA._schema  # noqa: SLF001


def bound() -> dict[tuple[str, str], Operation]:
    """(type, field) of every root field, and the operation that it asks for. Raises KeyError for one that has none."""
    found = {}
    for kind in (CORE.query_type, CORE.mutation_type, CORE.subscription_type):
        assert isinstance(kind, GraphQLObjectType)
        for name, field in kind.fields.items():
            found[kind.name, name] = operation_of(field.extensions[_DEFINITION].metadata)
    return found


BOUND: Final = bound()
