"""What holds for every test."""

from collections.abc import Iterator

import pytest
import structlog

from amplifier_api_server.control_plane import db


@pytest.fixture(autouse=True, scope="session")
def databases_of_this_process() -> Iterator[None]:
    """They wait for no disk, since they outlive no test, and longer for each other. Servers that tests start are as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db, "_SYNCHRONOUS", "OFF")
        patch.setattr(db, "_WAIT_SECONDS", 60.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def tracebacks_of_this_process() -> None:
    """Plain ones: to draw the variables of every frame takes seconds for each error that a test has logged."""
    *before, _ = structlog.get_config()["processors"]
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*before, plain])
