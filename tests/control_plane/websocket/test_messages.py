"""Whatever a client sends is a message, or is refused with a code; nothing else comes of it."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.websocket.messages import CLIENT_MESSAGES, Message, Unreadable, read

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
names = sorted({name for model in CLIENT_MESSAGES.values() for name in model.model_fields})


def result(text):
    """The message, or None where it was refused as it should be."""
    refused = None
    try:
        message, given = read(text)
    except Unreadable as error:
        refused = error
    if refused is not None:
        assert refused.stable_code in {"invalid_json", "unknown_message", "invalid_request"}
        assert orjson.dumps(refused.extra)
        return None
    assert isinstance(message, Message)
    assert isinstance(given, dict)
    return message


@given(
    st.text(max_size=200)
    | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1"))
    | st.text('{}[]",:1tfn\\ ', max_size=60)
)
def test_any_text(text):
    result(text)


@given(values)
def test_any_json(value):
    result(json.dumps(value))


@given(st.sampled_from(sorted(CLIENT_MESSAGES)), st.dictionaries(st.sampled_from(names), values, max_size=8))
def test_any_members_of_a_message(name, members):
    message = result(json.dumps({**members, "type": name}))
    if message is not None:
        assert message.id is None or type(message.id) in (str, int)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"type": "ping", "id": ' + "9" * 5_000 + "}",
        '{"type": "ping", "x": [' + "[]," * 250_000 + "0]}",
        '{"type": "session.create", "profile": "a", "context": ' + '{"a":' * 300 + "1" + "}" * 300 + "}",
        '{"type": "ping", "type": "auth"}',
        '{"type": "\\ud800"}',
        "\ud800",
        '{"type": "ping", "id": "' + "x" * 129 + '"}',
        '{"type": "ping", "id": true}',
        '{"type": "ping", "id": 1.5}',
    ],
)
def test_what_is_too_deep_too_much_or_no_text_is_refused(text):
    assert result(text) is None


def test_an_id_is_told_back_where_it_can_be():
    with pytest.raises(Unreadable) as refused:
        read('{"type": "session.get", "id": 5}')
    assert refused.value.message_id == 5
    assert refused.value.extra["errors"] == [{"field": "session_id", "message": "is missing"}]


def test_a_token_is_in_no_error_and_no_representation():
    message, _ = read('{"type": "auth", "token": "amp_live_secret"}')
    assert "secret" not in repr(message)
    with pytest.raises(Unreadable) as refused:
        read('{"type": "auth", "token": ["amp_live_secret"]}')
    assert "secret" not in repr(refused.value) + str(refused.value.extra)
