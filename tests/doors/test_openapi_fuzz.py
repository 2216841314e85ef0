"""What the OpenAPI document promises holds of every answer, whoever asks and whatever for."""

import httpx2
import pytest

from tests.doors.fuzzing import run
from tests.doors.honest import behave
from tests.doors.served import in_a_thread

ENDLESS = dict.fromkeys(
    ("requests_per_minute", "tokens_per_day", "concurrent_sessions", "sessions_per_user"), "unlimited"
)
# What no admin of a tenant can have done by values that are made up: there is no network to install from, nobody is asked
# for a consent, a device's code is a secret.
NEVER = {
    "POST /v1/collections",
    "GET /v1/collections/{name}",
    "DELETE /v1/collections/{name}",
    "POST /v1/sessions/{session_id}/executions/{request_id}/approvals/{approval_id}",
    "DELETE /v1/provider-keys/{provider}",
    "DELETE /v1/members/{member_id}",
    "DELETE /v1/invitations/{invitation_id}",
}
PROVIDER = {"name": "anthropic", "base_url": "http://127.0.0.1:9", "tenant_keys": "required"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with in_a_thread(tmp_path_factory.mktemp("fuzzed"), models={"providers": [PROVIDER]}) as one:
        behave(one.plane.fleet)
        yield one


def ask(served, method, path, key, **more):
    answer = httpx2.request(method, served.url + path, headers={"X-API-Key": key}, **more)
    assert answer.status_code < 400, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def document(served):
    return httpx2.get(served.url + "/openapi.json", timeout=60).json()


@pytest.fixture(scope="module")
def callers(served):
    """Keys by who they are: every one of a tenant without limits that matter."""
    tenants = {
        name: ask(served, "POST", "/v1/tenants", served.plane.operator_key, json={"name": name, "limits": ENDLESS})
        for name in ("admins", "readers")
    }
    body = {"name": "reader", "role": "readonly"}
    readonly = ask(served, "POST", "/v1/keys", tenants["readers"]["admin_key"], json=body)["key"]
    return {
        "admin": {"X-API-Key": tenants["admins"]["admin_key"]},
        "readonly": {"X-API-Key": readonly},
        "operator": {"X-API-Key": served.plane.operator_key},
        "nobody": {},
    }


def told(found):
    return "\n\n".join(f"{count} times: {text}" for text, count in found.findings.most_common(20))


@pytest.mark.timeout(300)  # half a minute where nothing else runs
def test_every_answer_to_an_admin_is_as_the_document_says(served, document, callers):
    found = run(
        document, served.url, callers["admin"], examples=2, phases=("examples", "coverage", "fuzzing", "stateful")
    )
    assert not found.findings, told(found)
    assert not found.refused_examples, "\n".join(found.refused_examples)
    assert found.requests > 1500
    silent = {label for label, statuses in found.statuses.items() if not any(one < 400 for one in statuses)}
    silent = {label for label in silent if "/v1/tenants" not in label and "/auth/" not in label}
    assert silent <= NEVER, silent - NEVER


@pytest.mark.parametrize("who", ["operator", "readonly", "nobody"])
def test_every_answer_to_others_is_as_the_document_says(served, document, callers, who):
    found = run(document, served.url, callers[who], examples=2, phases=("examples", "fuzzing"))
    assert not found.findings, told(found)
    assert found.requests > 100
