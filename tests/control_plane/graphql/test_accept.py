"""The form of an answer: what real clients say in Accept, and what they get."""

import json

import pytest

from amplifier_api_server.control_plane.graphql.requests import EVENTS, JSON, RESPONSE, wanted

REFUSED = None

# Client: what it sends, what it gets for a query, and for a subscription.
CLIENTS = {
    "urql 6": (
        "application/graphql-response+json, application/graphql+json, application/json, text/event-stream, multipart/mixed",
        RESPONSE,
        EVENTS,
    ),
    "Apollo Client 4": ("application/graphql-response+json,application/json;q=0.9", RESPONSE, REFUSED),
    "Apollo Client 4, @defer": (
        "multipart/mixed;deferSpec=20220824,application/graphql-response+json,application/json;q=0.9",
        RESPONSE,
        REFUSED,
    ),
    "Apollo Client 4, a subscription by HTTP": (
        "multipart/mixed;boundary=graphql;subscriptionSpec=1.0,application/graphql-response+json,application/json;q=0.9",
        RESPONSE,
        REFUSED,
    ),
    "Apollo Client 3, gql with requests, httpx or aiohttp, Relay with fetch, curl": ("*/*", JSON, EVENTS),
    "genqlient, shurcooL/graphql": (None, JSON, EVENTS),
    "graphql-request 7": (
        "application/graphql-response+json; charset=utf-8, application/json; charset=utf-8",
        RESPONSE,
        REFUSED,
    ),
    "graphql-sse, EventSource, fetch-event-source": ("text/event-stream", EVENTS, EVENTS),
    "GraphiQL": ("application/json, multipart/mixed", JSON, REFUSED),
    "axios": ("application/json, text/plain, */*", JSON, EVENTS),
    "n8n": (
        "application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9, image/*;q=0.8, */*;q=0.7",
        JSON,
        EVENTS,
    ),
    "events as the last resort": ("application/json, text/event-stream;q=0.1", JSON, EVENTS),
    "events where there are some": ("text/event-stream;q=0.9, application/json;q=0.9", EVENTS, EVENTS),
    "events rather than JSON": ("application/json;q=0.5, text/event-stream", EVENTS, EVENTS),
    "JSON never": ("application/json;q=0, application/graphql-response+json;q=0, */*;q=0.1", EVENTS, EVENTS),
    "nothing that there is": ("application/xml", JSON, REFUSED),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_query_is_answered_as_its_client_reads_it(client):
    accept, query, subscription = CLIENTS[client]
    found = wanted([] if accept is None else [(b"accept", accept.encode())])
    assert (EVENTS if found.events else found.media_type) == query
    assert (EVENTS if found.streams else REFUSED) == subscription
    assert not found.html


async def test_the_door_answers_in_that_form(door):
    session = await door.session()
    started = await door.ask(
        'mutation($s: ID!) { startExecution(sessionId: $s, prompt: "hi") { requestId } }', s=session
    )
    follow = "subscription($s: ID!, $r: ID!) { executionStream(sessionId: $s, requestId: $r) { type } }"
    ids = {"s": session, "r": started["startExecution"]["requestId"]}
    for accept, query, subscription in CLIENTS.values():
        headers = {"accept": accept} if accept is not None else {}
        answer = await door.post("{ me { role } }", **headers)
        assert answer.headers["content-type"] == f"{query}; charset=utf-8", accept
        answer = await door.post(follow, ids, **headers)
        if subscription is REFUSED:
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_graphql_request"), accept
        else:
            assert answer.headers["content-type"] == f"{subscription}; charset=utf-8", accept
            assert "COMPLETE" in answer.text


async def test_a_document_that_fails_is_answered_in_that_form_too(door):
    answer = await door.post("{ nothing }", accept="application/json, text/event-stream")
    assert answer.headers["content-type"].startswith(JSON)
    answer = await door.post("{ nothing }", accept="text/event-stream")
    assert answer.headers["content-type"].startswith(EVENTS)


async def test_clients_that_send_hashes_or_batches_learn_from_errors_what_is_not_taken(door):
    hashed = {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}, "operationName": "Q"}
    async with door.plane.client(door.key) as client:
        by_get = {"extensions": json.dumps(hashed["extensions"]), "operationName": "Q", "variables": "{}"}
        answers = [await client.post("/graphql", json=hashed), await client.get("/graphql", params=by_get)]
        batch = await client.post("/graphql", json=[{"query": "{ me { role } }"}])
        whole = await client.post("/graphql", json={**hashed, "operationName": None, "query": "{ me { role } }"})
    for answer in answers:
        (error,) = answer.json()["errors"]
        assert (answer.status_code, error["message"]) == (200, "PersistedQueryNotSupported")
        assert error["extensions"]["code"] == "persisted_query_not_supported"
    (error,) = batch.json()["errors"]
    assert (batch.status_code, error["extensions"]["code"]) == (400, "batch_not_supported")
    assert whole.json() == {"data": {"me": {"role": "admin"}}}


async def test_an_event_source_whose_stream_is_over_is_told_to_come_back_no_more(door):
    headers = {"accept": "text/event-stream"}
    async with door.plane.client(door.key) as client:
        answer = await client.get("/graphql", params={"query": "{ me { role } }"}, headers=headers)
        *_, last = answer.text.strip().split("\n\n")
        fields = dict(line.split(":", 1) for line in last.splitlines())
        assert fields["event"].strip() == "complete"
        headers["last-event-id"] = fields["id"].strip()
        answer = await client.get("/graphql", params={"query": "{ me { role } }"}, headers=headers)
    assert (answer.status_code, answer.content) == (204, b"")
