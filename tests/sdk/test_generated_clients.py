"""Clients that are generated from the OpenAPI document: four generators, whose output compiles as strictly as can be and makes a
round trip against a running server. And two linters of the document, which find nothing.

`make sdk-test` runs it: it installs 150 MB from npm and PyPI, once for a machine.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests import installed
from tests.system.server import Server

from amplifier_api_server.control_plane.framework import openapi_document
from amplifier_api_server.control_plane.settings import Settings

HERE = Path(__file__).parent
SECONDS = 120
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the document and the programs, in which Node finds what was installed."""
    made = tmp_path_factory.mktemp("sdk")
    (made / "node_modules").symlink_to(installed.npm(HERE, "generators of clients") / "node_modules")
    (made / "package.json").write_text('{"type": "commonjs"}')
    (made / "openapi.json").write_text(json.dumps(openapi_document(Settings())))
    for one in HERE.iterdir():
        if one.suffix in (".ts", ".yaml") or one.name in ("tsconfig.json", "round_trip.py"):
            shutil.copy(one, made)
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("served") / "data")
    try:
        yield one.start()
        one.stop()
    finally:
        one.end()


def run(folder, *command, **environment):
    """What a program writes; fails with all that it said."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS, env=os.environ | environment
    )
    assert done.returncode == 0, f"{command[0]}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def npx(folder, program, *arguments):
    return run(folder, str(folder / "node_modules" / ".bin" / program), *arguments)


def check(said, server):
    found = json.loads(said.splitlines()[-1])
    assert "hello" in found.pop("response")
    assert found.pop("tokens") > 0
    events = found.pop("events")
    assert events[-1] == "complete"
    assert set(events[:-1]) == {"token"}
    assert found == {"status": "completed", "listed": True, "code": "session_not_found"}


@pytest.fixture(scope="module")
def built(folder):
    """What three generators make and three programs use, compiled together."""
    codegen = "node_modules/openapi-typescript-codegen/bin/index.js"  # whose command another package has as well
    run(folder, "node", codegen, "--input", "openapi.json", "--output", "generated/codegen")
    npx(folder, "openapi-typescript", "openapi.json", "-o", "generated/schema.ts")
    npx(folder, "openapi-ts", "-i", "openapi.json", "-o", "generated/heyapi", "--no-log-file")
    npx(folder, "tsc", "-p", ".")
    return folder / "built"


@pytest.mark.parametrize("program", ["codegen", "openapi_fetch", "heyapi"])
def test_a_client_in_typescript_compiles_and_makes_a_round_trip(built, program, server):
    said = run(built, "node", f"{program}.js", API=f"http://127.0.0.1:{server.port}", KEY=server.key)
    check(said, server)


def test_a_client_in_python_is_typed_and_makes_a_round_trip(folder, server):
    python = installed.python(HERE, "openapi-python-client")
    run(
        folder,
        python,
        "-m",
        "openapi_python_client",
        "generate",
        "--path",
        "openapi.json",
        "--output-path",
        "python",
        PATH=f"{Path(python).parent}:{os.environ['PATH']}",
    )
    shutil.move(folder / "round_trip.py", folder / "python")
    run(folder / "python", python, "-m", "mypy", "--strict", "amplifier_api_client", "round_trip.py")
    check(
        run(folder / "python", python, "round_trip.py", API=f"http://127.0.0.1:{server.port}", KEY=server.key), server
    )


# What redocly would have otherwise, and why it is not.
EXCEPTIONS = {
    # A browser is sent on from these: they answer with 303 alone.
    "operation-2xx-response": {"/auth/login/{provider}", "/auth/callback/{provider}", "/auth/invitation"},
    # Open to everybody and without parameters: there is nothing that they could refuse.
    "operation-4xx-response": {"/health", "/ready", "/metrics", "/asyncapi.json", "/auth/methods"},
}


def test_linters_find_nothing(folder):
    said = npx(folder, "spectral", "lint", "openapi.json", "--ruleset", "spectral.yaml", "--fail-severity", "hint")
    assert "No results" in said
    found: dict[str, set[str]] = {}
    for problem in json.loads(npx(folder, "redocly", "lint", "openapi.json", "--format", "json"))["problems"]:
        pointer = problem["location"][0]["pointer"].split("/")
        found.setdefault(problem["ruleId"], set()).add(pointer[2].replace("~1", "/"))
    assert found == EXCEPTIONS
