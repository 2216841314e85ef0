"""What every client may expect of HTTP itself, whatever it asks for: held over the whole table of routes."""

from __future__ import annotations

import gzip
import io
import re
import socket
import zipfile

import httpx2
import pytest

from amplifier_api_server.control_plane.framework import openapi_document
from amplifier_api_server.control_plane.routing import route_table
from amplifier_api_server.control_plane.settings import Settings
from tests.doors.honest import behave
from tests.doors.served import in_a_thread


def zipped(files):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return raw.getvalue()


A_ZIP = zipped({"bundle.yaml": "bundle: {name: kit, version: '1'}"})
ROUTES = route_table(Settings(), None).routes
PROVIDER = {"name": "anthropic", "base_url": "http://127.0.0.1:9", "tenant_keys": "required"}
LOGIN = {"type": "oauth2", "provider": "github", "client_id": "us", "client_secret": "secret"}
DOCUMENT = openapi_document(Settings())
BODIES = [one for one in ROUTES if one.takes]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    auth = {"methods": [{"type": "api_key"}, LOGIN], "login": {"public_url": "https://here.test"}}
    with in_a_thread(tmp_path_factory.mktemp("manners"), models={"providers": [PROVIDER]}, auth=auth) as one:
        behave(one.plane.fleet)
        yield one


@pytest.fixture(scope="module")
def caller(served):
    """Who may do anything."""
    with httpx2.Client(base_url=served.url, headers={"X-API-Key": served.plane.key}, trust_env=False) as one:
        yield one


@pytest.fixture(scope="module")
def operator(served):
    with httpx2.Client(base_url=served.url, headers={"X-API-Key": served.plane.operator_key}, trust_env=False) as one:
        yield one


def path_of(route):
    return re.sub(r"\{\w+\}", "x", route.template)


def sent(caller, operator, route, **more):
    client = operator if (route.permission or "").startswith("tenants:") else caller
    return client.request(route.method, path_of(route), **more)


def test_the_document_says_of_each_body_what_it_is_sent_as():
    """Of a form that may be sent as JSON it says that alone, for generators of clients."""
    for route in ROUTES:
        described = DOCUMENT["paths"].get(route.template, {}).get(route.method.lower(), {})
        content = set(described.get("requestBody", {}).get("content", {}))
        assert content <= set(route.takes), route
        assert bool(content) == bool(route.takes), route


@pytest.mark.parametrize("route", BODIES, ids=lambda route: route.operation.name)
def test_a_body_of_another_type_is_told_which_are_taken(caller, operator, route):
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/jsonp", None):
        headers = {"Content-Type": kind} if kind else {}
        answer = sent(caller, operator, route, content=b"{}", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type"), kind
        assert answer.headers["accept"] == ", ".join(route.takes)
        assert all(one in answer.json()["detail"] for one in (kind or "no type", *route.takes) if ";" not in one)


@pytest.mark.parametrize("route", BODIES, ids=lambda route: route.operation.name)
def test_an_encoded_body_is_told_that_none_is_taken(caller, operator, route):
    headers = {"Content-Type": route.takes[0], "Content-Encoding": "gzip"}
    answer = sent(caller, operator, route, content=gzip.compress(b"{}"), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_content_encoding")
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("route", BODIES, ids=lambda route: route.operation.name)
def test_json_that_is_broken_is_a_bad_request(caller, operator, route):
    if "application/json" not in route.takes:
        return
    for raw in (b'{"name": ', b"{", b"\xff\xfe", b"{'a': 1}"):
        answer = sent(caller, operator, route, content=raw, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json"), raw
        assert answer.headers["content-type"] == "application/problem+json"


def test_json_may_be_sent_as_what_is_made_of_it(caller):
    headers = {"Content-Type": "Application/Merge-Patch+JSON; charset=utf-8", "Content-Encoding": "identity"}
    answer = caller.post("/v1/roles", content=b'{"name": "merged", "permissions": ["sessions:read"]}', headers=headers)
    assert answer.status_code == 201, answer.text


def test_broken_json_leaves_an_idempotency_key_free(caller):
    key = {"Idempotency-Key": "a-key-of-the-manners", "Content-Type": "application/json"}
    assert caller.post("/v1/sessions", content=b"{", headers=key).status_code == 400
    assert caller.post("/v1/sessions", json={"profile": "foundation:base"}, headers=key).status_code == 201


# What is made has an address.

KEY_OF_A_PROVIDER = {"provider": "anthropic", "api_key": "sk-ant-0123456789"}
MAKING = {
    "createSession": ("/v1/sessions", {"profile": "foundation:base"}),
    "forkSession": ("/v1/sessions/{session}/fork", {"files": False}),
    "importSession": (
        "/v1/sessions/import",
        {"format": "amplifier-session/1", "session": {"profile": "foundation:base"}, "messages": []},
    ),
    "execute": ("/v1/sessions/{session}/execute", {"prompt": "x", "background": True}),
    "executeOnce": ("/v1/executions", {"profile": "foundation:base", "prompt": "x", "background": True}),
    "setProfile": ("/v1/profiles", {"name": "mine", "content": "---\nbundle: {name: mine}\n---\nhi"}),
    "installCollection": ("/v1/collections", None),
    "createKey": ("/v1/keys", {"name": "k", "role": "developer"}),
    "rotateKey": ("/v1/keys/{key}/rotate", {}),
    "setProviderKey": ("/v1/provider-keys", KEY_OF_A_PROVIDER),
    "createMember": ("/v1/members", {"name": "bot", "role": "developer"}),
    "createInvitation": ("/v1/invitations", {"email": "ada@example.com", "role": "developer"}),
    "createRole": ("/v1/roles", {"name": "looker", "permissions": ["sessions:read"]}),
    "createTenant": ("/v1/tenants", {"name": "Other", "tier": "pro"}),
}


def makes(operation):
    return {"201", "202"} & operation["responses"].keys()


def test_whatever_makes_something_is_tried_here_and_documents_where_it_is():
    described = [one for item in DOCUMENT["paths"].values() for one in item.values()]
    assert {one["operationId"] for one in described if makes(one)} == set(MAKING)
    for one in described:
        for status in makes(one):
            assert one["responses"][status]["headers"]["Location"] == {"$ref": "#/components/headers/Location"}


@pytest.mark.parametrize("name", MAKING)
def test_what_was_made_is_at_its_location(caller, operator, name):
    client = operator if name == "createTenant" else caller
    template, body = MAKING[name]
    key = {"Idempotency-Key": f"location-{name}"}
    path = template
    if "{session}" in template:
        path = template.format(
            session=caller.post("/v1/sessions", json={"profile": "foundation:base"}).json()["session_id"]
        )
    if "{key}" in template:
        where = caller.post("/v1/keys", json={"name": "old", "role": "developer"}).headers["location"]
        path = template.replace("/v1/keys/{key}", where)
    sent = {"json": body} if body is not None else {"content": A_ZIP, "headers": {"Content-Type": "application/zip"}}
    sent["headers"] = {**sent.get("headers", {}), **key}
    made = client.post(path, **sent)
    assert made.status_code in (201, 202), made.text
    where = made.headers["location"]
    found = client.get(where)
    assert found.status_code == 200, (where, found.text)
    if made.status_code == 201 and name != "createTenant":  # a job may go on meanwhile
        named = next(one for one in ("session_id", "id", "name", "provider") if one in made.json())
        assert made.json()[named] == found.json()[named]
    if not name.startswith("execute"):
        assert client.post(path, **sent).headers["location"] == where, "a repetition says the same"


# Methods.


def test_every_path_says_which_methods_it_takes_to_anybody(served):
    for route in ROUTES:
        there = {one.method for one in ROUTES if path_of(one) == path_of(route)}
        expected = there | {"OPTIONS"} | ({"HEAD"} if "GET" in there else set())
        asked = httpx2.options(served.url + path_of(route))
        assert (asked.status_code, asked.content) == (204, b"")
        assert set(asked.headers["allow"].split(", ")) == expected, route
        refused = httpx2.request("TRACE", served.url + path_of(route))
        assert (refused.status_code, refused.json()["code"]) == (405, "method_not_allowed")
        assert refused.headers["allow"] == asked.headers["allow"]
        assert refused.headers["allow"] in refused.json()["detail"]


def test_options_of_the_server_and_of_a_socket_and_of_nothing(served):
    with socket.create_connection(("127.0.0.1", served.port), 5) as raw:
        raw.sendall(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head = b"".join(iter(lambda: raw.recv(65536), b"")).decode()
    assert head.startswith("HTTP/1.1 204 ")
    assert re.search(r"(?m)^allow: DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT\r$", head)
    assert httpx2.options(served.url + "/ws").headers["allow"] == "GET, OPTIONS"
    assert httpx2.options(served.url + "/nothing").json()["code"] == "no_such_path"


def test_a_mutation_by_get_is_told_the_method(caller):
    answer = caller.get("/graphql", params={"query": 'mutation { closeSession(sessionId: "x") }'})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


# What every answer has.


def test_answers_have_a_date_and_name_no_software(served, caller):
    with socket.create_connection(("127.0.0.1", served.port), 5) as raw:
        raw.sendall(b"no HTTP at all\r\n\r\n")
        refused = b"".join(iter(lambda: raw.recv(65536), b"")).decode().lower()
    assert refused.startswith("http/1.1 400 ")
    assert "\r\ndate: " in refused
    assert "\r\nserver: " not in refused
    for path in ("/health", "/v1/sessions", "/nothing"):
        answer = caller.get(path)
        assert "date" in answer.headers
        assert "server" not in answer.headers


def test_limits_are_on_every_answer_for_which_the_document_has_them(caller, operator):
    """Without what only a full disk, a failing database or a failing sandbox answer."""
    described = {one["operationId"]: one for item in DOCUMENT["paths"].values() for one in item.values()}
    seen = set()
    for route in ROUTES:
        operation = described.get(route.operation.name)
        if operation is None or route.permission is None or route.operation.name in ("streamEvents", "graphql"):
            continue
        bodies = [{}] if not route.takes else [{"content": b"{"}, {"json": {}}, {"json": {"profile": "no:such"}}]
        for more in bodies:
            headers = {} if "json" in more else {"Content-Type": route.takes[0]} if route.takes else {}
            answer = sent(caller, operator, route, headers=headers, **more)
            named = operation["responses"][str(answer.status_code)]["headers"]
            has = "X-RateLimit-Limit" in named
            assert has == ("x-ratelimit-limit" in answer.headers), (route, answer.status_code)
            seen.add((answer.status_code, has))
    assert {(200, True), (400, True), (404, True), (422, True)} <= seen


def test_who_may_not_ask_is_counted_nowhere_and_promised_nothing(caller):
    answer = caller.get("/v1/tenants")
    assert answer.status_code == 403
    assert "X-RateLimit-Limit" not in DOCUMENT["paths"]["/v1/tenants"]["get"]["responses"]["403"]["headers"]
