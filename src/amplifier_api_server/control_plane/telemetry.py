"""Logs and metrics: one line and one count for each thing that happens, by the names of the events in docs/events.md.

Refuses prompts, answers, keys and tokens: nothing that a caller wrote gets into a log but the path of a request, cut.
Labels are bounded: methods, route templates, status classes, names of limits; never an id and never a tenant.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from types import TracebackType
from typing import Any

import orjson
import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from amplifier_api_server import __version__
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.lines import LinesFactory
from amplifier_api_server.control_plane.origin import current_origin
from amplifier_api_server.control_plane.settings import Logging

log = structlog.get_logger(__name__)

_PATH_CHARS = 200
_REFUSED_LINE_SECONDS = 10.0
_MAX_CODES = 200  # there are half as many of ours
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(settings: Logging) -> None:
    """Structured lines on standard output, for this process; the standard library's loggers are led into the same."""
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if settings.format == "json":
        factory: Any = LinesFactory(sys.stdout.buffer)
        processors: list[Any] = [_json_line]
        plain: Any = structlog.processors.JSONRenderer(serializer=lambda value, **_: _dumps(value).decode())
    else:
        factory = structlog.PrintLoggerFactory(sys.stdout)
        plain = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
        processors = [*shared, plain]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, plain],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(_LEVELS[settings.level], logging.INFO))
    for noisy in ("asyncio", "aiosqlite", "uvicorn.access", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda of: _log_uncaught(of.exc_type, of.exc_value, of.exc_traceback)
    sys.unraisablehook = lambda of: _log_uncaught(of.exc_type, of.exc_value, of.exc_traceback)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """What nobody caught is a line like any other: it ends the process or a thread, or happened in a destructor."""
    if error is not None and not issubclass(kind, SystemExit | KeyboardInterrupt):
        log.error("nobody caught an error", exc_info=(kind, error, trace))


def _json_line(logger: Any, level: str, event: MutableMapping[str, Any]) -> bytes:
    """What `shared` and a renderer do, in one step: two of these are written at every request."""
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, level, event)
    event["level"] = level
    event["timestamp"] = datetime.now(UTC)
    return orjson.dumps(event, default=str, option=orjson.OPT_UTC_Z)


def _dumps(value: Any, **_: Any) -> bytes:
    return orjson.dumps(value, default=str)


@dataclass(slots=True)
class Access:
    """Who asked for what, as far as it is known."""

    method: str
    path: str  # as it was sent, without its query: what is not ASCII and printable is encoded in it
    client: str  # the address
    tenant_id: str | None = None
    user_id: str | None = None  # the member
    code: str | None = None  # of the problem that was answered

    def known(self, principal: Principal) -> None:
        """Who is calling is known now."""
        self.tenant_id, self.user_id = principal.tenant_id, principal.member_id


class RareLines:
    """How many things one line stands for, of things that a stranger can make happen as often as they like."""

    def __init__(self, seconds: float, now: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._told_at: dict[str, float] = {}
        self._untold: dict[str, int] = {}

    def count(self, kind: str) -> int:
        """One more of a kind, of which there are few; of how many it is time to write a line: 0 for none yet."""
        number = self._untold.get(kind, 0) + 1
        now = self._now()
        if now - self._told_at.get(kind, -self._seconds) < self._seconds:
            self._untold[kind] = number
            return 0
        self._told_at[kind], self._untold[kind] = now, 0
        return number


_MODEL_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)
_STATUSES = frozenset(
    {0, 200, 400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529}
)  # 0: none came


class Telemetry:
    """What happened, told twice: as a log line and as a metric. One of these for each process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._log = structlog.get_logger("amplifier")
        reg = self.registry
        self.requests = Counter(
            "amplifier_http_requests", "Answers by route", ["method", "route", "status"], registry=reg
        )
        self.durations = Histogram(
            "amplifier_http_request_duration_seconds",
            "From a request's head to its answer's end",
            ["route"],
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=reg,
        )
        self._codes: set[str] = set()
        self._answered: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.errors = Counter("amplifier_errors", "Problems answered, by code", ["code"], registry=reg)
        self.refusals = Counter("amplifier_limit_refusals", "Refusals, by limit", ["limit"], registry=reg)
        self.refused_connections = Counter(
            "amplifier_connections_refused", "Connections refused or cut off, by reason", ["reason"], registry=reg
        )
        self._refused_lines = RareLines(_REFUSED_LINE_SECONDS)
        self.sessions_created = Counter("amplifier_sessions_created", "Sessions made", registry=reg)
        self.turns = Counter("amplifier_turns", "Turns that ended, by status", ["status"], registry=reg)
        self.turn_durations = Histogram(
            "amplifier_turn_duration_seconds",
            "From an execution's beginning to its end, by status",
            ["status"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800),
            registry=reg,
        )
        self.model_calls = Histogram(
            "amplifier_model_call_duration_seconds",
            "Attempts at model calls, from the request out to the answer's end",
            ["provider", "outcome"],
            buckets=_MODEL_SECONDS,
            registry=reg,
        )
        self.first_tokens = Histogram(
            "amplifier_model_first_token_seconds",
            "From a streamed request out to the first that the model said",
            ["provider"],
            buckets=_MODEL_SECONDS,
            registry=reg,
        )
        self.model_errors = Counter(
            "amplifier_model_errors",
            "Attempts that failed, by the provider's status",
            ["provider", "status"],
            registry=reg,
        )
        self.tokens = Counter("amplifier_tokens", "Tokens counted by providers", ["kind"], registry=reg)
        self.sockets = Gauge("amplifier_open_sockets", "Connections at /ws", registry=reg)
        self.running_turns = Gauge("amplifier_running_turns", "Turns that run now", registry=reg)
        self.runtimes = Gauge("amplifier_runtimes", "Runtimes by status", ["status"], registry=reg)
        self.starts = Histogram(
            "amplifier_runtime_start_seconds",
            "From wanting a runtime to having it",
            ["kind"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=reg,
        )
        self.sandboxes_up = Gauge("amplifier_sandboxes_up", "Sandboxes whose processes run now", registry=reg)
        self.failing = Gauge("amplifier_failing", "1 while a part of the server fails", ["part"], registry=reg)
        self.failures = Counter("amplifier_failures", "Failures of parts of the server", ["part"], registry=reg)
        self.database_bytes = Gauge("amplifier_database_bytes", "The database's files, its log included", registry=reg)
        self.waiting = Gauge("amplifier_waiting", "What waits in the server's queues", ["queue"], registry=reg)
        self.build = Gauge("amplifier_build_info", "1, for the version that runs", ["version"], registry=reg)
        self.build.labels(__version__).set(1)
        ProcessCollector(registry=reg)
        PlatformCollector(registry=reg)
        self.loop_delays = Histogram(
            "amplifier_event_loop_delay_seconds",
            "By how much the event loop came late to a beat of its watchdog",
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=reg,
        )
        self.loop_stalls = Counter("amplifier_event_loop_stalls", "Beats that came 0.1 s late or more", registry=reg)
        self.reconciled_at = Gauge("amplifier_reconciled_timestamp_seconds", "End of the last pass", registry=reg)

    def api_request(self, *, method: str, path: str, user_id: str) -> None:
        """`api:request`: it was let in."""
        self._log.info("api:request", method=method, path=path[:_PATH_CHARS], user_id=user_id, **current_origin().ids)

    def api_response(self, about: Access, *, method: str, route: str, status: int, seconds: float) -> None:
        """`api:response`: its answer has ended. The line that tells all of it; `method` is a label, and bounded."""
        answered = self._answered.get((method, route, status))
        if answered is None:
            # Looking a label's child up takes longer than counting; there are as many as routes and statuses.
            answered = self.requests.labels(method, route, str(status)), self.durations.labels(route)
            self._answered[method, route, status] = answered
        answered[0].inc()
        answered[1].observe(seconds)
        self._log.info(
            "api:response",
            method=about.method,
            path=about.path[:_PATH_CHARS],
            route=route,
            status=status,
            code=about.code,
            duration_ms=round(seconds * 1000, 2),
            client=about.client,
            tenant_id=about.tenant_id,
            user_id=about.user_id,
            **current_origin().ids,
        )

    def api_error(self, *, error: str, status: int, **more: Any) -> None:
        """`api:error`: a problem was answered; `error` is its code."""
        self.errors.labels(self._bounded(error)).inc()
        report = self._log.error if status >= 500 else self._log.info  # noqa: PLR2004 - RFC 9110, 15.6
        report("api:error", error=error, status=status, **current_origin().ids, **more)

    def _bounded(self, code: str) -> str:
        """A label for a code, some of which sandboxes invent: past so many they are all one."""
        if code not in self._codes:
            if len(self._codes) >= _MAX_CODES:
                return "other"
            self._codes.add(code)
        return code

    def session_created(self, *, session_id: str, user_id: str, tenant_id: str) -> None:
        """`session:created`."""
        self.sessions_created.inc()
        self._log.info("session:created", session_id=session_id, user_id=user_id, tenant_id=tenant_id)

    def model_attempted(
        self, provider: str, outcome: str, status: int, seconds: float, first_token: float | None
    ) -> None:
        """An attempt at a model call has ended. `status` 0: the provider gave none. `first_token`: seconds till it came."""
        self.model_calls.labels(provider, outcome).observe(seconds)
        if first_token is not None:
            self.first_tokens.labels(provider).observe(first_token)
        if outcome == "failed":
            self.model_errors.labels(provider, str(status) if status in _STATUSES else "other").inc()

    def session_executed(
        self,
        *,
        session_id: str,
        request_id: str,
        status: str,
        prompt: int,
        completion: int,
        seconds: float,
        code: str | None = None,
    ) -> None:
        """`session:executed`: a turn has ended, what it used, how long it ran, and the code of why it failed, if it did."""
        self.turns.labels(status).inc()
        self.turn_durations.labels(status).observe(max(0.0, seconds))
        self.tokens.labels("prompt").inc(prompt)
        self.tokens.labels("completion").inc(completion)
        tokens = {"prompt": prompt, "completion": completion, "total": prompt + completion}
        failed = {} if code is None else {"code": code}
        self._log.info(
            "session:executed", session_id=session_id, request_id=request_id, status=status, tokens=tokens, **failed
        )

    def limit_exceeded(self, *, user_id: str, limit: str) -> None:
        """`rate_limit:exceeded`."""
        self.refusals.labels(limit).inc()
        self._log.info("rate_limit:exceeded", user_id=user_id, limit=limit)

    def connection_refused(self, reason: str, address: str) -> None:
        """`connection:refused`: it was refused or cut off. One line for each reason in so many seconds, with their number."""
        self.refused_connections.labels(reason).inc()
        if number := self._refused_lines.count(reason):
            self._log.warning("connection:refused", reason=reason, client=address, count=number)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
