"""Documents by HTTP: what is a request, in which form it is answered, and what an error says."""

import json

import pytest

from amplifier_api_server.control_plane.sessions.service import Sessions

ME = "{ me { role } }"


async def send(door, method="POST", key=None, **kwargs):
    async with door.plane.client(key or door.key) as client:
        return await client.request(method, "/graphql", **kwargs)


async def test_nobody_we_know_is_answered_with_a_problem(door):
    answer = await send(door, key="amp_live_nobody", json={"query": ME})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"1", 400, "invalid_graphql_request"),
        (b"{}", 400, "invalid_graphql_request"),
        (b'{"query": 1}', 400, "invalid_graphql_request"),
        (b'{"query": "{ me { role } }", "variables": []}', 400, "invalid_graphql_request"),
        (b'{"query": "{ me { role } }", "operationName": 1}', 400, "invalid_graphql_request"),
        (b'{"query": "{ me { role } }", "extensions": 1}', 400, "invalid_graphql_request"),
    ],
)
async def test_what_is_no_request_is_a_problem(door, body, status, code):
    answer = await send(door, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("document", "name", "says"),
    [
        (
            "query A { me { role } } query B { me { role } }",
            "C",
            "no operation named 'C'; operationName should be A or B",
        ),
        ("query A { me { role } } query B { me { role } }", None, "has 2 operations; operationName should say which"),
        ("{ me { role } }", "C", "its operation has no name, so leave operationName out"),
    ],
)
async def test_a_wrong_name_of_an_operation_is_told_with_those_that_there_are(door, document, name, says):
    answer = await send(door, json={"query": document, "operationName": name})
    assert says in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
async def test_a_body_that_a_strange_page_could_send_is_refused(door, kind):
    answer = await send(door, content=json.dumps({"query": ME}), headers={"content-type": kind})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("query", "plain", "strict"),
    [
        (ME, 200, 200),
        ("{ nothing }", 200, 400),
        ("{", 400, 400),
        ('{ execution(sessionId: "x") { status } }', 200, 400),
    ],
)
async def test_the_status_is_as_the_answers_form_has_it(door, query, plain, strict):
    answer = await door.post(query, accept="application/json")
    assert answer.status_code == plain
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    answer = await door.post(query, accept="application/graphql-response+json, application/json")
    assert answer.status_code == strict
    assert answer.headers["content-type"] == "application/graphql-response+json; charset=utf-8"


async def test_a_field_that_failed_is_a_problem_in_its_place(door):
    answer = await door.post('{ me { role } messages(sessionId: "sess_none") { edges { cursor } } }')
    (error,) = answer.json()["errors"]
    assert error["path"] == ["messages"]
    assert error["message"] == error["extensions"]["detail"]
    assert error["extensions"] == {
        "type": "/errors/session_not_found",
        "title": "Not found",
        "status": 404,
        "detail": error["message"],
        "code": "session_not_found",
    }


async def test_what_is_not_there_is_null_and_takes_nothing_else_with_it(door):
    answer = await door.post('{ me { role } session(id: "sess_none") { id } profile(name: "no:such") { name } }')
    assert answer.json() == {"data": {"me": {"role": "admin"}, "session": None, "profile": None}}


async def test_what_nobody_foresaw_says_nothing_of_itself(door, monkeypatch):
    async def fails(*_args, **_kwargs):
        raise RuntimeError("the secret plan")

    monkeypatch.setattr(Sessions, "page", fails)
    answer = await door.post("{ me { role } sessionsConnection { nodes { id } } }")
    (error,) = answer.json()["errors"]
    assert error["extensions"]["code"] == "internal"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


async def test_values_are_checked_as_rest_checks_them(door):
    answer = await door.post('mutation { createKey(name: "", role: "developer") { key } }')
    (error,) = answer.json()["errors"]
    assert (error["extensions"]["status"], error["extensions"]["errors"][0]["field"]) == (422, "name")
    assert await door.codes('mutation { createSession(profile: "foundation:base", context: {a: 1e999}) { id } }') == [
        "graphql_invalid"
    ]
    assert await door.codes('mutation { createSession(profile: "foundation:base", context: [1]) { id } }') == [
        "invalid_request"
    ]
    assert await door.codes("{ sessionsConnection(first: 0) { nodes { id } } }") == ["invalid_request"]
    assert await door.codes('{ sessionsConnection(after: "x") { nodes { id } } }') == ["invalid_cursor"]


async def test_pages_follow_one_another_and_rest_goes_on_where_they_end(door):
    made = [await door.session() for _ in range(3)]
    query = "query($a: String) { sessionsConnection(first: 2, after: $a) { nodes { id } pageInfo { hasNextPage endCursor } } }"
    first = (await door.ask(query))["sessionsConnection"]
    second = (await door.ask(query, a=first["pageInfo"]["endCursor"]))["sessionsConnection"]
    assert [one["id"] for one in first["nodes"] + second["nodes"]] == made[::-1]
    assert (first["pageInfo"]["hasNextPage"], second["pageInfo"]["hasNextPage"]) == (True, False)
    async with door.plane.client() as client:
        rest = await client.get("/v1/sessions", params={"cursor": first["pageInfo"]["endCursor"]})
    assert [one["session_id"] for one in rest.json()["sessions"]] == made[:1]


async def test_a_get_asks_and_changes_nothing(door):
    assert (await send(door, "GET", params={"query": ME})).json() == {"data": {"me": {"role": "admin"}}}
    answer = await send(door, "GET", params={"query": 'mutation { closeSession(sessionId: "x") }'})
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert (await send(door, "GET", params={"query": ME}, key="amp_live_nobody")).status_code == 401
    assert (await send(door, "GET")).json()["code"] == "invalid_graphql_request"


async def test_a_browser_is_shown_a_page_that_needs_nobody_else(door):
    answer = await send(door, "GET", headers={"accept": "text/html,*/*"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "http://" not in answer.text
    assert "https://" not in answer.text


async def test_each_root_field_counts_as_a_request(door):
    async def left(query):
        return int((await door.post(query)).headers["x-ratelimit-remaining"])

    before = await left("{ sessions { id } }")
    assert before - await left("{ a: sessions { id } b: sessions { id } c: sessions { id } }") in (2, 3)
    for query in ("{ nothing }", "{", "{ __typename }"):
        before = await left("{ sessions { id } }")
        assert before - await left(query) in (0, 1), "a document that asks for nothing of ours is one"


async def test_a_key_repeats_nothing(door):
    query = 'mutation($k: String) { createKey(name: "k", role: "developer", idempotencyKey: $k) { id key } }'
    first, again = await door.ask(query, k="one"), await door.ask(query, k="one")
    assert first == again
    assert (await door.ask(query, k="two")) != first
    session = await door.session()
    query = 'mutation($s: ID!) { execute(sessionId: $s, prompt: "hi", idempotencyKey: "e") { requestId response } }'
    assert await door.ask(query, s=session) == await door.ask(query, s=session)
    query = 'mutation($s: ID!) { execute(sessionId: $s, prompt: "ho", idempotencyKey: "e") { requestId response } }'
    assert await door.codes(query, s=session) == ["idempotency_key_reused"]


async def test_what_changes_is_in_the_audit_log_with_this_door(door):
    await door.ask('mutation { createKey(name: "k", role: "developer") { id } }')
    said = await door.ask('{ auditEntries(filter: {action: "createKey"}) { nodes { action door httpRequestId } } }')
    assert said["auditEntries"]["nodes"][0]["door"] == "graphql"  # the first key was made by none
