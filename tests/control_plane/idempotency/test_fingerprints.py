"""When two requests are the same one, and which answers are kept: the rules alone."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.idempotency.answers import (
    Fate,
    StoredAnswer,
    fate_of,
    fate_of_document,
    fate_of_error,
)
from amplifier_api_server.control_plane.idempotency.fingerprints import (
    checked_key,
    fingerprint_of,
    key_of,
    mutations_in,
)
from amplifier_api_server.tenants.errors import (
    Closed,
    Conflict,
    DomainError,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    Refused,
    RuntimeLost,
    TurnFailed,
    Unavailable,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("key", ["x", "8e03978e-40d5-43dd-bc93-6894a57f9324", "a" * 255, "!~#", '"quoted"'])
def test_a_key_is_visible_ascii(key):
    assert key_of([(b"idempotency-key", key.encode())]) == key.strip('"')


@pytest.mark.parametrize("key", ["", " ", "a b", "a" * 256, "ä", "a\x7f", "a\tb", '""'])
def test_any_other_key_is_refused(key):
    with pytest.raises(Invalid) as found:
        key_of([(b"idempotency-key", key.encode("latin-1"))])
    assert found.value.stable_code == "invalid_idempotency_key"


def test_two_keys_are_none():
    with pytest.raises(Invalid, match="twice"):
        key_of([(b"idempotency-key", b"a"), (b"idempotency-key", b"a")])


def test_without_the_header_there_is_no_key():
    assert key_of([(b"content-type", b"application/json")]) is None


@given(st.text(min_size=1, max_size=300))
def test_a_key_is_taken_as_it_is_or_refused(text):
    with contextlib.suppress(Invalid):
        assert checked_key(text) in (text, text[1:-1])


@given(JSON)
def test_spaces_and_the_order_of_members_make_no_other_request(value):
    turned = json.dumps(_turned(value), indent=2).encode()
    assert fingerprint_of("createKey", {}, b"", json.dumps(value).encode()) == fingerprint_of(
        "createKey", {}, b"", turned
    )


def _turned(value):
    if isinstance(value, dict):
        return {name: _turned(one) for name, one in reversed(value.items())}
    return [_turned(one) for one in value] if isinstance(value, list) else value


@given(JSON, JSON)
def test_other_bodies_are_other_requests(one, other):
    first, second = (json.dumps(value, sort_keys=True) for value in (one, other))
    same = fingerprint_of("x", {}, b"", first.encode()) == fingerprint_of("x", {}, b"", second.encode())
    assert same == (first == second)


def test_every_part_of_a_request_counts():
    base = fingerprint_of("rotateKey", {"key_id": "a"}, b"", b"{}")
    others = {
        fingerprint_of("createKey", {"key_id": "a"}, b"", b"{}"),
        fingerprint_of("rotateKey", {"key_id": "b"}, b"", b"{}"),
        fingerprint_of("rotateKey", {"key_id": "a"}, b"x=1", b"{}"),
        fingerprint_of("rotateKey", {"key_id": "a"}, b"", b'{"overlap":1}'),
        fingerprint_of("rotateKey", {"key_id": "a"}, b"{}", b""),
    }
    assert base not in others
    assert len(others) == 5


@pytest.mark.parametrize("body", [b"[" * 5000, b"\xff\xfe", b"9" * 5000, b'{"a":' * 3000])
def test_a_body_that_is_no_json_is_itself(body):
    assert fingerprint_of("x", {}, b"", body) == fingerprint_of("x", {}, b"", body)
    assert fingerprint_of("x", {}, b"", body) != fingerprint_of("x", {}, b"", body + b"1")


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("mutation { a }", 1),
        ("mutation { a b: a }", 2),
        ("mutation { ...Some } fragment Some on Mutation { a }", 2),
        ("query { mutation }", 0),
        ("subscription { mutation }", 0),
        ("mutation {", 0),
        ("query A { a } mutation B { b }", 1),
        ("# mutation\n{ a }", 0),
    ],
)
def test_a_document_changes_something_if_it_has_a_mutation(query, count):
    assert mutations_in(json.dumps({"query": query}).encode()) == count


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nonsense", b'{"query": 1}', b'{"query": "' + b"mutation{" * 5000 + b'"}']
)
def test_what_is_no_document_changes_nothing(body):
    assert mutations_in(body) == 0


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        (NotFound("x", code="session_not_found"), Fate.KEEP),
        (Conflict("x"), Fate.KEEP),
        (Closed("x"), Fate.KEEP),
        (Invalid("x"), Fate.KEEP),
        (TurnFailed("x"), Fate.KEEP),
        (RuntimeLost("x"), Fate.KEEP),
        (Malformed("x"), Fate.RELEASE),
        (Forbidden("x"), Fate.RELEASE),
        (Refused("x", retry_after_seconds=3), Fate.RELEASE),
        (Unavailable("x"), Fate.RELEASE_UNLESS_DONE),
        (Conflict("x", retry_after_seconds=3), Fate.RELEASE_UNLESS_DONE),
        (DomainError("x"), Fate.UNKNOWN),
    ],
)
def test_what_is_final_is_kept_and_what_says_not_now_is_not(error, fate):
    assert fate_of_error(error) is fate


@pytest.mark.parametrize(
    ("status", "fate"),
    [
        (200, Fate.KEEP),
        (201, Fate.KEEP),
        (202, Fate.KEEP),
        (204, Fate.KEEP),
        (500, Fate.UNKNOWN),
        (503, Fate.RELEASE_UNLESS_DONE),
        (401, Fate.RELEASE),
    ],
)
def test_answers_are_judged_by_their_status(status, fate):
    assert fate_of(status) is fate


def _failed(status, **more):
    return {"message": "x", "path": ["a"], "extensions": {"status": status, **more}}


@pytest.mark.parametrize(
    ("answer", "fields", "fate"),
    [
        ({"data": {"a": {}}}, 1, Fate.KEEP),
        ({"data": {"a": {}, "b": None}, "errors": [_failed(429)]}, 2, Fate.KEEP),
        ({"data": None, "errors": [{"message": "syntax"}]}, 1, Fate.RELEASE),
        ({"errors": [{"message": "too deep"}]}, 3, Fate.RELEASE),
        ({"data": None, "errors": [_failed(429)]}, 1, Fate.RELEASE),
        ({"data": None, "errors": [_failed(429)]}, 2, Fate.KEEP),
        ({"data": {"a": None}, "errors": [_failed(404)]}, 1, Fate.KEEP),
        ({"data": None, "errors": [_failed(409, retry_after_seconds=1)]}, 1, Fate.RELEASE_UNLESS_DONE),
        ({"data": None, "errors": [_failed(500)]}, 1, Fate.UNKNOWN),
        ([], 1, Fate.UNKNOWN),
    ],
)
def test_a_documents_answer_is_kept_unless_nothing_was_begun(answer, fields, fate):
    assert fate_of_document(json.dumps(answer).encode(), fields) is fate


@given(st.integers(200, 599), st.binary(max_size=50), st.lists(st.tuples(st.just(b"location"), st.binary(max_size=20))))
def test_an_answer_comes_out_as_it_went_in(status, body, headers):
    answer = StoredAnswer(status, tuple(headers), body)
    assert StoredAnswer.unpacked(answer.packed()) == answer


@pytest.mark.parametrize(
    "error",
    [
        NotFound("gone", code="session_not_found", hint=1),
        Conflict("no", code="turn_running"),
        Invalid("bad", errors=[]),
    ],
)
def test_an_error_that_was_kept_is_raised_again_as_it_was(error):
    with pytest.raises(type(error)) as found:
        StoredAnswer.of_error(error).result()
    assert (found.value.detail, found.value.stable_code) == (error.detail, error.stable_code)
    assert error.extra.items() <= found.value.extra.items()
