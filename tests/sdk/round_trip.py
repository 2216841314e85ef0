"""A round trip with what openapi-python-client makes. Prints one line of JSON."""

import importlib
import json
import os
import pkgutil

import amplifier_api_client
from amplifier_api_client import AuthenticatedClient
from amplifier_api_client.api.sessions import (
    create_session,
    execute,
    get_execution,
    get_session,
    list_sessions,
    stream_execution,
)
from amplifier_api_client.models.create_session import CreateSession
from amplifier_api_client.models.execute import Execute
from amplifier_api_client.models.execution_result import ExecutionResult
from amplifier_api_client.models.execution_started import ExecutionStarted
from amplifier_api_client.models.execution_view import ExecutionView
from amplifier_api_client.models.problem import Problem
from amplifier_api_client.models.session_page import SessionPage
from amplifier_api_client.models.session_view import SessionView


def events_of(text: str) -> list[str]:
    return [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]


def main() -> None:
    for module in pkgutil.walk_packages(amplifier_api_client.__path__, "amplifier_api_client."):
        importlib.import_module(module.name)
    client = AuthenticatedClient(base_url=os.environ["API"], token=os.environ["KEY"])
    session = create_session.sync(client=client, body=CreateSession(profile="foundation:base"))
    assert isinstance(session, SessionView)
    result = execute.sync(session.session_id, client=client, body=Execute(prompt="hello"))
    assert isinstance(result, ExecutionResult)
    # A stream in whole, as its call gives it: of an execution that was begun before.
    begun = execute.sync(session.session_id, client=client, body=Execute(prompt="hello", background=True))
    assert isinstance(begun, ExecutionStarted)
    whole = stream_execution.sync(session.session_id, begun.request_id, client=client)
    assert isinstance(whole, str)
    assert events_of(whole)[-1] == "complete"
    # A stream as it comes: the request that the call would send, read line by line.
    asked = execute._get_kwargs(session.session_id, body=Execute(prompt="hello", stream=True))
    with client.get_httpx_client().stream(**asked) as answer:
        text = "\n".join(answer.iter_lines())
    execution = get_execution.sync(session.session_id, result.request_id, client=client)
    assert isinstance(execution, ExecutionView)
    page = list_sessions.sync(client=client, limit=10)
    assert isinstance(page, SessionPage)
    missing = get_session.sync("sess_nobody", client=client)
    assert isinstance(missing, Problem)
    said = {
        "response": result.response,
        "tokens": result.usage.total_tokens,
        "events": events_of(text),
        "status": str(execution.status),
        "listed": session.session_id in [one.session_id for one in page.sessions],
        "code": missing.code,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
