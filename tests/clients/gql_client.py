"""gql by HTTP and by WebSocket, with the schema fetched. Prints one line of JSON."""

import asyncio
import json
import os

from gql import Client, gql
from gql.transport.httpx import HTTPXAsyncTransport
from gql.transport.websockets import WebsocketsTransport

API, KEY = os.environ["API"], os.environ["KEY"]
HEADERS = {"X-API-Key": KEY}
CREATE = 'mutation { createSession(profile: "foundation:base") { id } }'
START = 'mutation($s: ID!) { startExecution(sessionId: $s, prompt: "stream 5") { requestId } }'
FOLLOW = "subscription($s: ID!, $r: ID!) { executionStream(sessionId: $s, requestId: $r) { type } }"


def asked(text: str, **variables: str):
    document = gql(text)
    document.variable_values = variables
    return document


async def main() -> None:
    http = HTTPXAsyncTransport(url=f"{API}/graphql", headers=HEADERS, timeout=30)
    async with Client(transport=http, fetch_schema_from_transport=True) as client:
        session = (await client.execute(asked(CREATE)))["createSession"]["id"]
        request = (await client.execute(asked(START, s=session)))["startExecution"]["requestId"]
    socket = WebsocketsTransport(url=f"{API}/graphql".replace("http", "ws"), init_payload={"token": KEY})
    async with Client(transport=socket, fetch_schema_from_transport=True) as client:
        told = [
            one["executionStream"]["type"].lower()
            async for one in client.subscribe(asked(FOLLOW, s=session, r=request))
        ]
    print(json.dumps({"events": sorted(set(told), reverse=True)}))


asyncio.run(main())
