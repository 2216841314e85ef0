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

from amplifier_api_server.runtime.finish_reasons import FINISH_REASON as FINISH_REASON  # noqa: PLC0414 - as below
from amplifier_api_server.runtime.finish_reasons import FinishReason as FinishReason  # noqa: PLC0414
from amplifier_api_server.runtime.finish_reasons import finish_reason_of as finish_reason_of  # noqa: PLC0414
from amplifier_api_server.runtime.source_uri import SourceUri as SourceUri  # noqa: PLC0414 - a part of this contract

PROTOCOL_VERSION = 2

# Bounds that both sides hold. A runtime that sends more is refused; a control plane never sends more.
MAX_PROMPT_CHARS = 1_000_000
MAX_PLAN_BYTES = 4 * 1024 * 1024  # of a compiled plan, as JSON: whole agents' instructions are in it
MAX_SOURCES = 256  # repositories and archives that one collection is made of, whatever an operator allows
MAX_TURN_EVENTS_BYTES = 8 * 1024 * 1024
MAX_CHECKPOINT_BYTES = 32 * 1024 * 1024
MAX_TURN_MESSAGES = 10_000  # that one turn adds to a transcript
MAX_STATE_BYTES = 4 * 1024 * 1024  # of a session's modules and its children's transcripts, as JSON
MAX_DETAIL_CHARS = 4_000
MAX_EVENTS = 10**9  # numbers of events stay below it
_MAX_DELAY_SECONDS = 86_400.0
MAX_APPROVAL_PROMPT_CHARS = 4_000
MAX_APPROVAL_OPTIONS = 16
MAX_APPROVAL_OPTION_CHARS = 200
MAX_WAITING_APPROVALS = 64  # of one turn, at once
MAX_TURN_APPROVALS = 500  # that one turn may ask for
MAX_TOOL_OUTPUT_CHARS = 65_536  # of one tool call, in an event, a result or a transcript; the rest is cut and said so


class Environment:
    """What the launcher sets in a sandbox's otherwise empty environment, all of it public."""

    LISTEN_FD = "AMPLIFIER_LISTEN_FD"  # a listening stream socket
    GATEWAY_FD = "AMPLIFIER_GATEWAY_FD"  # an O_PATH descriptor of the gateway's socket: connect to /proc/self/fd/N
    GATEWAY_PATH = "AMPLIFIER_GATEWAY_PATH"  # instead of GATEWAY_FD where there is no sandbox
    GROUPS = "AMPLIFIER_GROUPS"  # control groups for calls of tools, where there are any; see runtime/call_groups.py
    WORKSPACE = "AMPLIFIER_WORKSPACE"  # a folder; each session has a folder of its own, named by its id, in it
    COLLECTIONS = "AMPLIFIER_COLLECTIONS"  # a read-only folder of trees, each in a folder named by its content hash


class Path:
    """What the control plane asks of a runtime. `{}` are ids."""

    HEALTH = "/health"  # GET -> Health
    CLAIM = "/claim"  # POST Claim -> 204; the same claim again is a no-op, another one is 409
    CATALOG = "/catalog"  # GET -> Catalog: what is bundled, without any collection
    COMPILE = "/compile"  # POST CompileProfile -> CompiledProfile; 404 or 422 Failure
    # Installing, in a sandbox that does nothing else. The trees that are named must have been put into COLLECTIONS.
    INSPECT = "/inspect"  # POST Inspect -> Inspection: what an image holds, and what it still lacks; 422 Failure
    BUILD = "/builds/{build_id}"  # POST Build -> Built: its modules built and its wheels installed; 422 Failure
    PACKAGES = "/builds/{build_id}/packages"  # GET -> application/zip: the folder that was made; once
    SESSION = "/sessions/{session_id}"  # PUT OpenSession -> OpenedSession (200 when it is open already); DELETE -> 204
    TURN = "/sessions/{session_id}/turns/{request_id}"  # POST StartTurn -> see below; GET -> TurnResult or 202 while it runs
    EVENTS = "/sessions/{session_id}/turns/{request_id}/events"  # GET ?after=N -> text/event-stream
    CANCEL = "/sessions/{session_id}/turns/{request_id}/cancel"  # POST -> 202; idempotent
    APPROVALS = "/sessions/{session_id}/turns/{request_id}/approvals"  # GET -> ApprovalList: those that wait
    # POST ApprovalAnswer -> ApprovalEvent; 404 no_approval; 409 approval_closed; 422 invalid_choice
    APPROVAL = "/sessions/{session_id}/turns/{request_id}/approvals/{approval_id}"
    TOOL = "/tools/{name}"  # POST ExecuteTool -> ToolOutcome; 404 Failure when there is no such tool


class Gateway:
    """What a runtime asks of the control plane, over its gateway socket."""

    # The model dialects, as their vendors publish them; header `TURN_HEADER` says which turn a call is for.
    CHAT_COMPLETIONS = "/v1/chat/completions"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    COUNT_TOKENS = "/v1/messages/count_tokens"
    MODELS = "/v1/models"  # and /v1/models/{id}
    FETCH = "/fetch"  # POST Fetch -> Fetched: a page of the public web, for the turn of `TURN_HEADER`; 4xx Failure
    CHECKPOINT = "/turns/{request_id}/checkpoint"  # POST Checkpoint -> CheckpointAnswer; idempotent by request_id
    APPROVALS = "/turns/{request_id}/approvals"  # POST ApprovalEvent -> 204: it was requested, or timed out


# POST TURN with `Accept: text/event-stream` answers 200 with the turn's events as they are made, from the first on;
# with `Accept: application/json` it answers 200 TurnResult when the turn has ended. In both cases the turn itself goes on
# when the caller hangs up. 409 Failure(code="turn_running") when another turn runs; 404 Failure(code="no_session") when the
# session is not open here.
TURN_HEADER = "X-Amplifier-Turn"


class EventName(StrEnum):
    """The server-sent events of a turn. `complete` and `error` are terminal: one of them, once, and last."""

    TOKEN = "token"  # noqa: S105 - {"content": str}
    TOOL_CALL = "tool_call"  # ToolCall
    APPROVAL = "approval"  # ApprovalEvent
    # {"request_id", "usage", "response", "finish_reason", "tool_calls"}; made by the control plane at the checkpoint
    COMPLETE = "complete"
    ERROR = "error"  # an RFC 9457 problem with a stable `code`


TERMINAL_EVENTS = frozenset({EventName.COMPLETE, EventName.ERROR})


def sse(request_id: str, number: int, event: str, data_json: str) -> bytes:
    r"""One frame of a turn's stream, `id: req_...:N\nevent: ...\ndata: ...\n\n` (WHATWG HTML, 9.2.6).

    `data_json` is JSON on one line. Numbers start at 1 and have no gaps.
    """
    return f"id: {request_id}:{number}\nevent: {event}\ndata: {one_line(data_json)}\n\n".encode()


def one_line(json_text: str) -> str:
    """JSON that is one line to every reader: Python's `splitlines`, by which some clients cut a stream, also cuts here."""
    if json_text.isascii():
        return json_text
    return json_text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


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


# Which implementation a module id means that the runtime has one of its own for: the runtime's ("own"), or the one
# that the bundle's `source` names ("source").
ModuleUse = Literal["own", "source"]


class Claim(Body):
    """Gives a warm runtime its identity, once and for ever."""

    runtime_id: str
    tenant_id: str
    default_model: str = "default"
    default_provider: str = "provider-openai"  # the module for profiles that name none: bundles leave that to the host
    tool_timeout_seconds: float = 120
    tool_cpu_seconds: int = 600  # of one process of the bash tool (RLIMIT_CPU)
    turn_timeout_seconds: float = 1800
    approval_timeout_seconds: float = 600  # how long an approval waits for an answer at most; then it is denied
    model_idle_timeout_seconds: float = 120  # no byte of a model's stream for this long ends the call
    module_load_seconds: float = 20  # of a session's own process: to start, import and mount everything
    module_silence_seconds: float = 15  # of the same: without an answer for so long it never will give one


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


class Source(Body):
    """One repository or archive that an image is made of, pinned."""

    uri: str  # `SourceUri.key`: as bundles name it, less the subdirectory
    commit: str | None = None  # of git, in full
    tree: str  # the content hash; its files are the folder COLLECTIONS/{tree}


class Image(Body):
    """An installed collection, as everything it is made of: what a session is pinned to, and installed again from."""

    name: str  # of the collection: the namespace of its profiles
    root: Source
    subdirectory: str = ""  # of the root's tree, where the collection begins
    sources: Annotated[list[Source], Field(max_length=MAX_SOURCES)] = []  # all else that its bundles and modules name
    packages: str | None = None  # a tree to import from: its modules, built, and all that they need
    distributions: list[Distribution] = []  # what is in `packages`
    modules: ModuleUse = "own"  # as it was chosen when it was installed
    # What it was installed without: `SourceUri.key`s, or with `#subdirectory=...` a part of one, `#module=...` a module.
    lacks: Annotated[list[str], Field(max_length=MAX_SOURCES)] = []

    def trees(self) -> list[str]:
        """Every tree that must be in COLLECTIONS for it."""
        found = [self.root.tree, *(source.tree for source in self.sources)]
        return list(dict.fromkeys([*found, *([self.packages] if self.packages else [])]))


class Distribution(Body):
    """One Python distribution in `Image.packages`."""

    name: str
    version: str
    sha256: str  # of the wheel
    source: str | None = None  # the `SourceUri.key` that it was built from; None: a wheel of the operator's index


class Inspect(Body):
    """Say what is in an image. Runs none of its code."""

    image: Image
    use: ModuleUse = "own"
    skip_missing: bool = False  # parts that a source should have and hasn't are told in `missing`, not refused


class Wanted(Body):
    """A source that an image names and lacks."""

    uri: str  # `SourceUri.key`
    wanted_by: str  # the file and line that names it
    optional: bool = False


class Inspection(Body):
    """What was found so far. The control plane fetches `wanted` and asks again, until nothing is wanted any more."""

    manifest: CollectionManifest
    wanted: list[Wanted] = []
    builds: list[ToBuild] = []  # modules and libraries to be built from their trees
    requirements: list[str] = []  # PEP 508, without URLs: of what is built, and of the build systems
    warnings: list[str] = []  # what is declared optional and missing, what is ignored
    missing: Annotated[list[str], Field(max_length=MAX_SOURCES)] = []  # with `skip_missing`: for `Image.lacks`
    modules: Annotated[list[OutsideModule], Field(max_length=MAX_SOURCES)] = []  # for `Build.modules`


class OutsideModule(Body):
    """A module of an image that is not the runtime's own."""

    id: str
    uri: str  # `SourceUri.key` of the tree that it is in
    named_at: str  # the file and line that names it
    optional: bool = False
    tree: str | None = None  # where it is imported from as it lies, with `subdirectory`; None: it is built
    subdirectory: str = ""

    @property
    def part(self) -> str:
        """As `Image.lacks` has it."""
        return module_part(self.uri, self.id)


def module_part(uri: str, module_id: str) -> str:
    """What `Image.lacks` holds for a module of the source `uri` that can't be imported."""
    return f"{uri}#module={module_id}"


class ToBuild(Body):
    """One project to be made a wheel of."""

    tree: str
    subdirectory: str = ""
    uri: str  # where it comes from
    name: str  # as its pyproject.toml says it, for messages


class Build(Body):
    """Build `builds` without any network, from `wheels` alone, and install them and all other wheels."""

    image: Image
    builds: list[ToBuild] = []
    requirements: list[str] = []  # as the inspection said them
    modules: list[OutsideModule] = []  # as well: to be imported, each once, when all is there
    wheels: str | None = None  # a tree of wheel files
    timeout_seconds: float = 600


class Built(Body):
    distributions: list[Distribution] = []
    archive_bytes: int = 0  # of what PACKAGES gives
    warnings: list[str] = []  # of two projects with one name, which one is used
    unusable: Annotated[dict[str, str], Field(max_length=MAX_SOURCES)] = {}  # modules that can't be imported -> why


class CollectionManifest(Body):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    version: str = "0"
    description: str = ""
    profiles: list[ProfileSpec] = []
    agents: list[str] = []
    modules: list[str] = []  # module ids
    tools: list[ToolSpec] = []  # of its modules; empty where they only show when mounted


class CompileProfile(Body):
    """Compile a profile as a new session of it would be. The images' trees must be in COLLECTIONS."""

    profile: str
    images: list[Image] = []
    documents: dict[str, str] = {}  # the tenant's own profiles: name -> text


class CompiledProfile(Body):
    spec: ProfileSpec
    plan: dict[str, Any]
    model: str
    warnings: list[str] = []


class OpenSession(Body):
    """Open a session, new or again. Exactly one of `profile` (new) and `plan` (again) is given."""

    profile: str | None = None
    plan: dict[str, Any] | None = None  # as `OpenedSession.plan` said when it was new
    images: list[Image] = []  # in precedence order
    documents: dict[str, str] = {}  # the tenant's own profiles, for a new session: name -> text
    context: dict[str, Any] = {}  # the caller's own; becomes a part of the prompt
    transcript: list[dict[str, Any]] = []  # messages, as checkpoints said them
    state: dict[str, Any] = {}  # as the last checkpoint said it
    turn_number: int = 0  # turns completed so far


class OpenedSession(Body):
    plan: dict[str, Any]  # the compiled mount plan, kept by the control plane and given back on every later open
    model: str


class StartTurn(Body):
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]


class ToolCall(Body):
    """`data` of a `tool_call` event, and an element of `tool_calls` in a result (there only completed and failed).

    `input` is in the event of its start and in the result; what came of it in the event of its end and in the result.
    """

    tool: str
    status: Literal["started", "completed", "failed"]
    call_id: str
    input: dict[str, Any] | None = None
    output: Any = None
    error: str | None = None
    duration_ms: Annotated[int | None, Field(ge=0, lt=2**53)] = None
    agent: str | None = None  # of a call that a child session makes: whose it is; such calls are in no result
    agent_session_id: str | None = None  # and which child session's


_APPROVAL_ID = r"^apr_[0-9A-Za-z]{1,40}$"


class ApprovalEvent(Body):
    """`data` of an `approval` event: a person's consent that a turn waits for, or how that ended. What nobody answers is
    denied.
    """

    approval_id: Annotated[str, Field(pattern=_APPROVAL_ID)]
    status: Literal["requested", "answered", "timed_out", "cancelled"]
    prompt: Annotated[str, Field(max_length=MAX_APPROVAL_PROMPT_CHARS)]
    options: Annotated[
        list[Annotated[str, Field(max_length=MAX_APPROVAL_OPTION_CHARS)]], Field(max_length=MAX_APPROVAL_OPTIONS)
    ]
    default: Literal["deny"] = "deny"  # what it comes to when nobody answers
    timeout_seconds: Annotated[float, Field(ge=0, le=_MAX_DELAY_SECONDS)]
    expires_at: Annotated[str, Field(max_length=40)]  # RFC 3339, UTC
    tool: Annotated[str | None, Field(max_length=256)] = None  # that it is about, and which call of it
    call_id: Annotated[str | None, Field(max_length=512)] = None
    choice: Annotated[str | None, Field(max_length=MAX_APPROVAL_OPTION_CHARS)] = None  # of an answered one
    approved: bool | None = None  # of one that has ended
    agent: Annotated[str | None, Field(max_length=256)] = None  # of one that a child session asks for: whose it is
    agent_session_id: Annotated[str | None, Field(max_length=256)] = None  # and which child session's


class ApprovalList(Body):
    approvals: Annotated[list[ApprovalEvent], Field(max_length=MAX_WAITING_APPROVALS)] = []


class ApprovalAnswer(Body):
    """Exactly one of both: an option, or what an option comes to."""

    choice: Annotated[str | None, Field(max_length=MAX_APPROVAL_OPTION_CHARS)] = None
    approved: Annotated[bool | None, Field(strict=True)] = None


class Usage(Body):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0  # of the prompt: read from the providers' caches
    reasoning_tokens: int = 0  # of the completion
    cost_usd: str | None = None  # a decimal, by the prices that the server knows; None where it lacks one


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
    finish_reason: FinishReason = None
    usage: Usage = Usage()
    tool_calls: list[ToolCall] = []
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
    finish_reason: FinishReason = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TURN_MESSAGES)] = []
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


class Fetch(Body):
    """A page to be fetched for a tool. Only public addresses can be had, and what the tenant's lists allow."""

    url: Annotated[str, Field(max_length=4096)]
    max_bytes: Annotated[int, Field(ge=1, le=MAX_CHECKPOINT_BYTES)] = 1024 * 1024


class Fetched(Body):
    url: str  # after redirects
    status: int
    content_type: str = ""
    content: str  # text, decoded as the answer says; other content is refused
    is_cut: bool = False  # there was more than `max_bytes`
