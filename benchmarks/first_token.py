"""From execute to the first token, against the same question asked of the model server directly; interleaved.

The model server answers at once, so that what is left is ours: edge, limits, the turn's row, the way into the sandbox, the
loop in it, the way out by the model gateway, and back. A breakdown follows, from the server's own functions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import servers, spans
from benchmarks.http_client import Client
from benchmarks.rows import Row, median, percentile

_TURNS_A_SESSION = 20  # a longer transcript is a larger request, which is another question
_PROMPT = "Say the word."


def run(*, turns: int = 400) -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-first-") as name,
        servers.model(Path(name)) as (model_port, settings),
    ):
        data_dir = Path(name) / "data"
        with servers.target(data_dir, sandboxes=True, spans=True, settings=settings) as (ready, _):
            key = ready["citizens"][0]["key"]
            with Client(ready["port"], key) as client, Client(model_port) as direct:
                through, straight, whole = _measure(client, direct, turns)
        inside = spans.read(data_dir / "spans.json")
    added = [one - median(straight) for one in through]
    rows = [
        Row("first token", "added by us, median", median(added) * 1e3, "ms", aim=5),
        Row("first token", "added by us, p95", percentile(added, 95) * 1e3, "ms"),
        Row("first token", "execute to first token, median", median(through) * 1e3, "ms", median(straight) * 1e3,
            note="peer: the model server directly"),
        Row("first token", "execute to first token, p95", percentile(through, 95) * 1e3, "ms",
            percentile(straight, 95) * 1e3, note="peer: the model server directly"),
        Row("first token", "execute to complete (durable), median", median(whole) * 1e3, "ms"),
    ]  # fmt: skip
    for part, seconds in inside.items():
        if part != "reconciler pass":
            rows.append(Row("first token", f"of which: {part}, median", median(seconds) * 1e3, "ms"))
    return rows


def _measure(client: Client, direct: Client, turns: int) -> tuple[list[float], list[float], list[float]]:
    through, straight, whole = [], [], []
    chat = {"model": "fast", "stream": True, "messages": [{"role": "user", "content": _PROMPT}]}
    session_id = ""
    for number in range(turns):
        if number % _TURNS_A_SESSION == 0:
            session_id = servers.new_session(client)
            client.call("POST", f"/v1/sessions/{session_id}/execute", {"prompt": _PROMPT, "stream": True})  # warms up
        body = {"prompt": _PROMPT, "stream": True}
        answer = client.call("POST", f"/v1/sessions/{session_id}/execute", body, b"event: token")
        if b"event: complete" not in answer.body:
            raise RuntimeError(f"a turn did not complete: {answer.body[-300:]!r}")
        through.append(answer.to_marker_seconds)
        whole.append(answer.seconds)
        straight.append(direct.call("POST", "/v1/chat/completions", chat, b'"content"').to_marker_seconds)
    return through, straight, whole
