"""The settings of the GraphQL door: what one document may cost, and what is shown to whoever looks around."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from amplifier_api_server.control_plane.sections import Duration, Section, Size


class Graphql(Section):
    introspection: bool = True  # the schema can be asked for, and errors suggest names
    graphiql: bool = True  # a browser that opens /graphql gets a page to try documents in
    max_depth: int = Field(16, ge=3)  # of fields within fields
    max_aliases: int = Field(50, ge=0)
    max_tokens: int = Field(2000, ge=100)  # words, numbers and signs of a document
    max_cost: int = Field(25_000, ge=100)  # fields, each as often as the pages that it is in are long
    timeout: Duration = timedelta(seconds=60)  # of a root field that does not wait for work in a sandbox
    max_transcripts: Size = 16 * 1024**2  # messages and executions that one field reads of all sessions
    max_subscriptions: int = Field(100, ge=1)  # operations at once on one socket
    max_subscriptions_per_credential: int = Field(1000, ge=1)  # sockets and streams, and the operations on them
