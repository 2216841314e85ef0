"""Warm claim and cold start, as a tenant without a sandbox sees them: a new session, and the first event of its first turn.

Every measurement is another tenant's first session. Warm: a runtime is kept ready and is claimed. Cold: none is, so it is
started first. The start alone is read from the server's own log.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import servers
from benchmarks.http_client import Client
from benchmarks.rows import Row, median, percentile

_PROMPT = {"prompt": "Say the word.", "stream": True}


def run(*, times: int = 30) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="bench-claims-") as name, servers.model(Path(name)) as (_, settings):
        warm, _ = _firsts(Path(name) / "warm", times, 2, settings)
        cold, started = _firsts(Path(name) / "cold", times, 0, settings)
    claimed, cold_made = [one[0] for one in warm], [one[0] for one in cold]
    first_event = [sum(one) for one in warm]
    return [
        Row("claims", "warm claim to first event, median", median(first_event) * 1e3, "ms", aim=50),
        Row("claims", "warm claim to first event, p95", percentile(first_event, 95) * 1e3, "ms"),
        Row("claims", "of which: POST /v1/sessions (claim, open), median", median(claimed) * 1e3, "ms"),
        Row("claims", "of which: first execute to first event, median", median(one[1] for one in warm) * 1e3, "ms"),
        Row("claims", "cold start of a runtime, median", median(started) * 1e3, "ms", aim=200,
            note="process, sandbox and answer on its socket"),
        Row("claims", "cold start of a runtime, p95", percentile(started, 95) * 1e3, "ms"),
        Row("claims", "new session with nothing warm, median", median(cold_made) * 1e3, "ms", median(claimed) * 1e3,
            note="peer: the same, warm"),
        Row("claims", "new session with nothing warm, p95", percentile(cold_made, 95) * 1e3, "ms"),
    ]  # fmt: skip


def _firsts(
    data_dir: Path, times: int, warm: int, settings: dict[str, object]
) -> tuple[list[tuple[float, float]], list[float]]:
    """For each of `times` tenants: seconds to a session, then to its first event; and the seconds of starts."""
    found = []
    with servers.target(data_dir, sandboxes=True, tenants=times + 1, warm=warm, settings=settings) as (ready, _):
        for number, citizen in enumerate(ready["citizens"]):
            with Client(ready["port"], citizen["key"]) as client:
                if warm:
                    servers.wait_for_warm(client, warm)
                client.call("GET", "/v1/sessions")  # the connection and the key are known
                made = client.call("POST", "/v1/sessions", {"profile": "foundation:base"})
                session_id = made.json["session_id"]
                ran = client.call("POST", f"/v1/sessions/{session_id}/execute", _PROMPT, b"event: ")
                client.call("DELETE", f"/v1/sessions/{session_id}")
                if number:  # the first one of all warms up the server
                    found.append((made.seconds, ran.to_marker_seconds))
    return found, [one["seconds"] for one in servers.logged(data_dir, "runtime warm")][1:]
