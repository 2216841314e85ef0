"""The command line: `amplifier-api-server serve | openapi | migrate | tenants | members | keys | audit | usage | doctor |
backup | restore`, and, for those who use a server that runs elsewhere, `login | logout | whoami | token`.

Owns arguments and exit statuses: 0 done, 1 it could not be done, 2 the arguments or the configuration are wrong.
Everything else is imported by the command that needs it, so that `--help` answers at once. No wrong configuration is
a traceback.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from amplifier_api_server.control_plane.management import LocalManagement
    from amplifier_api_server.control_plane.settings import Settings

app = typer.Typer(
    name="amplifier-api-server",
    help="The hosted, multi-tenant API for Amplifier agents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
tenants = typer.Typer(no_args_is_help=True, help="Tenants of the data folder's database.")
keys = typer.Typer(no_args_is_help=True, help="API keys of the data folder's database.")
app.add_typer(tenants, name="tenants")
members = typer.Typer(no_args_is_help=True, help="Members of a tenant, in the data folder's database.")
app.add_typer(keys, name="keys")
app.add_typer(members, name="members")
audit = typer.Typer(no_args_is_help=True, help="The audit log of the data folder's database.")
app.add_typer(audit, name="audit")

_WRONG_CONFIGURATION = 2

ConfigOption = Annotated[Path | None, typer.Option("--config", help="config.yaml; or AMPLIFIER_CONFIG")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="where everything is kept; or DATA_DIR")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of a table")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="its id; the first tenant, if left out")]
LimitOption = Annotated[
    list[str] | None, typer.Option("--limit", help="NAME=NUMBER or NAME=unlimited; can be given again")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from amplifier_api_server import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Settings come from config.yaml, the environment, and the options here; later ones win."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="or PORT; 0 takes a free one")] = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    unsafe_no_sandbox: Annotated[
        bool, typer.Option("--unsafe-no-sandbox", help="run tools as you, with your files: for trying out alone")
    ] = False,
) -> None:
    """Serve the API until SIGTERM or SIGINT."""
    with _failures_in_words():
        settings = _settings(config, data_dir, host=host, port=port, unsafe_no_sandbox=unsafe_no_sandbox)
        from amplifier_api_server.control_plane.server import run

        status = run(settings)
    raise typer.Exit(status or 0)


@app.command()
def openapi(config: ConfigOption = None) -> None:
    """Print the OpenAPI document."""
    with _failures_in_words():
        settings = _settings(config, None)
        _quiet_logging()
        import json

        from amplifier_api_server.control_plane.framework import openapi_document

        typer.echo(json.dumps(openapi_document(settings), indent=2, ensure_ascii=False))


@app.command()
def migrate(data_dir: DataDirOption = None, config: ConfigOption = None) -> None:
    """Bring the database to this version's tables; `serve` does so by itself."""
    with _failures_in_words():
        settings = _settings(config, data_dir)
        from amplifier_api_server.control_plane.data_folder import made
        from amplifier_api_server.control_plane.migrations import head, in_words, migrate

        made(settings.server.data_dir)
        with in_words(settings.database_url):
            before = asyncio.run(migrate(settings.database_url))
        was = "it had no tables" if before is None else f"it was at {before}"
        typer.echo(f"the database is at revision {head()}" + ("" if before == head() else f"; {was}"))


@app.command()
def doctor(
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    unsafe_no_sandbox: Annotated[bool, typer.Option("--unsafe-no-sandbox", hidden=True)] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine can do, and what to do about what it can't. Fails when `serve` could not run."""
    with _failures_in_words():
        settings = _settings(config, data_dir, unsafe_no_sandbox=unsafe_no_sandbox)
        _quiet_logging()
        from amplifier_api_server.control_plane.commands.health import tell

        is_fit = asyncio.run(tell(settings, as_json=as_json))
    raise typer.Exit(0 if is_fit else 1)


@app.command()
def backup(
    archive: Annotated[Path, typer.Argument(help="the file to make, such as amplifier.tar.gz")],
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Write everything of the data folder into one file, while a server runs or none does."""
    with _failures_in_words():
        settings = _settings(config, data_dir)
        _quiet_logging()
        from amplifier_api_server.control_plane.commands import backups as do

        do.backup(settings, archive, as_json=as_json)


@app.command()
def restore(
    archive: Annotated[Path, typer.Argument(help="what `backup` made")],
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Bring everything back from a backup, into a data folder that is empty."""
    with _failures_in_words():
        settings = _settings(config, data_dir)
        _quiet_logging()
        from amplifier_api_server.control_plane.commands import backups as do

        do.restore(settings, archive, as_json=as_json)


@app.command()
def usage(
    tenant: TenantOption = None,
    group_by: Annotated[Literal["session", "day", "model", "member"], typer.Option(help="a row for each")] = "day",
    begins: Annotated[str | None, typer.Option("--from", help="inclusive: a UTC date, or a time with its zone")] = None,
    ends: Annotated[str | None, typer.Option("--to", help="exclusive")] = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """What a tenant used, by the ledger."""
    from amplifier_api_server.control_plane.commands import reports as do

    _manage(config, data_dir, lambda at: do.usage(at, tenant, group_by, begins, ends, as_json=as_json))


@tenants.command("list")
def list_tenants(data_dir: DataDirOption = None, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Tenants that are not deleted, newest first."""
    from amplifier_api_server.control_plane.commands import tenants as do

    _manage(config, data_dir, lambda at: do.show(at, as_json=as_json))


@tenants.command("create")
def create_tenant(
    name: str,
    tier: Annotated[str, typer.Option(help="free, default, pro, enterprise, or a configured one")] = "default",
    limit: LimitOption = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a tenant and print its admin key, once."""
    from amplifier_api_server.control_plane.commands import tenants as do

    _manage(config, data_dir, lambda at: do.create(at, name, tier, _limits(limit), as_json=as_json))


@tenants.command("suspend")
def suspend_tenant(tenant_id: str, data_dir: DataDirOption = None, config: ConfigOption = None) -> None:
    """Refuse its keys from now on; its data stays."""
    from amplifier_api_server.control_plane.commands import tenants as do

    _manage(config, data_dir, lambda at: do.set_status(at, tenant_id, "suspended"))


@tenants.command("restore")
def restore_tenant(tenant_id: str, data_dir: DataDirOption = None, config: ConfigOption = None) -> None:
    """Let a suspended tenant's keys in again."""
    from amplifier_api_server.control_plane.commands import tenants as do

    _manage(config, data_dir, lambda at: do.set_status(at, tenant_id, "active"))


@tenants.command("delete")
def delete_tenant(
    tenant_id: str,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Delete a tenant: its keys are revoked for good."""
    if not yes:
        typer.confirm(f"Delete {tenant_id} and revoke all its keys?", abort=True)
    from amplifier_api_server.control_plane.commands import tenants as do

    _manage(config, data_dir, lambda at: do.delete(at, tenant_id))


@keys.command("list")
def list_keys(
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    operators: Annotated[bool, typer.Option("--operators", help="operators' keys instead of a tenant's")] = False,
    as_json: JsonOption = False,
) -> None:
    """Keys that are not revoked, newest first."""
    from amplifier_api_server.control_plane.commands import keys as do

    _manage(config, data_dir, lambda at: do.show(at, tenant, operators=operators, as_json=as_json))


@keys.command("create")
def create_key(
    name: str,
    role: Annotated[
        str, typer.Option(help="admin, developer, readonly, one of the tenant's own; operator")
    ] = "developer",
    tenant: TenantOption = None,
    expires: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="the UTC day it ends on")] = None,
    limit: LimitOption = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, once. An operator's key belongs to no tenant."""
    from amplifier_api_server.control_plane.commands import keys as do

    _manage(config, data_dir, lambda at: do.create(at, tenant, name, role, expires, _limits(limit), as_json=as_json))


@keys.command("revoke")
def revoke_key(
    key_id: str, tenant: TenantOption = None, data_dir: DataDirOption = None, config: ConfigOption = None
) -> None:
    """End a key, a tenant's or an operator's."""
    from amplifier_api_server.control_plane.commands import keys as do

    _manage(config, data_dir, lambda at: do.revoke(at, tenant, key_id))


@keys.command("rotate")
def rotate_key(
    key_id: str,
    tenant: TenantOption = None,
    overlap: Annotated[int, typer.Option(help="for how many seconds the old key works on", min=0)] = 86_400,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Replace a key by a new one, and print that, once."""
    from amplifier_api_server.control_plane.commands import keys as do

    _manage(config, data_dir, lambda at: do.rotate(at, tenant, key_id, overlap, as_json=as_json))


@members.command("list")
def list_members(
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Members who are not removed, newest first."""
    from amplifier_api_server.control_plane.commands import members as do

    _manage(config, data_dir, lambda at: do.show(at, tenant, as_json=as_json))


@members.command("invite")
def invite_member(
    email: str,
    role: Annotated[str, typer.Option(help="admin, developer, readonly, or one of the tenant's own")] = "developer",
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    any_email: Annotated[bool, typer.Option("--any-email", help="whoever holds the link may take it")] = False,
    as_json: JsonOption = False,
) -> None:
    """Invite somebody who can log in, and print the link's path, once."""
    from amplifier_api_server.control_plane.commands import members as do

    _manage(config, data_dir, lambda at: do.invite(at, tenant, email, role, any_email=any_email, as_json=as_json))


@members.command("disable")
def disable_member(
    member_id: str, tenant: TenantOption = None, data_dir: DataDirOption = None, config: ConfigOption = None
) -> None:
    """Refuse a member's keys and logins from now on."""
    from amplifier_api_server.control_plane.commands import members as do
    from amplifier_api_server.tenants.lifecycle import MemberStatus

    _manage(config, data_dir, lambda at: do.set_status(at, tenant, member_id, MemberStatus.DISABLED))


@members.command("enable")
def enable_member(
    member_id: str, tenant: TenantOption = None, data_dir: DataDirOption = None, config: ConfigOption = None
) -> None:
    """Let a disabled member in again."""
    from amplifier_api_server.control_plane.commands import members as do
    from amplifier_api_server.tenants.lifecycle import MemberStatus

    _manage(config, data_dir, lambda at: do.set_status(at, tenant, member_id, MemberStatus.ACTIVE))


@audit.command("export")
def export_audit(
    tenant: TenantOption = None,
    begins: Annotated[str | None, typer.Option("--from", help="inclusive: a UTC date, or a time with its zone")] = None,
    ends: Annotated[str | None, typer.Option("--to", help="exclusive")] = None,
    format: Annotated[Literal["ndjson", "csv"], typer.Option()] = "ndjson",  # noqa: A002 - the option's name
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    *,
    operators: Annotated[
        bool, typer.Option("--operators", help="the operators' own log instead of a tenant's")
    ] = False,
) -> None:
    """Print a log, oldest first. That it was exported is in the log."""
    from amplifier_api_server.control_plane.commands import audit as do

    _manage(config, data_dir, lambda at: do.export(at, tenant, begins, ends, format, operators=operators))


ServerOption = Annotated[str | None, typer.Option("--server", help="its address, such as https://api.example.com")]


@app.command()
def login(
    server: ServerOption = None,
    name: Annotated[str | None, typer.Option(help="of this machine, as the key is named")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Get an API key of a server by way of your browser, and keep it. Prints an address and a code."""
    from amplifier_api_server.control_plane.commands import login as do

    with _failures_in_words():
        do.login(server, name, as_json=as_json)


@app.command()
def logout(server: ServerOption = None) -> None:
    """Forget a server's key, and revoke it if `login` had it made."""
    from amplifier_api_server.control_plane.commands import login as do

    with _failures_in_words():
        do.logout(server)


@app.command()
def whoami(server: ServerOption = None, *, as_json: JsonOption = False) -> None:
    """Who a server takes you for, by the key that `login` kept."""
    from amplifier_api_server.control_plane.commands import login as do

    with _failures_in_words():
        do.whoami(server, as_json=as_json)


@app.command()
def token(server: ServerOption = None) -> None:
    """Print the key that `login` kept, for other programs: curl -H "X-API-Key: $(amplifier-api-server token)"."""
    from amplifier_api_server.control_plane.commands import login as do

    with _failures_in_words():
        do.token(server)


def _settings(
    config: Path | None,
    data_dir: Path | None,
    *,
    host: str | None = None,
    port: int | None = None,
    unsafe_no_sandbox: bool = False,
) -> Settings:
    from amplifier_api_server.control_plane.settings import load

    given = {"host": host, "port": port, "data_dir": data_dir}
    overrides: dict[str, Mapping[str, Any]] = {"server": {name: one for name, one in given.items() if one is not None}}
    if unsafe_no_sandbox:
        overrides["sandbox"] = {"mode": "none"}
    return load(config, **overrides)


def _limits(given: list[str] | None) -> dict[str, int | str] | None:
    """`NAME=NUMBER` as the API takes it; what is wrong with a value is for the service to say."""
    if not given:
        return None
    pairs = [one.partition("=") for one in given]
    return {name.strip(): int(value) if value.strip().isdigit() else value.strip() for name, _, value in pairs}


def _manage(config: Path | None, data_dir: Path | None, work: Callable[[LocalManagement], Awaitable[None]]) -> None:
    """Run `work` on the data folder's database."""

    async def run(settings: Settings) -> None:
        from amplifier_api_server.control_plane.management import local_management

        async with local_management(settings) as at:
            await work(at)

    with _failures_in_words():
        settings = _settings(config, data_dir)
        _quiet_logging()
        asyncio.run(run(settings))


def _quiet_logging() -> None:
    """Standard output is for the answer; what goes wrong is on standard error."""
    import logging

    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@contextmanager
def _failures_in_words() -> Iterator[None]:
    """A wrong configuration ends with 2, what can't be done with 1, each with a sentence."""
    from amplifier_api_server.control_plane.settings import SettingsError
    from amplifier_api_server.tenants.errors import DomainError

    try:
        yield
    except SettingsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(_WRONG_CONFIGURATION) from None
    except DomainError as error:
        reason = getattr(error.__cause__, "orig", None)  # the database's own, where it is why
        typer.echo(f"{error.detail}: {reason}" if reason is not None else error.detail, err=True)
        raise typer.Exit(1) from None
    except OSError as error:  # a disk that is full or read-only, a file that is not ours
        typer.echo(str(error) or type(error).__name__, err=True)
        raise typer.Exit(1) from None
