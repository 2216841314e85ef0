"""Servers for the tests here: one for each module, and others where a test wants its own.

A module says by a fixture `settings` which environment its server has, and by `EXPECTED_ERRORS` (parts of log lines) what
may be logged as an error. Anything else that is logged so fails the module: it is a failure that nobody would see.
"""

import pytest

from tests.control_plane.logins.browser import Browser
from tests.oidc_provider.process import running
from tests.system.server import FREE, Caller, Server


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def server(request, settings, tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("served") / "data", settings)
    try:
        one.start()
        yield one
        one.stop()
        assert_no_errors(one, getattr(request.module, "EXPECTED_ERRORS", ()))
    finally:
        one.end()


@pytest.fixture(scope="module")
def issuer():
    """A real OpenID Connect provider."""
    with running() as found:
        yield found


@pytest.fixture
async def browser(server):
    """A person's, at the server."""
    made = Browser(home=f"http://127.0.0.1:{server.port}")
    yield made
    await made.close()


@pytest.fixture
def make_server(tmp_path):
    """Makes servers that the test starts, kills and starts again as it likes."""
    made: list[Server] = []

    def make(**environment: str) -> Server:
        made.append(Server(tmp_path / f"data{len(made)}", environment))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def me(server) -> Caller:
    """The admin of a new tenant without limits that matter."""
    return server.tenant(**FREE)


def assert_no_errors(server: Server, expected: tuple[str, ...] = ()) -> None:
    """Nothing went wrong inside that nobody was told of."""
    found = [line for line in server.logged("error") if not any(part in str(line) for part in expected)]
    assert not found, found[:5]
