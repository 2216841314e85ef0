"""What a dialect is: what of a request is changed, what an answer says about usage, and how a failure is told.

Owns the seam that calls are made through, and the reading of bodies that all dialects share. Refuses to know providers'
addresses, budgets and HTTP. Invariant: a request is changed only where it must be; an answer is read and never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from amplifier_api_server.control_plane.json_bounds import UnboundedJSON, loads
from amplifier_api_server.control_plane.model_gateway.answers import Refusal
from amplifier_api_server.control_plane.model_gateway.targets import Counted, DialectName

_DATA_URL_BYTES = 4096  # what an inlined file counts as in an estimate, however long its base64 is: about 1,000 tokens
_MAX_NAME_CHARS = 200
_BYTES_A_TOKEN = 8  # of one delta: more bytes are more than one token; a single token is hardly ever 16 bytes long

# Up to here a bound may be added to a request that has none: every model's own bound is above it, so that none refuses
# it.
SMALL_ALLOWANCE = 4096


class InvalidRequest(Exception):
    """The body is no request of the dialect; the message says why."""


@dataclass(slots=True)
class Request:
    """A request as it came, parsed."""

    body: dict[str, Any]
    model: str
    streams: bool
    prompt_bytes: int  # about what the model will read
    max_tokens: int | None = None  # of one choice
    choices: int = 1
    wants_usage: bool = True  # events that are nothing but usage are for it
    least_bound: int = 1  # a lower bound on its answer would be refused by the vendor
    headers: Mapping[str, str] = field(default_factory=dict)  # of the client's own, those that pass on
    server_tools: tuple[str, ...] = ()  # what it asks for that would run at the provider


class Reader:
    """Reads a stream's events, or one whole answer, for what they say about usage. Tolerates what it does not know."""

    def __init__(self) -> None:
        self.completion_tokens = 0  # by our own count, or by the provider's where that is higher or a running one
        self.counted: Counted | None = None  # the latest of the provider's
        self.is_final = False  # `counted` is of the whole answer, or of all there was of it so far
        self.ended = False  # it said so: the answer is complete
        self.is_done = False  # nothing comes after it
        self.failed = False  # it said so: an error
        self.failure_code: str | int | None = None
        self.is_length = False  # it stopped at a bound
        self.is_usage_only = False  # of the latest event

    def read(self, data: bytes) -> bool:
        """One event's data, or a whole answer's body. False: it is not in the dialect."""
        self.is_usage_only = False
        try:
            chunk = orjson.loads(data) if data else None
        except orjson.JSONDecodeError:
            return False
        if not isinstance(chunk, dict):
            return False
        self._take(chunk)
        return True

    def take_back(self, completion_tokens: int, counted: Counted | None) -> None:
        """The latest event did not pass: the counts are what they were before it."""
        self.completion_tokens, self.counted = completion_tokens, counted

    def last_words(self, refusal: Refusal) -> bytes:
        """The events that tell the client of a stream, which has begun, why it gets no more of it."""
        raise NotImplementedError

    def _take(self, chunk: dict[str, Any]) -> None:
        raise NotImplementedError

    def _fail(self, error: Any) -> None:
        self.failed = True
        if isinstance(error, dict):
            code = error.get("code") or error.get("type")
            self.failure_code = code if isinstance(code, (str, int)) else None

    def _say(self, texts: Iterable[Any]) -> None:
        """Our own count of one event: at least 1 where it says anything."""
        length = sum(len(text.encode(errors="replace")) for text in texts if isinstance(text, str))
        if length:
            self.completion_tokens += max(1, length // _BYTES_A_TOKEN)


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

    def rewritten(self, request: Request, *, model: str, continuous_usage: bool, max_tokens: int | None) -> bytes:
        """The request as the provider gets it. `max_tokens`: of one choice, where the bound is to be lowered or added."""

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


def prompt_bytes(raw: bytes, inlined: Iterable[str]) -> int:
    """A body's bytes, without most of the files that are inlined in it."""
    return len(raw) - sum(max(0, len(one) - _DATA_URL_BYTES) for one in inlined)


def whole(value: Any) -> int | None:
    """A provider's number, if it is one: whole, and 0 or above."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def detail_of(usage: Mapping[str, Any], group: str, name: str) -> int:
    """A number of tokens within a usage object's details; 0 where it is not said."""
    details = usage.get(group)
    return (whole(details.get(name)) if isinstance(details, dict) else None) or 0


def event_of(name: str, data: Any) -> bytes:
    """A named server-sent event."""
    return (
        b"event: " + name.encode() + b"\ndata: " + (data if isinstance(data, bytes) else orjson.dumps(data)) + b"\n\n"
    )
