"""Scripted runtimes that keep to the protocol: they stream, run tools, compile profiles and inspect collections."""

from __future__ import annotations

import json

from amplifier_api_server.runtime import protocol
from tests.hostile_runtime import HostileFleet, Request

WORDS = ("a", "b", "c")
_COMPILED = {"spec": {"name": "mine", "description": "said"}, "plan": {"a": 1}, "model": "m", "warnings": ["w"]}
_MANIFEST = {"name": "kit", "version": "1", "profiles": [{"name": "kit:p"}]}


def behave(fleet: HostileFleet) -> None:
    """Have all runtimes of the fleet keep to the protocol."""
    fleet.answers |= {
        ("POST", "turn"): turn,
        ("POST", "tool"): tool,
        ("POST", "compile"): compiled,
        ("POST", "inspect"): inspected,
        ("GET", "approvals"): no_approvals,
        ("POST", "approval"): no_such_approval,
        ("GET", "events"): no_such_turn,
    }


async def turn(request: Request) -> None:
    """Three words, then the end."""
    frames = [
        protocol.sse(request.turn_id, number, "token", json.dumps({"content": word}))
        for number, word in enumerate(WORDS, start=1)
    ]
    text = b"".join(frames).decode()
    handed = await request.runtime.hand_over(request, response="".join(WORDS), events=text, last_event=len(WORDS))
    if handed.status_code != 200:
        await request.reply(500, handed.json())
        return
    made = handed.json()
    if not request.wants_events:
        await request.reply(200, made["result"])
        return
    frames.append(
        protocol.sse(request.turn_id, len(WORDS) + 1, made["event"], json.dumps(made["data"], separators=(",", ":")))
    )
    raw = b"".join(frames)
    await request.say(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw
    )


async def tool(request: Request) -> None:
    name = request.path.rpartition("/")[2]
    if name != "bash":
        await request.reply(404, {"code": "no_such_tool", "detail": "there is none"})
    else:
        await request.reply(200, {"tool": name, "status": "completed", "output": {"stdout": "hello"}})


async def compiled(request: Request) -> None:
    await request.reply(200, _COMPILED)


async def inspected(request: Request) -> None:
    await request.reply(200, {"manifest": _MANIFEST})


async def no_approvals(request: Request) -> None:
    await request.reply(200, {"approvals": []})


async def no_such_approval(request: Request) -> None:
    await request.reply(404, {"code": "no_approval", "detail": "there is none"})


async def no_such_turn(request: Request) -> None:
    await request.reply(404, {"code": "no_turn", "detail": "there is none"})
