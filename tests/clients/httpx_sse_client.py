"""httpx-sse: a prompt is posted, and its events are read; gone on with after the second. Prints one line of JSON."""

import json
import os

import httpx
from httpx_sse import connect_sse

HEADERS = {"X-API-Key": os.environ["KEY"]}

with httpx.Client(base_url=os.environ["API"], headers=HEADERS, timeout=30) as client:
    session = client.post("/v1/sessions", json={"profile": "foundation:base"}).json()["session_id"]
    prompt = {"prompt": "stream 5", "stream": True}
    with connect_sse(client, "POST", f"/v1/sessions/{session}/execute", json=prompt) as source:
        events = list(source.iter_sse())
    path = f"/v1/sessions/{session}/executions/{events[1].id.partition(':')[0]}/events"
    with connect_sse(client, "GET", path, headers={"Last-Event-ID": events[1].id}) as source:
        rest = list(source.iter_sse())
print(
    json.dumps(
        {"events": [one.event for one in events], "same": [one.id for one in rest] == [one.id for one in events[2:]]}
    )
)
