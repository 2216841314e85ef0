"""The wire contract between the control plane and a runtime: paths, headers, bodies, events.

Owns the words that both sides say. Standard library and pydantic only, so that either side can be changed, or written
anew, against this file alone. HTTP/1.1 in both directions:

* the control plane calls the runtime over the runtime's listening socket (the paths of `class Path`);
* the runtime calls the control plane over its gateway socket (the paths of `class Gateway`).

Neither carries a credential: on both, the socket itself says who is speaking. The control plane believes nothing in these
bodies about who owns what; it looks up every id in rows that belong to the runtime's tenant.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

PROTOCOL_VERSION = 1

# Bounds that both sides hold. A runtime that sends more is refused; a control plane never sends more.
MAX_PROMPT_CHARS = 1_000_000
MAX_TURN_EVENTS_BYTES = 8 * 1024 * 1024
MAX_CHECKPOINT_BYTES = 32 * 1024 * 1024
MAX_TURN_MESSAGES = 10_000  # that one turn adds to a transcript
MAX_STATE_BYTES = 1024 * 1024  # of a session's modules, as JSON
MAX_DETAIL_CHARS = 4_000
MAX_EVENTS = 10**9  # numbers of events stay below it
_MAX_DELAY_SECONDS = 86_400.0
MAX_TOOL_OUTPUT_CHARS = 65_536  # of one tool call, in an event, a result or a transcript; the rest is cut and said so


class Environment:
    """What the launcher sets in a sandbox's otherwise empty environment, all of it public."""

    LISTEN_FD = "AMPLIFIER_LISTEN_FD"  # a listening stream socket
    GATEWAY_FD = "AMPLIFIER_GATEWAY_FD"  # an O_PATH descriptor of the gateway's socket: connect to /proc/self/fd/N
    GATEWAY_PATH = "AMPLIFIER_GATEWAY_PATH"  # instead of GATEWAY_FD where there is no sandbox
    WORKSPACE = "AMPLIFIER_WORKSPACE"  # a folder; each session has a folder of its own, named by its id, in it
    COLLECTIONS = (
        "AMPLIFIER_COLLECTIONS"  # a read-only folder of installed collections, each in a folder named by its hash
    )


class Path:
    """What the control plane asks of a runtime. `{}` are ids."""

    HEALTH = "/health"  # GET -> Health
    CLAIM = "/claim"  # POST Claim -> 204; the same claim again is a no-op, another one is 409
    CATALOG = "/catalog"  # GET -> Catalog: what is bundled, without any collection
    INSPECT = (
        "/collections/{hash}/inspect"  # POST Inspect -> CollectionManifest: what an installed folder holds; 422 Failure
    )
    SESSION = "/sessions/{session_id}"  # PUT OpenSession -> OpenedSession (200 when it is open already); DELETE -> 204
    TURN = "/sessions/{session_id}/turns/{request_id}"  # POST StartTurn -> see below; GET -> TurnResult or 202 while it runs
    EVENTS = "/sessions/{session_id}/turns/{request_id}/events"  # GET ?after=N -> text/event-stream
    CANCEL = "/sessions/{session_id}/turns/{request_id}/cancel"  # POST -> 202; idempotent
    TOOL = "/tools/{name}"  # POST ExecuteTool -> ToolOutcome; 404 Failure when there is no such tool


class Gateway:
    """What a runtime asks of the control plane, over its gateway socket."""

    CHAT_COMPLETIONS = "/v1/chat/completions"  # the OpenAI dialect; header `TURN_HEADER` says which turn it is for
    MODELS = "/v1/models"
    CHECKPOINT = "/turns/{request_id}/checkpoint"  # POST Checkpoint -> CheckpointAnswer; idempotent by request_id


# POST TURN with `Accept: text/event-stream` answers 200 with the turn's events as they are made, from the first on;
# with `Accept: application/json` it answers 200 TurnResult when the turn has ended. In both cases the turn itself goes on
# when the caller hangs up. 409 Failure(code="turn_running") when another turn runs; 404 Failure(code="no_session") when the
# session is not open here.
TURN_HEADER = "X-Amplifier-Turn"


class EventName(StrEnum):
    """The server-sent events of a turn. `complete` and `error` are terminal: one of them, once, and last."""

    TOKEN = "token"  # noqa: S105 - {"content": str}
    TOOL_CALL = "tool_call"  # ToolCallEvent
    COMPLETE = (
        "complete"  # {"request_id", "usage", "response", "tool_calls"}; made by the control plane at the checkpoint
    )
    ERROR = "error"  # an RFC 9457 problem with a stable `code`


TERMINAL_EVENTS = frozenset({EventName.COMPLETE, EventName.ERROR})


def sse(request_id: str, number: int, event: str, data_json: str) -> bytes:
    r"""One frame of a turn's stream, `id: req_...:N\nevent: ...\ndata: ...\n\n` (WHATWG HTML, 9.2.6).

    `data_json` is JSON on one line. Numbers start at 1 and have no gaps.
    """
    return f"id: {request_id}:{number}\nevent: {event}\ndata: {data_json}\n\n".encode()


class Body(BaseModel):
    """Bodies refuse what they don't know: both sides ship together."""

    model_config = ConfigDict(extra="forbid")


def _as_code(code: str) -> str:
    """Codes become labels and are programmed against: what is none is not passed on."""
    return code if re.fullmatch(r"[a-z][a-z0-9_]{0,63}", code) else "runtime_failed"


def _as_delay(seconds: float | None) -> float | None:
    return None if seconds is None else min(max(0.0, seconds), _MAX_DELAY_SECONDS)


class Failure(Body):
    """Every answer of 400 and above, in both directions: what a problem+json is made of at the edge."""

    code: Annotated[str, AfterValidator(_as_code)]
    detail: Annotated[str, AfterValidator(lambda detail: detail[:MAX_DETAIL_CHARS])]
    retry_after_seconds: Annotated[float | None, AfterValidator(_as_delay)] = None


class Health(Body):
    protocol_version: int = PROTOCOL_VERSION
    runtime_id: str | None = None  # None until it is claimed
    open_sessions: list[str] = []
    running_turns: list[str] = []  # request ids


class Claim(Body):
    """Gives a warm runtime its identity, once and for ever."""

    runtime_id: str
    tenant_id: str
    default_model: str = "default"
    tool_timeout_seconds: float = 120
    tool_cpu_seconds: int = 600  # of one process of the bash tool (RLIMIT_CPU)
    turn_timeout_seconds: float = 1800
    model_idle_timeout_seconds: float = 120  # no byte of a model's stream for this long ends the call


class ToolSpec(Body):
    name: str
    description: str
    input_schema: dict[str, Any]


class ProfileSpec(Body):
    name: str  # "collection:profile"
    description: str = ""
    version: str | None = None


class Catalog(Body):
    profiles: list[ProfileSpec]
    tools: list[ToolSpec]


class Inspect(Body):
    """The folder COLLECTIONS/{hash} is in place; say what is in it. Runs none of its code."""

    expected_name: str | None = None


class CollectionManifest(Body):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    version: str = "0"
    description: str = ""
    profiles: list[ProfileSpec] = []
    agents: list[str] = []
    modules: list[str] = []  # module ids
    tools: list[ToolSpec] = []  # of its modules; empty where they only show when mounted


class OpenSession(Body):
    """Open a session, new or again. Exactly one of `profile` (new) and `plan` (again) is given."""

    profile: str | None = None
    plan: dict[str, Any] | None = None  # as `OpenedSession.plan` said when it was new
    collections: list[str] = []  # hashes, in precedence order; each is a folder in COLLECTIONS
    context: dict[str, Any] = {}  # the caller's own; becomes a part of the prompt
    transcript: list[dict[str, Any]] = []  # messages, as checkpoints said them
    state: dict[str, Any] = {}  # as the last checkpoint said it
    turn_number: int = 0  # turns completed so far


class OpenedSession(Body):
    plan: dict[str, Any]  # the compiled mount plan, kept by the control plane and given back on every later open
    model: str


class StartTurn(Body):
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]


class ToolCallEvent(Body):
    """`data` of a `tool_call` event, and an element of `tool_calls` in a result (there only completed and failed)."""

    tool: str
    status: Literal["started", "completed", "failed"]
    call_id: str
    input: dict[str, Any] | None = None
    output: Any = None
    error: str | None = None
    duration_ms: Annotated[int | None, Field(ge=0, lt=2**53)] = None


class Usage(Body):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class TurnStatus(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TurnResult(Body):
    """How a turn ended, as the control plane answered its checkpoint."""

    request_id: str
    status: TurnStatus
    response: str = ""
    usage: Usage = Usage()
    tool_calls: list[ToolCallEvent] = []
    problem: dict[str, Any] | None = None  # when it failed or was cancelled


class Checkpoint(Body):
    """The end of a turn, handed over before anybody is told of it.

    `messages` are what the turn adds to the transcript: none when it failed (the transcript stays as it was), a valid
    sequence (every tool call with its result, an assistant's message last) when it completed or was cancelled.
    `events` is the whole stream so far, frame by frame as it was sent, without a terminal event: the control plane makes
    that, because it alone knows the usage.
    """

    session_id: str
    request_id: str
    status: Literal[TurnStatus.COMPLETED, TurnStatus.FAILED, TurnStatus.CANCELLED]
    base: Annotated[
        int, Field(ge=0, lt=2**53)
    ]  # the transcript's length before this turn; another one at the control plane is 409
    messages: Annotated[list[dict[str, Any]], Field(max_length=MAX_TURN_MESSAGES)] = []
    response: str = ""
    tool_calls: Annotated[list[ToolCallEvent], Field(max_length=MAX_TURN_MESSAGES)] = []
    failure: Failure | None = None  # why it failed
    events: Annotated[str, Field(max_length=MAX_TURN_EVENTS_BYTES)] = ""
    last_event: Annotated[int, Field(ge=0, lt=MAX_EVENTS)] = 0
    state: dict[str, Any] = {}


class CheckpointAnswer(Body):
    """The turn is durable. `event` is the terminal frame's name and data, number `last_event + 1`."""

    event: EventName
    data: dict[str, Any]
    result: TurnResult


class ExecuteTool(Body):
    input: dict[str, Any]
    timeout_seconds: float = 120


class ToolOutcome(Body):
    tool: str
    status: Literal["completed", "failed"]
    output: Any = None
    error: str | None = None
