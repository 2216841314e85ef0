"""Other people's clients against a real server. Each is a program in tests/clients that prints one line of JSON.

`CLIENTS` is the table of them, with the versions that its lock files say; docs/clients.md shows it. The vendors' SDKs, which run
in a sandbox, have their tests in test_vendor_sdks_in_a_sandbox.py.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import installed
from tests.system.test_logins import by_company, decided, page_of

SOURCE = Path(__file__).parents[1] / "clients"
SECONDS = 60
TOKENS = ["token", "complete"]


@dataclass(frozen=True)
class Client:
    name: str  # of its package
    program: str
    expected: object


CLIENTS = {
    one.name: one
    for one in (
        Client("eventsource", "event_source.mjs", {"events": ["token"] * 5 + ["complete"], "requests": 2}),
        Client("graphql-ws", "graphql_ws.mjs", {"events": TOKENS}),
        Client(
            "@urql/core",
            "urql.mjs",
            {"answered": 40, "types": ["application/graphql-response+json"], "response": "hello"},
        ),
        Client("ws", "ws.mjs", {"events": TOKENS}),
        Client("gql", "gql_client.py", {"events": TOKENS}),
        Client("httpx-sse", "httpx_sse_client.py", {"events": ["token"] * 5 + ["complete"], "same": True}),
    )
}


@pytest.fixture(scope="module")
def settings(issuer):
    return by_company(issuer)


def command_of(program):
    """How it is run, and where."""
    if program.endswith(".py"):
        return [installed.python(SOURCE, "clients in Python"), str(SOURCE / program)], SOURCE
    return ["node", program], installed.npm(SOURCE, "clients in JavaScript")


def environment(server, key, **more):
    return os.environ | {"API": f"http://127.0.0.1:{server.port}", "KEY": key} | more


def said(program, server, key, **more):
    command, folder = command_of(program)
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(server, key, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_is_served_as_it_expects(name, server, me):
    found = said(CLIENTS[name].program, server, me.key)
    if "response" in found:
        assert "hello" in found.pop("response")
    assert found == {one: value for one, value in CLIENTS[name].expected.items() if one != "response"}


async def test_event_sources_of_a_browser_read_to_the_end_and_stop(server, browser):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("SKIPPED, NOT TESTED: EventSource and fetch-event-source in Chromium: there is no Chromium")
    page = await page_of(server, browser, "edsger")
    more = {"CHROMIUM": chromium, "COOKIE": browser.client.cookies["amplifier"], "CSRF": page._own["X-CSRF-Token"]}
    found = await asyncio.to_thread(said, "browser.mjs", server, "", **more)
    whole = ["token"] * 5 + ["complete"]
    assert found == {"native": {"events": whole, "opened": 1}, "fetched": {"events": whole}}


async def test_the_device_flow_of_openid_client_gives_a_key(server, browser):
    await page_of(server, browser, "barbara")
    command, folder = command_of("openid_client.mjs")
    with subprocess.Popen(
        command, cwd=folder, env=environment(server, ""), stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            await decided(browser, (await asyncio.to_thread(program.stdout.readline)).strip(), "approve")
            rest, _ = await asyncio.to_thread(program.communicate, timeout=SECONDS)
        finally:
            program.kill()
    assert json.loads(rest.splitlines()[-1]) == {"status": 200, "type": "bearer"}


def test_the_documentation_has_every_client_with_its_version():
    page = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
    shown = dict(re.findall(r"^\| `([^`]+)` \| ([\d.]+) \|", page, re.MULTILINE))
    packages = json.loads((SOURCE / "package.json").read_text())["dependencies"]
    python = dict(
        re.findall(r"^([\w-]+)(?:\[.*?\])?==([\d.]+)$", (SOURCE / "requirements.in").read_text(), re.MULTILINE)
    )
    used = {*CLIENTS, "@microsoft/fetch-event-source", "openid-client", "openapi-python-client"}
    generators = json.loads((SOURCE.parent / "sdk" / "package.json").read_text())["dependencies"]
    of_sdk = dict(
        re.findall(r"^([\w-]+)==([\d.]+)$", (SOURCE.parent / "sdk" / "requirements.in").read_text(), re.MULTILINE)
    )
    known = {**generators, **of_sdk, **packages, **python}
    used |= {"openapi-typescript-codegen", "openapi-typescript", "openapi-fetch", "@hey-api/openapi-ts"}
    assert {name: shown.get(name) for name in used} == {name: known[name] for name in used}
