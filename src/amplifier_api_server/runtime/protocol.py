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
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
MAX_TOOL_OUTPUT_CHARS = 65_536  # of one tool call, in an event, a result or a transcript; the rest is cut and said so


class Environment:
    """What the launcher sets in a sandbox's otherwise empty environment, all of it public."""

    LISTEN_FD = "AMPLIFIER_LISTEN_FD"  # a listening stream socket
    GATEWAY_FD = "AMPLIFIER_GATEWAY_FD"  # an O_PATH descriptor of the gateway's socket: connect to /proc/self/fd/N
    GATEWAY_PATH = "AMPLIFIER_GATEWAY_PATH"  # instead of GATEWAY_FD where there is no sandbox
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
    # What it was installed without: `SourceUri.key`s, or with `#subdirectory=...` a part of one.
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
    wheels: str | None = None  # a tree of wheel files
    timeout_seconds: float = 600


class Built(Body):
    distributions: list[Distribution] = []
    archive_bytes: int = 0  # of what PACKAGES gives
    warnings: list[str] = []  # modules that can't be imported, as was tried; of two with one name, which one is used


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


class ToolCallEvent(Body):
    """`data` of a `tool_call` event, and an element of `tool_calls` in a result (there only completed and failed)."""

    tool: str
    status: Literal["started", "completed", "failed"]
    call_id: str
    input: dict[str, Any] | None = None
    output: Any = None
    error: str | None = None
    duration_ms: Annotated[int | None, Field(ge=0, lt=2**53)] = None
    agent: str | None = None  # of a call that a child session makes: whose it is; such calls are in no result
    session_id: str | None = None  # and which child session's


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


class SourceUri(NamedTuple):
    """Where a bundle or a module comes from, as the ecosystem writes it: `git+https://host/org/repo@ref#subdirectory=x`,
    `https://host/file.zip`. Parsing says nothing of whether it may be had: that is the control plane's to decide.
    """

    kind: Literal["git", "zip"]
    url: str  # of the repository or archive, without a ref
    ref: str  # a branch, a tag or a commit; "" for a zip, and for the default branch
    subdirectory: str  # within it; no leading slash

    @property
    def key(self) -> str:
        """The source's name less its subdirectory, one for all ways to write it."""
        return f"git+{self.url}@{self.ref}" if self.kind == "git" else self.url

    @classmethod
    def parse(cls, text: str) -> SourceUri:
        """Raises ValueError that says what is wrong."""
        if len(text) > _MAX_URI_CHARS or not text.isprintable() or " " in text:
            raise ValueError(
                f"{text[:80]!r} should be an address of at most {_MAX_URI_CHARS} characters, without spaces"
            )
        head, _, fragment = text.partition("#")
        options = dict(part.partition("=")[::2] for part in fragment.split("&") if part)
        subdirectory = options.get("subdirectory", "").strip("/")
        if ".." in subdirectory.split("/") or "\\" in subdirectory:
            raise ValueError(f"{subdirectory[:80]!r} leads out of the repository")
        if head.startswith("git+"):
            url, ref = _without_ref(head.removeprefix("git+"))
            kind: Literal["git", "zip"] = "git"
        elif head.removeprefix("zip+").partition("?")[0].endswith(".zip"):
            url, ref, kind = head.removeprefix("zip+"), "", "zip"
        else:
            raise ValueError(f"{text[:80]!r} should be git+https://host/org/repo@ref, or the https address of a .zip")
        scheme, separator, rest = url.partition("://")
        if not separator or not rest or scheme not in ("https", "http", "file", "ssh"):
            raise ValueError(f"{text[:80]!r} should be an https address")
        host, slash, path = rest.partition("/")
        if "@" in host:
            raise ValueError("an address holds no credentials")
        path = path.rstrip("/") if kind == "zip" else path.rstrip("/").removesuffix(".git")
        return cls(kind, f"{scheme}://{host.lower()}{slash}{path}", ref, subdirectory)


_MAX_URI_CHARS = 2048


def _without_ref(url: str) -> tuple[str, str]:
    """The address, and what follows the last @ of its path: an @ in the host is a user's name."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    path, at, ref = path.rpartition("@")
    if not at:
        path, ref = ref, ""
    return f"{scheme}{separator}{host}{slash}{path}", ref
