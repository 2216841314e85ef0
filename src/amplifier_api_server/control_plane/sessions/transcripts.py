"""A session's transcript as a document: what is exported, and what may be imported. Pure.

Invariant: what passes `checked` is a transcript that a session can go on from: messages that core takes (`message_shape`),
roles that a model knows, every tool call with its one result right after it, an assistant's message last. Nothing in a
document says whose it is or what it may do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from amplifier_api_server.control_plane.clock import rfc3339
from amplifier_api_server.control_plane.schemas import instant_of
from amplifier_api_server.control_plane.sessions import message_shape
from amplifier_api_server.runtime.protocol import MAX_TURN_MESSAGES
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.models import Message, Session

FORMAT: Final = "amplifier-session/1"
_ROLES: Final = ("user", "assistant", "tool")
# Bytes do not bound what JSON costs (`json_bounds`): a transcript is held whole, by us and by a sandbox.
MAX_VALUES: Final = 200_000
_MAX_DEPTH: Final = 100  # of one message; pydantic, which reads it in the sandbox, takes 200 with all that is around it
MAX_TOLD: Final = 10  # errors of one document
MAX_FIELD_CHARS: Final = 200  # of a field's name in an error
_TURN_ID: Final = re.compile(r"req_[0-9A-Za-z]{1,64}")
_OURS: Final = ("request_id", "seq", "created_at")  # of an exported message; the rest is the message itself


def document(session: Session, messages: Iterable[Message]) -> dict[str, Any]:
    """The session and its transcript, as JSON values."""
    return {
        "format": FORMAT,
        "session": {
            "session_id": session.id,
            "title": session.title,
            "profile": session.profile,
            "context": session.context,
            "model": session.model,
            "created_at": rfc3339(session.created_at),
        },
        "messages": [exported(one) for one in messages],
    }


def exported(message: Message) -> dict[str, Any]:
    """One message of a document."""
    return {**message.body, **ours(message.turn_id, message.seq, message.created_at)}


def ours(turn_id: str, seq: int, created_at: datetime) -> dict[str, Any]:
    """What a document says of a message beside the message itself."""
    return {"request_id": turn_id, "seq": seq, "created_at": rfc3339(created_at)}


def count_within(weighed: Sequence[tuple[int, int]], most_bytes: int) -> int:
    """How many of the first messages, by (number, bytes), have at most `most_bytes` together; one, whatever it has."""
    total = 0
    for place, (_, weight) in enumerate(weighed):
        total += weight
        if total > most_bytes and place:
            return place
    return len(weighed)


def checked(messages: Sequence[Mapping[str, Any]], most_bytes: int) -> list[tuple[str, dict[str, Any]]]:
    """Each message's turn ("" where none is named) and body. Raises Invalid, naming what is wrong, up to `MAX_TOLD` times."""
    if len(messages) > MAX_TURN_MESSAGES:
        raise _wrong("messages", f"should be at most {MAX_TURN_MESSAGES}; there are {len(messages)}")
    found, size, open_calls, values_left = [], 0, set[str](), MAX_VALUES
    numbers: dict[int, int] = {}
    told: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        body = {name: value for name, value in message.items() if name not in _OURS}
        values_left -= _values(place, body, values_left)
        size += len(_plain(place, body))
        if size > most_bytes:
            raise _wrong("messages", f"should be at most {most_bytes} bytes of JSON together")
        told += _wrong_fields(place, body, _wrong_of_ours(message, numbers, place))
        if len(told) >= MAX_TOLD:
            break
        if not told:  # what follows from a message that is wrong is no news
            open_calls = _following(place, body, open_calls)
        found.append((message.get("request_id") or "", body))
    if told:
        raise _invalid(told[:MAX_TOLD])
    if open_calls:
        raise _wrong("messages", f"end before the result of the tool call {min(open_calls)!r:.100}")
    if found and found[-1][1]["role"] != "assistant":
        raise _wrong("messages", "should end with an assistant's message")
    return found


def _wrong_of_ours(message: Mapping[str, Any], numbers: dict[int, int], place: int) -> Iterator[tuple[str, str]]:
    """What is wrong with what a document says of a message beside the message itself, each of which may be left out."""
    turn_id, number = message.get("request_id"), message.get("seq")
    if not (turn_id is None or turn_id == "" or (isinstance(turn_id, str) and _TURN_ID.fullmatch(turn_id))):
        yield ".request_id", "should be the id of an execution, such as req_4AbC"
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
        yield ".seq", "should be a whole number from 0 on"
    elif number is not None and numbers.setdefault(number, place) != place:
        yield ".seq", f"is there twice: it is messages.{numbers[number]}'s too"
    if message.get("created_at") is not None:
        try:
            instant_of(message["created_at"])
        except ValueError as error:
            yield ".created_at", str(error)


def _wrong_fields(place: int, body: Mapping[str, Any], of_ours: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """What of one message no session could go on from, as entries of a problem's `errors`."""
    where, found = f"messages.{place}", list(of_ours)
    if body.get("role") not in _ROLES:
        found.append((".role", f"should be one of {', '.join(_ROLES)}"))
    elif body["role"] == "tool" and not isinstance(body.get("tool_call_id"), str):
        found.append((".tool_call_id", "should name a tool call right before it that has no result yet"))
    found += [(f".{field}", message) for field, message in message_shape.wrong(body)]
    found += [(".tool_calls", message) for message in _wrong_calls(body)]
    return [{"field": f"{where}{field}"[:MAX_FIELD_CHARS], "message": message} for field, message in found[:MAX_TOLD]]


def _wrong_calls(body: Mapping[str, Any]) -> Iterator[str]:
    calls = body.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list) or (calls and body.get("role") != "assistant"):
        yield "should be a list, of an assistant's message"
        return
    ids = [one.get("id") for one in calls if isinstance(one, Mapping)]
    texts = {one for one in ids if isinstance(one, str) and one}
    if len(texts) != len(calls):
        yield "should be objects, each with an id of its own"
        return
    for one in calls:  # in whichever of the ecosystem's forms: `tool`, `name`, or a `function` with both
        function = one["function"] if isinstance(one.get("function"), Mapping) else {}
        name = one.get("tool") or one.get("name") or function.get("name")
        if not isinstance(name, str) or not name:
            yield f"should each name a tool; {one['id']!r:.100} does not"
        if not isinstance(one.get("arguments", function.get("arguments")), Mapping | str | None):
            yield f"should each have an object as arguments; {one['id']!r:.100} does not"


def _following(place: int, body: Mapping[str, Any], open_calls: set[str]) -> set[str]:
    """The tool calls without a result after this message, each field of which is right."""
    where = f"messages.{place}"
    if body["role"] == "tool":
        if body["tool_call_id"] not in open_calls:
            raise _wrong(f"{where}.tool_call_id", "should name a tool call right before it that has no result yet")
        return open_calls - {body["tool_call_id"]}
    if open_calls:
        raise _wrong(where, f"comes before the result of the tool call {min(open_calls)!r:.100}")
    return {call["id"] for call in body.get("tool_calls") or ()}


def _plain(place: int, body: Mapping[str, Any]) -> bytes:
    """As JSON. Raises Invalid for what could not be stored, nor told to anybody."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise _wrong(f"messages.{place}", "should be plain JSON, not nested too deeply") from error


def _values(place: int, body: Mapping[str, Any], most: int) -> int:
    """How many values it holds. Raises Invalid where they are more than `most`, or nested deeper than a sandbox reads."""
    level: list[Any] = [body]
    count = depth = 0
    while level:
        count, depth = count + len(level), depth + 1
        if depth > _MAX_DEPTH:
            raise _wrong(f"messages.{place}", f"should be nested at most {_MAX_DEPTH} levels deep")
        if count > most:
            raise _wrong("messages", f"should hold at most {MAX_VALUES} values together")
        level = [
            value
            for one in level
            if isinstance(one, (dict, list))
            for value in (one.values() if isinstance(one, dict) else one)
        ]
    return count


def _wrong(field: str, message: str) -> Invalid:
    return _invalid([{"field": field, "message": message}])


def _invalid(told: list[dict[str, Any]]) -> Invalid:
    more = f" (and {len(told) - 1} more, in errors)" if len(told) > 1 else ""
    return Invalid(f"{told[0]['field']} {told[0]['message']}{more}", code="invalid_transcript", errors=told)
