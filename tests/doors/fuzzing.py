"""Schemathesis over a running server: the whole OpenAPI document, and what does not hold of the answers.

Owns the run (seeded, one worker, no network but the server) and what is a finding. `Run.findings` are texts to read.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

SEED = 20250115
_CHECKS = {
    # Which generated values mean something (a role's name, a cursor, a source) no schema says; see `Run.examples`.
    "positive_data_acceptance": {"enabled": False},
}
# Of the network, which is not there, and of a sandbox: documented answers, and no mistakes of ours.
_OF_OTHERS = ["2xx", "3xx", "4xx", "503"]


@dataclass
class Run:
    """What came of one."""

    findings: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, Counter[int]] = field(default_factory=dict)  # by operation
    refused_examples: list[str] = field(default_factory=list)
    requests: int = 0

    def of(self, operation: str) -> Counter[int]:
        return self.statuses.setdefault(operation, Counter())


def run(document: dict[str, Any], url: str, headers: dict[str, str], *, examples: int, phases: tuple[str, ...]) -> Run:
    """Ask everything that the document says can be asked, rightly and wrongly. `examples`: generated ones, an operation."""
    config = SchemathesisConfig.from_dict(
        {
            "base-url": url,
            "headers": headers,
            "seed": SEED,
            "workers": 1,
            "request-timeout": 20,
            "max-stream-events": 1,
            "continue-on-failure": True,
            "warnings": False,
            "generation": {
                "deterministic": True,
                "max-examples": examples,
                "no-shrink": True,
                "database": "none",
                "with-security-parameters": False,
            },
            "checks": {**_CHECKS, "not_a_server_error": {"expected-statuses": _OF_OTHERS}},
            "phases": {name: {"enabled": name in phases} for name in ("examples", "coverage", "fuzzing", "stateful")},
            # It has no end, and where nothing happens no first event either.
            "operations": [
                {
                    "include-operation-id": "streamEvents",
                    "request-timeout": 1,
                    "phases": {"fuzzing": {"enabled": False}},
                }
            ],
        }
    )
    schema = schemathesis.openapi.from_dict(_with_events(document), config=config)
    found = Run()
    with _new_keys():
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                _read(event, found)
            elif isinstance(event, events.NonFatalError):
                found.findings[f"{event.label}: {event.value}"] += 1
            elif isinstance(event, events.FatalError):
                raise event.exception
    return found


def _with_events(document: dict[str, Any]) -> dict[str, Any]:
    """The document as Schemathesis reads streams: it takes the schema of `text/event-stream` for that of each event."""
    read = copy.deepcopy(document)
    for operation in (one for item in read["paths"].values() for one in item.values()):
        for answer in operation["responses"].values():
            if (media := answer.get("content", {}).get("text/event-stream")) is not None:
                media["schema"] = media["schema"]["contentSchema"]["items"]
    return read


@contextmanager
def _new_keys() -> Iterator[None]:
    """An Idempotency-Key is generated as any text is, and so the same one again and again: make each valid one a new one."""
    numbers = itertools.count()

    def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
        is_right = case.meta is not None and case.meta.generation.mode.value == "positive"
        if is_right and "Idempotency-Key" in case.headers:
            case.headers["Idempotency-Key"] = f"key-{next(numbers)}"

    schemathesis.hook(before_call)
    try:
        yield
    finally:
        schemathesis.hooks.unregister(before_call)


def _read(event: events.ScenarioFinished, found: Run) -> None:
    recorder = event.recorder
    for case_id, interaction in recorder.interactions.items():
        case, response = recorder.cases[case_id].value, interaction.response
        label = case.operation.label
        found.requests += 1
        if response is None:
            found.findings[f"{label}: no answer"] += 1
            continue
        found.of(label)[response.status_code] += 1
        is_example = event.phase.value == "examples"
        is_unreachable = b'"source_not_allowed"' in response.content  # a host without a network has no public address
        if is_example and response.status_code in (400, 413, 415, 422) and not is_unreachable:
            found.refused_examples.append(f"{label}: {response.content[:300]!r} to {interaction.request.body!r}")
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is None:
                continue
            label = recorder.cases[case_id].value.operation.label
            failure = check.failure_info.failure
            told = f"{label}: {check.name}: {failure.title}: {failure.message[:400]}\n{check.failure_info.code_sample[:400]}"
            found.findings[told] += 1
