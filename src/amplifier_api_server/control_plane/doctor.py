"""What this machine can do, tried rather than guessed, and what to do about what it can't.

Every examination has a timeout, changes nothing that stays, and never raises: its finding is the answer.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from enum import Enum

from amplifier_api_server.control_plane.data_folder import is_held, require_whole
from amplifier_api_server.control_plane.disk import Floor, room_of
from amplifier_api_server.control_plane.secrets import folder_of, vault_of
from amplifier_api_server.control_plane.settings import ModelProvider, Settings, SettingsError

_MIN_PYTHON = (3, 11)
_PROVIDER_SECONDS = 5.0
_EXAMINATION_SECONDS = 60.0
_SERVER_ERROR = 500


class Health(Enum):
    GOOD = "ok"
    WARNING = "warning"
    BAD = "failed"  # `serve` could not run


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    health: Health
    says: str
    advice: str = ""


async def examine(settings: Settings) -> list[Finding]:
    """Every finding, in the order of what depends on what."""
    examinations: list[tuple[str, Callable[[Settings], Awaitable[list[Finding]]]]] = [
        ("python", _python),
        ("data folder", _data_folder),
        ("database", _database),
        ("address", _address),
        ("sandbox", _sandbox),
        ("models", _models),
        ("collections", _collections),
    ]
    found: list[Finding] = []
    for name, look in examinations:
        try:
            async with asyncio.timeout(_EXAMINATION_SECONDS):
                found += await look(settings)
        except SettingsError as error:
            found.append(Finding(name, Health.BAD, str(error)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the doctor found
            found.append(Finding(name, Health.BAD, f"could not be looked at: {type(error).__name__}: {error}"))
    return found


async def _python(_settings: Settings) -> list[Finding]:
    says = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.release()}"
    if sys.version_info < _MIN_PYTHON:
        return [Finding("python", Health.BAD, says, "install Python 3.11 or newer")]
    return [Finding("python", Health.GOOD, says)]


async def _data_folder(settings: Settings) -> list[Finding]:
    folder = settings.server.data_dir.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return [Finding("data folder", Health.BAD, f"{there} can't be written", "set DATA_DIR to a folder of yours")]
    require_whole(folder)
    room = room_of(there)
    says = f"{folder} can be written; {room.bytes / 1024**3:.1f} GiB are free"
    if lack := Floor.of(settings.sandbox).lack(room):
        return [Finding("data folder", Health.BAD, says, f"free some; no sandbox starts while {lack}")]
    if is_held(settings.server.data_dir):
        return [Finding("data folder", Health.GOOD, says + "; a server is using it now")]
    return [Finding("data folder", Health.GOOD, says)]


async def _database(settings: Settings) -> list[Finding]:
    from amplifier_api_server.control_plane.migrations import head, in_words, require_known, revision_of

    if settings.database_url.startswith("sqlite") and not (settings.server.data_dir / "amplifier.db").exists():
        return [Finding("database", Health.GOOD, "none yet; `serve` makes it")]
    with in_words(settings.database_url):
        revision = await revision_of(settings.database_url)
    require_known(revision)
    if revision != head():
        says = f"at revision {revision}; this version wants {head()}"
        return [Finding("database", Health.WARNING, says, "nothing: `serve` migrates it, and so does `migrate`")]
    return [
        Finding("database", Health.GOOD, f"at revision {revision}, as this version wants it"),
        *await _whole_database(settings),
    ]


async def _whole_database(settings: Settings) -> list[Finding]:
    """Whether its pages are sound, and its keys' secrets there. Reads all of it."""
    from amplifier_api_server.control_plane.auth.pepper import pepper_of, require_pepper
    from amplifier_api_server.control_plane.db import Database

    database = Database(settings.database_url)
    try:
        told = await database.quick_check()
        if told != "ok":
            advice = "restore a backup: `amplifier-api-server restore --help`"
            return [Finding("database", Health.BAD, f"its pages are spoiled: {told[:300]}", advice)]
        await require_pepper(database, settings)
    finally:
        await database.close()
    for name, read in (("pepper", pepper_of), ("encryption_key", vault_of)):
        if (folder_of(settings) / name).exists():  # or it would be made
            read(settings)
    return [
        Finding("secrets", Health.GOOD, "what keys are hashed with, and what secrets are encrypted with, can be read")
    ]


async def _address(settings: Settings) -> list[Finding]:
    host, port = settings.server.host, settings.server.port
    says = f"{host}:{port}"
    if is_held(settings.server.data_dir):
        return [Finding("address", Health.GOOD, f"{says}; not tried, because a server runs")]
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family[0], family[1])) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(family[4])
    except OSError as error:
        advice = "set PORT (or --port) to a free one, --host to an address of this machine"
        return [Finding("address", Health.BAD, f"{says} can't be listened on: {error.strerror or error}", advice)]
    return [Finding("address", Health.GOOD, f"{says} is free")]


async def _sandbox(settings: Settings) -> list[Finding]:
    from amplifier_api_server.control_plane.pods.sandbox_check import check

    report = await check(settings.sandbox)
    if report.mode == "none":
        advice = "leave out --unsafe-no-sandbox wherever anybody but you can call the API"
        return [Finding("sandbox", Health.WARNING, report.notes[0], advice)]
    if not report.works:
        why, *advice_lines = report.problems
        return [Finding("sandbox", Health.BAD, why, "; ".join(advice_lines) or "run on Linux")]
    found = [Finding("sandbox", Health.GOOD, note) for note in report.notes]
    advice = (
        "let the server make control groups: run it as root, by systemd with Delegate=yes, or in a container with a "
        "cgroup of its own that can be written"
    )
    return found + [Finding("sandbox", Health.WARNING, one, advice) for one in report.watched]


async def _collections(settings: Settings) -> list[Finding]:
    """Whether what tenants name can be fetched: git is there, and what the operator names can be read."""
    from amplifier_api_server.control_plane.catalog.git import MIN_VERSION, version_of_git
    from amplifier_api_server.control_plane.catalog.mirrors import local_path
    from amplifier_api_server.control_plane.egress.certificates import context_of

    found = []
    version, wanted = await version_of_git(), ".".join(map(str, MIN_VERSION))
    if version >= MIN_VERSION:
        found.append(Finding("git", Health.GOOD, f"{'.'.join(map(str, version))} is installed"))
    else:
        says = f"git {'.'.join(map(str, version))} is too old" if version else "git is not installed"
        advice = f"install git {wanted} or newer; until then collections come as zips alone"
        found.append(Finding("git", Health.WARNING, says, advice))
    try:
        context_of(settings.collections.ca_file)
    except OSError as error:
        found.append(
            Finding("certificates", Health.BAD, f"collections.ca_file can't be read: {error}", "mend the file")
        )
    for beginning, target in settings.collections.mirrors.items():
        path = local_path(target)
        if path is not None and not path.exists():
            says = f"{beginning} is mirrored at {target}, which is not there"
            found.append(Finding("mirrors", Health.WARNING, says, "mend collections.mirrors, or mount the folder"))
    return found


async def _models(settings: Settings) -> list[Finding]:
    from amplifier_api_server.control_plane.model_gateway.catalogue import load_catalogue

    try:
        load_catalogue(settings.models.catalog)
    except SettingsError as error:
        return [Finding("models", Health.BAD, str(error), "mend the file, or leave models.catalog out")]
    if not settings.models.providers:
        says = "none is configured: the built-in demo answers, which is no model"
        advice = "set OPENAI_API_KEY, OPENAI_BASE_URL, or models.providers in config.yaml"
        return [Finding("models", Health.WARNING, says, advice)]
    return [await _provider(one) for one in settings.models.providers]


async def _provider(provider: ModelProvider) -> Finding:
    """Whether it answers, asked as the gateway asks: through the same proxies, with the same certificates."""
    from amplifier_api_server.control_plane.model_gateway.providers import headers_for, target_of, url_for
    from amplifier_api_server.control_plane.model_gateway.upstream import Timeouts, Upstream, UpstreamError
    from amplifier_api_server.control_plane.model_names import dialects_of

    target = target_of(provider)
    name, url = f"model provider {provider.name}", url_for(target, "/models")
    upstream = Upstream()
    try:
        headers = headers_for(target, dialects_of(provider)[0])
        answer = await upstream.call("GET", url, headers, b"", Timeouts(_PROVIDER_SECONDS, _PROVIDER_SECONDS))
        status = answer.status
    except UpstreamError as error:
        return Finding(name, Health.WARNING, str(error), "check base_url and the network")
    finally:
        await upstream.close()
    if status in (401, 403):
        return Finding(name, Health.WARNING, f"{url} answers {status}", "check its API key")
    if status >= _SERVER_ERROR:
        return Finding(name, Health.WARNING, f"{url} answers {status}", "it has trouble of its own; try again later")
    return Finding(name, Health.GOOD, f"{url} answers {status}")
