"""The GraphQL doors of one process, made together: they share the documents that were read, and what is open."""

from __future__ import annotations

from dataclasses import dataclass

from amplifier_api_server.control_plane.graphql.door import GraphqlDoor
from amplifier_api_server.control_plane.graphql.engine import Engine
from amplifier_api_server.control_plane.graphql.open_operations import OpenOperations
from amplifier_api_server.control_plane.graphql.transport_ws import GraphqlSockets
from amplifier_api_server.control_plane.services import Services


@dataclass(frozen=True, slots=True)
class GraphqlDoors:
    """By HTTP and by WebSocket."""

    http: GraphqlDoor
    socket: GraphqlSockets
    is_open: OpenOperations


def graphql_doors(services: Services) -> GraphqlDoors:
    """For the route table, and for the edge."""
    is_open = OpenOperations(services.settings.graphql.max_subscriptions_per_credential)
    http = GraphqlDoor(services, Engine(services.settings, services.fair_queue), is_open)
    return GraphqlDoors(http, GraphqlSockets(services, http, is_open), is_open)
