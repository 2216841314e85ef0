"""Whatever is sent: a clear refusal or what was asked for; never a failure of the server's own, never a hang."""

import contextlib
import json
import random
import socket
import threading
import time

import pytest

from tests.system.server import FREE, Caller, at_once, eventually

ROUTES = [
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/sessions"),
    ("POST", "/v1/sessions"),
    ("GET", "/v1/sessions/{session}"),
    ("DELETE", "/v1/sessions/{id}"),
    ("GET", "/v1/sessions/{session}/messages"),
    ("POST", "/v1/sessions/{session}/execute"),
    ("GET", "/v1/sessions/{session}/executions/{request}"),
    ("GET", "/v1/sessions/{session}/executions/{request}/events"),
    ("POST", "/v1/sessions/{session}/executions/{request}/cancel"),
    ("GET", "/v1/profiles"),
    ("GET", "/v1/tools"),
    ("POST", "/v1/tools/{id}/execute"),
    ("POST", "/v1/tools/bash/execute"),
    ("GET", "/v1/collections"),
    ("POST", "/v1/collections"),
    ("DELETE", "/v1/collections/{id}"),
    ("GET", "/v1/limits"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/keys/{id}"),
    ("DELETE", "/v1/keys/{id}"),
    ("POST", "/v1/keys/{id}/rotate"),
    ("GET", "/v1/tenants"),
    ("POST", "/v1/tenants"),
    ("GET", "/v1/tenants/{id}"),
    ("PATCH", "/v1/tenants/{id}"),
    ("DELETE", "/v1/tenants/{id}"),
]

_JSON = {"Content-Type": "application/json"}
BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"7",
    b'"text"',
    b"{}",
    b"\0" * 100,
    b"\xff\xfe\xfd",
    b'{"prompt": "\xff"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "\\u0000"}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"prompt": 1e999, "profile": NaN}',
    b'{"profile": "foundation:base", "context": {"\\u0000": "\\ud800"}}',
    b'{"name": "\\u0000\\ud800", "role": "admin", "tier": "free", "limits": {"requests_per_minute": 1e400}}',
    b'{"name": "x", "role": "admin", "expires_at": "9999999-01-01T00:00:00Z"}',
    b'{"name": "x", "tier": "enterprise", "limits": {"tokens_per_day": 99999999999999999999999999}}',
    b'{"overlap": 1e300}',
    b'{"source": "git+https://\\u0000"}',
    b'{"input": {"command": "\\u0000"}}',
    b'{"input": {"command": ["x"]}}',
    b'{"input": null, "prompt": {}, "stream": "maybe", "profile": [], "context": 1}',
    b'{"prompt": ' + b"1" * 10_000 + b"}",
    b"PK\x03\x04" + b"\0" * 200,
]

IDS = [
    "x",
    "%00",
    "..",
    "..%2f..",
    "%2e%2e",
    "'--",
    "a" * 129,
    "a" * 3000,
    "%ff",
    "\u00e9".encode().hex(),
    "sess_",
    "-",
    "*",
    "{}",
    ";x",
    "~",
]

TYPES = [
    "application/json",
    "text/plain",
    "application/zip",
    "multipart/form-data",
    "",
    "application/json; charset=utf-16",
    "\u00ff/\u00ff",
    "x" * 500,
]


@pytest.fixture(scope="module")
def settings():
    return {"AMPLIFIER_API__BODY_TIMEOUT": "2s"}


@pytest.fixture(scope="module")
def admin(server):
    return server.tenant(**FREE)


@pytest.fixture(scope="module")
def ids(admin):
    session = admin.session()
    return {"session": session, "request": admin.ask(session, "x")["request_id"], "id": "nothing"}


def assert_fine(answer, what) -> None:
    """Answered, and not by a failure of ours; refusals are problems."""
    assert answer.status < 500, (what, answer.status, answer.body[:300])
    assert b"Traceback" not in answer.body
    assert answer.headers["x-request-id"]
    if answer.status >= 400:
        assert answer.code, what


@pytest.mark.parametrize(("method", "template"), ROUTES)
def test_every_route_with_every_body(server, admin, ids, method, template):
    callers = [admin, server.operator()] if "tenants" in template else [admin]
    path = template.format(**ids)
    for caller in callers:
        for index, body in enumerate(BODIES):
            kind = TYPES[index % len(TYPES)] if method != "POST" or "collections" not in template else "application/zip"
            for content_type in {kind, "application/json"}:
                with contextlib.suppress(UnicodeEncodeError):
                    assert_fine(
                        caller.call(method, path, body, {"Content-Type": content_type}), (path, body[:60], content_type)
                    )


@pytest.mark.parametrize(("method", "template"), [route for route in ROUTES if "{" in route[1]])
def test_every_route_with_every_id(server, admin, ids, method, template):
    caller = server.operator() if "tenants" in template else admin
    for name in ("session", "request", "id"):
        if "{" + name + "}" in template:
            for junk in IDS:
                answer = caller.call(
                    method,
                    template.format(**{**ids, name: junk}),
                    {"prompt": "x", "input": {}} if method == "POST" else None,
                )
                assert_fine(answer, (template, junk))
                assert answer.status >= 400


@pytest.mark.parametrize(
    "path",
    ["/v1/sessions", "/v1/sessions/{session}/messages", "/v1/usage", "/v1/keys", "/v1/collections", "/v1/tenants"],
)
def test_every_list_with_every_query(server, admin, ids, path):
    caller = server.operator() if "tenants" in path else admin
    values = [
        "",
        "0",
        "-1",
        "1e9",
        "99999999999999999999",
        "x",
        "%00",
        "%ff",
        "a" * 1500,
        "null",
        "[]",
        "2026-13-45",
        "2026-01-01",
        "9" * 400,
    ]
    for name in ("limit", "cursor", "status", "group_by", "from", "to", "nobody"):
        for value in values:
            assert_fine(caller.call("GET", f"{path.format(**ids)}?{name}={value}"), (path, name, value))


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "TRACE", "PATCH", "CONNECT", "BREW"])
def test_other_methods(admin, ids, method):
    for _, template in ROUTES:
        if method == "PATCH" and template.startswith(("/v1/tenants/", "/v1/sessions/{")):
            continue
        answer = admin.call(method, template.format(**ids))
        assert answer.status in ((204, 400, 404) if method == "OPTIONS" else (400, 404, 405)), (template, answer.status)
        if answer.status in (204, 405):
            assert answer.headers["allow"]


def test_keys_that_are_none(server):
    for key in (
        "",
        " ",
        "x",
        "amp_live_" + "a" * 38,
        "amp_live_" + "a" * 5000,
        "\u00ff\u00fe",
        "Bearer x",
        "' or 1=1 --",
        "amp_live_\t",
    ):
        answer = Caller(server.port, key).call("GET", "/v1/sessions")
        assert answer.status in (400, 401), key
        if answer.status == 401:
            assert answer.code == "unauthenticated"
            assert answer.headers["www-authenticate"]


def test_bodies_that_are_too_large(server, admin, ids):
    execute = f"/v1/sessions/{ids['session']}/execute"
    for path, size, kind in ((execute, 3_000_000, "json"), ("/v1/collections", 34_000_000, "zip")):
        answer = admin.call("POST", path, b"x" * size, {"Content-Type": f"application/{kind}"})
        assert (answer.status, answer.code) == (413, "too_large")
        chunks = iter([b"x" * 65536] * (size // 65536))
        answer = raw(server.port, chunked(path, admin.key, chunks, kind))
        assert b" 413 " in answer.split(b"\r\n")[0]
    answer = raw(server.port, chunked("/v1/sessions", admin.key, iter([b"x" * 65536] * 50)))
    assert b" 413 " in answer.split(b"\r\n")[0]


def test_a_length_beyond_all_bounds_is_refused_at_once(server, admin):
    head = f"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nX-API-Key: {admin.key}\r\nContent-Type: application/json\r\nContent-Length: {10**15}\r\n\r\n".encode()
    assert b" 413 " in raw(server.port, [head]).split(b"\r\n")[0]


def test_heads_that_are_too_large(server):
    for head in (
        b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\n" + b"X-Many: a\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        line = raw(server.port, [head]).split(b"\r\n")[0]
        assert line == b"" or b" 4" in line, line
    assert Caller(server.port).call("GET", "/health").status == 200


def test_what_is_no_http(server):
    for data in (
        b"\0" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/sessions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/sessions HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    ):
        line = raw(server.port, [data]).split(b"\r\n")[0]
        assert line == b"" or b" 4" in line, (data[:40], line)
    assert Caller(server.port).call("GET", "/health").status == 200


def test_a_body_that_does_not_come(server, admin):
    head = f"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nX-API-Key: {admin.key}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode()
    answer = raw(server.port, [head])
    assert b"body_timeout" in answer


def test_many_connections_that_say_nothing(server, admin):
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            one.sendall(b"GET /v1/sess")
        assert admin.call("GET", "/v1/sessions").status == 200


def test_clients_that_leave_at_any_point(server, admin):
    """Five at once, each in the middle of something, again and again."""
    sessions = [admin.session() for _ in range(5)]

    def leave(session: str, seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(6):
            prompt = mine.choice(["stream 20 at 100/s", 'use bash {"command": "sleep 0.1"}', "x"])
            body = json.dumps({"prompt": prompt, "stream": mine.random() < 0.7}).encode()
            head = f"POST /v1/sessions/{session}/execute HTTP/1.1\r\nHost: x\r\nX-API-Key: {admin.key}\r\nContent-Length: {len(body)}\r\n\r\n"
            whole = head.encode() + body
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as one, contextlib.suppress(OSError):
                one.sendall(whole[: mine.randrange(1, len(whole) + 1)] if mine.random() < 0.4 else whole)
                time.sleep(mine.random() * 0.15)
                if mine.random() < 0.5:
                    one.recv(mine.randrange(1, 4000))

    at_once([lambda one=one, seed=seed: leave(one, seed) for seed, one in enumerate(sessions)])
    for session in sessions:
        assert eventually(lambda one=session: admin.execute(one, "are you well?").status == 200, every_seconds=0.1)
    assert admin.limit("tokens_per_day")["reserved"] == 0
    totals = admin.usage()["totals"]
    assert totals["total_tokens"] == sum(row["total_tokens"] for row in admin.usage("day")["usage"])


def test_nothing_is_slow_meanwhile(server, admin, ids):
    """A flood of deep and long JSON does not keep the others waiting."""
    stop = threading.Event()
    usual = max(_answered(server) for _ in range(5))

    def flood() -> None:
        while not stop.is_set():
            admin.call("POST", "/v1/sessions", b"[" * 1_000_000, _JSON)
            admin.call(
                "POST",
                f"/v1/sessions/{ids['session']}/execute",
                b'{"prompt": "' + b"\\u0041" * 300_000 + b'", "x": 1}',
                _JSON,
            )

    threads = [threading.Thread(target=flood) for _ in range(3)]
    for thread in threads:
        thread.start()
    slowest = max(_answered(server) for _ in range(20))
    stop.set()
    for thread in threads:
        thread.join()
    assert slowest < 2 + 20 * usual, "what it takes without the flood is the machine's"


def _answered(server) -> float:
    """The seconds that the server takes to say that it is well."""
    begun = time.monotonic()
    assert Caller(server.port).call("GET", "/health").status == 200
    return time.monotonic() - begun


def raw(port: int, pieces) -> bytes:
    """What is answered until the connection ends, or two seconds of silence."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as one:
        with contextlib.suppress(OSError):
            for piece in pieces:
                one.sendall(piece)
        answer = b""
        with contextlib.suppress(OSError):
            while more := one.recv(65536):
                answer += more
                one.settimeout(2)
        return answer


def chunked(path: str, key: str, chunks, kind: str = "json"):
    yield f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Type: application/{kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    for chunk in chunks:
        yield b"%x\r\n%s\r\n" % (len(chunk), chunk)
    yield b"0\r\n\r\n"
