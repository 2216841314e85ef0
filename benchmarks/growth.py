"""How things grow from 10 to 1,000 tenants and from 100 to 10,000 sessions.

Each tenant has one active session in a runtime of its own and shares the suspended ones; runtimes are stand-ins, because a
thousand sandboxes would not fit. So these figures are the control plane's alone: router, database, limits, reconciler.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine, peers, router, servers, spans
from benchmarks.http_client import Client
from benchmarks.rows import Row, median, percentile


def run(
    *,
    tenants: Sequence[int] = (10, 100, 1_000),
    sessions: Sequence[int] = (100, 1_000, 10_000),
    seconds: int = 4,
    calls: int = 300,
) -> list[Row]:
    core, other = (0, 1) if machine.cores() > 1 else (None, None)
    rows: list[Row] = []
    first: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-growth-") as name, peers.upstream(Path(name), other) as upstream:
        for tenant_count, session_count in zip(tenants, sessions, strict=True):
            found = _at(
                Path(name) / str(tenant_count), tenant_count, session_count, upstream, seconds, calls, (core, other)
            )
            size = f"{tenant_count:,} tenants, {session_count:,} sessions"
            for what, (value, unit) in found.items():
                peer = first.setdefault(what, value)
                better: Literal["higher", "lower"] = "higher" if unit == "1/s" else "lower"
                note = f"peer: at {tenants[0]}" if tenant_count != tenants[0] else ""
                rows.append(
                    Row("growth", f"{what}, {size}", value, unit, peer if note else None, better=better, note=note)
                )
    return sorted(rows, key=lambda row: list(first).index(row.name.split(", ")[0]))


def _at(
    data_dir: Path, tenants: int, sessions: int, upstream: int, seconds: int, calls: int, cores: tuple[Any, Any]
) -> dict[str, tuple[float, str]]:
    options = {"upstream_port": upstream, "turns": tenants, "tenants": tenants, "sessions": sessions, "spans": True}
    found: dict[str, tuple[float, str]] = {}
    with servers.target(data_dir, core=cores[0], **options) as (ready, process):
        citizens = ready["citizens"]
        made, ran, listed = [], [], []
        session_of = {}
        for citizen in citizens:
            with Client(ready["port"], citizen["key"]) as client:
                answer = client.call("POST", "/v1/sessions", {"profile": "foundation:base"})
                session_of[citizen["key"]] = answer.json["session_id"]
                made.append(answer.seconds)
        for number in range(calls):
            key = citizens[number * 7 % len(citizens)]["key"]
            with Client(ready["port"], key) as client:
                listed.append(client.call("GET", "/v1/sessions").seconds)
                body = {"prompt": "go", "stream": True}
                path = f"/v1/sessions/{session_of[key]}/execute"
                ran.append(client.call("POST", path, body, b"event: token").to_marker_seconds)
        router.load(ready["port"], process, ready["turns"], 1, 32, cores[1])
        rate, cpu, _ = router.load(ready["port"], process, ready["turns"], seconds, 32, cores[1])
        found["router requests a second"] = rate, "1/s"
        found["router CPU a request"] = cpu, "µs"
    found["new session median"] = median(made) * 1e3, "ms"
    found["new session p95"] = percentile(made, 95) * 1e3, "ms"
    found["execute to first token median"] = median(ran) * 1e3, "ms"
    found["execute to first token p95"] = percentile(ran, 95) * 1e3, "ms"
    found["list 50 sessions median"] = median(listed) * 1e3, "ms"
    found["reconciler pass median"] = median(spans.read(data_dir / "spans.json")["reconciler pass"]) * 1e3, "ms"
    found["database size"] = sum(one.stat().st_size for one in data_dir.glob("amplifier.db*")) / 2**20, "MiB"
    return found
