"""What a dialect is: what of a request is changed, what an answer says about usage, and how a failure is told.

Owns the seam that calls are made through, and the reading of bodies that all dialects share. Refuses to know providers'
addresses, budgets and HTTP. Invariant: a request is changed only where it must be; an answer is read and never changed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from amplifier_api_server.control_plane.json_bounds import UnboundedJSON, loads
from amplifier_api_server.control_plane.model_gateway.answers import Refusal
from amplifier_api_server.control_plane.model_gateway.dialects.prompts import strings_in
from amplifier_api_server.control_plane.model_gateway.targets import Counted, DialectName

_MAX_NAME_CHARS = 200
_BYTES_OF_ONE_TOKEN = 16  # of one delta: a single token is hardly ever longer
_BYTES_A_TOKEN = 3  # of what is longer: at least as many tokens as a tokenizer makes of nearly any text
_MAX_COUNT = 2**31  # more tokens than this are no count of one call
_DONE = b"[DONE]"  # the last event of chat completions, which proxies add to the other dialects' streams too

# What no token is made for, and what a vendor signs or encrypts.
NO_TEXT = frozenset(
    {
        *("id", "type", "role", "object", "index", "model", "created", "provider", "system_fingerprint", "status"),
        *("finish_reason", "native_finish_reason", "stop_reason", "matched_stop", "logprobs", "token_ids", "data"),
        *("content_filter_results", "content_filter_result", "content_filter_offsets", "service_tier", "format"),
        *("signature", "thought_signature", "encrypted_content", "obfuscation", "item_id", "call_id", "annotations"),
    }
)

# The bound of a request that has none, where the model's own is not known: every model's is above it, so that none
# refuses it.
SMALL_ALLOWANCE = 4096


class InvalidRequest(Exception):
    """The body is no request of the dialect; the message says why."""


@dataclass(slots=True)
class Request:
    """A request as it came, parsed."""

    body: dict[str, Any]
    model: str
    streams: bool
    text_tokens: int  # of its text, by an estimate
    file_tokens: int = 0  # of pictures and other files
    has_unseen: bool = False  # it names a file that is somewhere else
    max_tokens: int | None = None  # of one choice
    choices: int = 1
    wants_usage: bool = True  # events that are nothing but usage are for it
    least_bound: int = 1  # a lower bound on its answer would be refused by the vendor
    headers: Mapping[str, str] = field(default_factory=dict)  # of the client's own, those that pass on
    server_tools: tuple[str, ...] = ()  # what it asks for that would run at the provider


class Reader:
    """Reads a stream's events, or one whole answer, for what they say about usage. Tolerates what it does not know."""

    def __init__(self) -> None:
        self.said_bytes = 0  # of all that was said
        self.completion_tokens = 0  # by our own count, or by the provider's where that is higher or a running one
        self.counted: Counted | None = None  # the latest of the provider's
        self.is_final = False  # `counted` is of the whole answer, or of all there was of it so far
        self.is_answer = False  # something was read that only an answer has
        self.ended = False  # it said so: the answer is complete
        self.is_done = False  # nothing comes after it
        self.failed = False  # it said so: an error
        self.failure_code: str | int | None = None
        self.is_length = False  # it stopped at a bound
        self.is_usage_only = False  # of the latest event
        self.served: str | None = None  # the model that answers, as the provider names it

    def read(self, data: bytes) -> bool:
        """One event's data, or a whole answer's body. False: it is not in the dialect, and counts by its length."""
        self.is_usage_only = False
        if data.strip() == _DONE:
            self._take_done()
            return True
        chunk = object_in(data) if data else None
        if chunk is not None:
            self._take(chunk)
            if self.served is None:
                holders = (chunk, chunk.get("response"), chunk.get("message"))
                names = (one.get("model") for one in holders if isinstance(one, dict))
                self.served = next((name for name in names if isinstance(name, str)), None)
            return True
        self.say_bytes(len(data))
        return False

    def say_bytes(self, length: int) -> None:
        """Our own count of one event, or of what was not read: at least 1 where it says anything."""
        if length:
            self.said_bytes += length
            self.completion_tokens += 1 + max(0, length - _BYTES_OF_ONE_TOKEN) // _BYTES_A_TOKEN

    def take_back(self, completion_tokens: int, counted: Counted | None) -> None:
        """The latest event did not pass: the counts are what they were before it."""
        self.completion_tokens, self.counted = completion_tokens, counted

    def unsay(self) -> None:
        """What was read was no answer, but why there is none: nothing but the provider's own count of it counts."""
        self.completion_tokens = self.counted.completion_tokens if self.counted is not None else 0
        self.said_bytes = 0
        self.is_final = self.counted is not None

    def last_words(self, refusal: Refusal) -> bytes:
        """The events that tell the client of a stream, which has begun, why it gets no more of it."""
        raise NotImplementedError

    def _take(self, chunk: dict[str, Any]) -> None:
        raise NotImplementedError

    def _take_done(self) -> None:
        """`[DONE]` came."""

    def _fail(self, error: Any) -> None:
        self.failed = True
        if isinstance(error, dict):
            code = error.get("code") or error.get("type")
            self.failure_code = code if isinstance(code, (str, int)) else None

    def _say(self, texts: Iterable[Any]) -> None:
        self.say_bytes(sum(bytes_of(text) for text in texts if isinstance(text, str)))

    def _say_all(self, value: Any) -> None:
        """Whatever it is: each text that it holds, but those that are no model's."""
        self._say(strings_in(value, NO_TEXT))


class Dialect(Protocol):
    """One vendor's way to ask for an answer."""

    @property
    def name(self) -> DialectName: ...
    @property
    def path(self) -> str:
        """Below a provider's base URL."""

    @property
    def is_metered(self) -> bool:
        """Calls cost tokens."""

    @property
    def aborts_when_cut(self) -> bool:
        """A stream that was cut must not end well on the wire: the vendor's client would take it for whole."""

    def parse(self, raw: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Request:
        """The request in a body. Raises InvalidRequest."""

    def rewritten(
        self,
        request: Request,
        *,
        model: str,
        continuous_usage: bool,
        max_tokens: int | None,
        extra_fields: Collection[str] = (),
    ) -> bytes:
        """The request as the provider gets it. `max_tokens`: of one choice, where the bound is to be lowered or added.
        `extra_fields`: patterns of those that pass beside the dialect's own.
        """

    def reader(self, *, is_running_count: bool) -> Reader:
        """For one answer. `is_running_count`: each event says how many tokens there were so far."""

    def error(self, refusal: Refusal) -> bytes:
        """A refusal's body, as the vendor's client reads it."""


def body_of(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises InvalidRequest."""
    try:
        body = loads(raw)
    except UnboundedJSON as error:
        raise InvalidRequest(f"the body can't be taken: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest("the body should be a JSON object")
    return body


def model_of(body: Mapping[str, Any]) -> str:
    """The model that is asked for; "default" where none is named. Raises InvalidRequest."""
    model = body.get("model", "default")
    if not isinstance(model, str) or not 1 <= len(model) <= _MAX_NAME_CHARS:
        raise InvalidRequest("`model` should be a string of 1 to 200 characters")
    return model


def positive(body: Mapping[str, Any], name: str) -> int | None:
    """A whole number above 0, if the body has one by this name. Raises InvalidRequest."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidRequest(f"`{name}` should be a whole number above 0")
    return value


def parsed(data: bytes) -> Any:
    """JSON as providers send it: with a byte order mark, with halves of surrogate pairs and with infinite numbers, which
    RFC 8259 allows or vendors write, and with bytes that are not UTF-8 (WHATWG Encoding: they are replaced).

    Raises ValueError.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            return json.loads(data.decode("utf-8-sig", "replace"))
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def object_in(data: bytes) -> dict[str, Any] | None:
    """The JSON object in what a provider sent, if it is one. Google wraps its errors in a list."""
    try:
        value = parsed(data)
    except ValueError:
        return None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, dict) else None


def encoded(value: Any) -> bytes:
    """JSON of what `parsed` returned, or of what was made of it: halves of surrogate pairs are written as they came."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value).encode()


def bytes_of(text: str) -> int:
    """Of text as it came; half of a surrogate pair is three, as it is when it is replaced."""
    return len(text.encode(errors="surrogatepass"))


def whole(value: Any) -> int | None:
    """A provider's number, if it is one: whole, and 0 or above. Some vendors write 50.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT else None


def merged(known: Mapping[str, Any], said: Any) -> dict[str, Any]:
    """The numbers of a usage object with those of a later one, which replace them. What it leaves out stays."""
    found = dict(known)
    for name, value in said.items() if isinstance(said, dict) else ():
        if isinstance(value, dict):
            numbers = {inner: count for inner, one in value.items() if (count := whole(one)) is not None}
            found[name] = (known.get(name) or {}) | numbers
        elif (count := whole(value)) is not None:
            found[name] = count
    return found


def detail_of(usage: Mapping[str, Any], group: str, name: str) -> int:
    """A number of tokens within a usage object's details; 0 where it is not said."""
    details = usage.get(group)
    return (whole(details.get(name)) if isinstance(details, dict) else None) or 0


def event_of(name: str, data: Any) -> bytes:
    """A named server-sent event."""
    return b"event: " + name.encode() + b"\ndata: " + (data if isinstance(data, bytes) else encoded(data)) + b"\n\n"
