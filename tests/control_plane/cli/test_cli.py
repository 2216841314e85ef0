from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from amplifier_api_server.control_plane.cli import app
from amplifier_api_server.control_plane.doctor import Finding, Health

runner = CliRunner()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A clean environment in an empty folder; and no command's logging is left behind."""
    for name in ("PORT", "DATA_DIR", "AMPLIFIER_CONFIG", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    structlog.reset_defaults()


def run(*arguments: str, status: int = 0) -> str:
    result = runner.invoke(app, arguments)
    assert result.exit_code == status, result.output
    return result.output


def run_json(*arguments: str):
    return json.loads(run(*arguments, "--json"))


@pytest.fixture
def tenant(folder: Path) -> str:
    run("migrate")
    return run_json("tenants", "create", "Birds", "--tier", "pro", "--limit", "tokens_per_day=unlimited")["id"]


def test_help_imports_nothing_heavy():
    code = """
import sys
from amplifier_api_server.control_plane.cli import app
heavy = {"fastapi", "sqlalchemy", "sqlmodel", "alembic", "uvicorn", "httpx2", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_version_needs_no_command():
    from amplifier_api_server import __version__

    assert run("--version") == f"{__version__}\n"


def test_every_command_has_help():
    for command in (
        [],
        ["serve"],
        ["openapi"],
        ["migrate"],
        ["doctor"],
        ["usage"],
        ["tenants", "create"],
        ["keys", "rotate"],
    ):
        assert "Usage" in run(*command, "--help")


@pytest.mark.parametrize("command", [["serve"], ["doctor"], ["tenants", "list"], ["openapi"], ["migrate"]])
def test_a_wrong_configuration_is_told_by_its_name_and_is_no_traceback(command: list[str], folder: Path):
    (folder / "config.yaml").write_text("sessions: {idle_timeout: soon}\nserver: {port: 99999999}\n")
    output = run(*command, status=2)
    assert "sessions.idle_timeout" in output
    assert "server.port" in output
    assert "Traceback" not in output


def test_a_configuration_file_that_is_not_there():
    assert "does not exist" in run("doctor", "--config", "nowhere.yaml", status=2)


def test_without_a_database_it_says_what_to_do():
    assert "serve" in run("tenants", "list", status=2)
    assert not Path(".data/amplifier.db").exists()


def test_migrate_twice(folder: Path):
    assert "it had no tables" in run("migrate", "--data-dir", "here")
    assert (folder / "here" / "amplifier.db").exists()
    assert "revision" in run("migrate", "--data-dir", "here")


def test_an_old_database_wants_migrating(folder: Path, monkeypatch: pytest.MonkeyPatch, tenant: str):
    monkeypatch.setattr("amplifier_api_server.control_plane.management.head", lambda: "9999")
    assert "run `migrate`" in run("tenants", "list", status=2)


def test_tenants(tenant: str):
    listed = run_json("tenants", "list")
    assert [(one["id"], one["tier"], one["limits"]) for one in listed] == [(tenant, "pro", {"tokens_per_day": None})]
    assert tenant in run("tenants", "list")
    assert "tokens_per_day=unlimited" in run("tenants", "list")
    assert "suspended" in run("tenants", "suspend", tenant)
    assert run_json("tenants", "list")[0]["status"] == "suspended"
    assert "active" in run("tenants", "restore", tenant)
    assert run("tenants", "delete", tenant, status=1)  # asks, and nobody answers
    run("tenants", "delete", tenant, "--yes")
    assert run_json("tenants", "list") == []
    assert "no tenant" in run("tenants", "suspend", tenant, status=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tenants", "create", "x", "--tier", "golden"], "free"),
        (["tenants", "create", " "], "name"),
        (["tenants", "create", "x", "--limit", "speed=1"], "limits.speed"),
        (["tenants", "create", "x", "--limit", "tokens_per_day=few"], "limits.tokens_per_day"),
        (["keys", "create", "x"], "--tenant"),
        (["keys", "create", "x", "--tenant", "ten_nobody"], "no tenant"),
        (["keys", "revoke", "key_nobody", "--tenant", "ten_nobody"], "no key"),
        (["usage", "--tenant", "ten_x", "--from", "soon"], "RFC 3339"),
    ],
)
def test_what_can_t_be_done_is_said(tenant: str, arguments: list[str], says: str):
    assert says in run(*arguments, status=1)


def test_keys(tenant: str):
    made = run_json("keys", "create", "bot", "--tenant", tenant, "--limit", "requests_per_minute=5")
    assert made["key"].startswith("amp_live_")
    assert made["limits"] == {"requests_per_minute": 5}
    new = run_json("keys", "rotate", made["id"], "--tenant", tenant)
    assert new["rotated_from"] == made["id"]
    run("keys", "revoke", made["id"], "--tenant", tenant)
    listed = run("keys", "list", "--tenant", tenant)
    assert new["id"] in listed
    assert made["id"] not in listed
    assert new["key"] not in listed
    assert "2020" not in listed
    assert "future" in run("keys", "create", "x", "--tenant", tenant, "--expires", "2020-01-01", status=1)


def test_operators_keys(tenant: str):
    made = run_json("keys", "create", "ops", "--role", "operator")
    assert [one["id"] for one in run_json("keys", "list", "--operators")] == [made["id"]]
    run("keys", "revoke", made["id"])
    assert run_json("keys", "list", "--operators") == []


def test_usage(tenant: str):
    found = run_json("usage", "--tenant", tenant, "--group-by", "model")
    assert found["usage"] == []
    assert found["totals"]["total_tokens"] == 0
    assert "total" in run("usage", "--tenant", tenant)


def test_the_audit_log_is_printed_and_that_it_was_is_in_it(tenant: str):
    made = run_json("keys", "create", "bot", "--tenant", tenant)
    entries = [json.loads(line) for line in run("audit", "export", "--tenant", tenant).splitlines()]
    found = next(one for one in entries if one["target"] == made["id"])
    assert (found["action"], found["actor"], found["door"]) == ("createKey", "cli", "cli")
    assert made["key"] not in json.dumps(entries)
    again = run("audit", "export", "--tenant", tenant, "--format", "csv")
    assert again.startswith("id,at,tenant_id,actor")
    assert "exportAuditEntries" in again
    assert run("audit", "export", "--tenant", tenant, "--to", "2020-01-01") == ""
    assert "a time with its zone" in run("audit", "export", "--tenant", tenant, "--from", "2020-01-01T00:00", status=1)
    assert "createTenant" not in run("audit", "export", "--operators")
    assert "there is no tenant ten_none" in run("audit", "export", "--tenant", "ten_none", status=1)


def test_openapi_is_json_and_nothing_else():
    document = json.loads(run("openapi"))
    assert document["openapi"].startswith("3.")
    assert "/v1/tenants" in document["paths"]
    assert document["paths"]["/v1/keys"]["post"]["operationId"] == "createKey"


def looked(monkeypatch: pytest.MonkeyPatch, sandbox: Finding | None = None) -> None:
    """Sandboxes have tests of their own; here one finding stands for them."""

    async def found(_settings: object) -> list[Finding]:
        return [sandbox or Finding("sandbox", Health.GOOD, "works")]

    monkeypatch.setattr("amplifier_api_server.control_plane.doctor._sandbox", found)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_the_doctor_finds_a_clean_machine_fit(monkeypatch: pytest.MonkeyPatch):
    looked(monkeypatch)
    monkeypatch.setenv("PORT", free_port())
    found = run_json("doctor")
    assert found["can_serve"] is True
    names = {one["name"]: one for one in found["findings"]}
    assert names["models"]["status"] == "warning"  # the demo is no model
    assert "OPENAI_API_KEY" in names["models"]["advice"]
    assert not Path(".data").exists()  # looking changed nothing
    assert "serve can run here" in run("doctor")


def test_the_doctor_says_what_to_do_about_a_sandbox_that_can_t_start(monkeypatch: pytest.MonkeyPatch):
    looked(monkeypatch, Finding("sandbox", Health.BAD, "no user namespaces", "allow them"))
    output = run("doctor", status=1)
    assert "no user namespaces" in output
    assert "allow them" in output


def test_the_doctor_finds_a_port_in_use(monkeypatch: pytest.MonkeyPatch):
    looked(monkeypatch)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("PORT", str(taken.getsockname()[1]))
        assert "--port" in run("doctor", status=1)


def test_the_doctor_finds_a_database_of_a_newer_version(monkeypatch: pytest.MonkeyPatch, tenant: str):
    import sqlite3

    looked(monkeypatch)
    monkeypatch.setenv("PORT", free_port())
    with sqlite3.connect(".data/amplifier.db") as database:
        database.execute("update alembic_version set version_num = '9999'")
    database.close()
    assert "newer version" in run("doctor", status=1)


def test_the_doctor_asks_a_provider_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    looked(monkeypatch)
    monkeypatch.setenv("PORT", free_port())
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port()}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    output = run("doctor")
    assert "model provider openai" in output
    assert "sk-secret" not in output
