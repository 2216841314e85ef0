"""The `git` program, hardened: refs, one commit, and its objects; nothing is checked out and no code of a repository runs.

Owns git's options and environment, and what its exits mean. Refuses every protocol but the one that is asked for,
redirects (the client resolves them, checked), credentials, hooks, submodules, alternates, filters. Invariant: git connects
to the address that the client has checked, by that very address.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amplifier_api_server.control_plane.catalog.git_trees import read_listing, write_files
from amplifier_api_server.control_plane.catalog.source_limits import FetchLimits
from amplifier_api_server.control_plane.egress.addresses import HostRules, Place
from amplifier_api_server.control_plane.egress.client import Client
from amplifier_api_server.control_plane.egress.programs import (
    SEARCH_PATH,
    Bounds,
    Folders,
    Programs,
    RunTooLarge,
    RunTooLong,
    folders_of_nobody,
    is_there,
    size_of,
)
from amplifier_api_server.tenants.errors import DomainError, Invalid, TooLarge, Unavailable

MIN_VERSION = (2, 37)  # http.curloptResolve came with it
_SERVICE = "/info/refs?service=git-upload-pack"
_ADVERTISEMENT = "application/x-git-upload-pack-advertisement"
_HTTP_OK = 200
_NOT_OURS = frozenset({401, 403, 404, 410})  # that it is private is not told from that it is not there
_SLACK_BYTES = 64 * 1024**2  # of a repository beyond its newest files: trees, an index, what a delta needs
_LISTED_BYTES = 1024  # of one file's line in a listing, on average
# As git-check-ref-format(1) allows them, and shorter.
_REF = re.compile(r"(?!-|\.|/|@\Z)(?!.*(\.\.|//|@\{|\.lock(/|\Z)|/\.|/\Z|\.\Z))[^\x00-\x20\x7f~^:?*\[\\]{1,250}")
_FULL_SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_SHORT_SHA = re.compile(r"[0-9a-f]{7,63}")
_FETCHED = "refs/fetched/it"

_OPTIONS = {
    "protocol.allow": "never",
    "http.followRedirects": "false",  # and so no alternates that a server names
    "http.proxy": "",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "20",
    "http.userAgent": "git/2 (amplifier-api-server)",
    "http.maxRequests": "1",
    "credential.helper": "",
    "core.askPass": "",
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.symlinks": "false",
    "core.protectNTFS": "true",
    "core.protectHFS": "true",
    "core.bigFileThreshold": "16m",  # larger ones are streamed, not held
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "transfer.fsckObjects": "true",
    "transfer.bundleURI": "false",
    "fetch.uriProtocols": "",
    "fetch.unpackLimit": "1",
    "fetch.writeCommitGraph": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "pack.threads": "1",
    "init.defaultBranch": "main",
    # What old and honest histories have; none of it can harm who reads one commit.
    "fetch.fsck.zeroPaddedFilemode": "ignore",
    "fetch.fsck.badTimezone": "ignore",
    "fetch.fsck.missingSpaceBeforeDate": "ignore",
    "fetch.fsck.missingSpaceBeforeEmail": "ignore",
    "fetch.fsck.badEmail": "ignore",
    "fetch.fsck.missingEmail": "ignore",
    "fetch.fsck.multipleAuthors": "ignore",
}
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_PAGER": "cat",
}


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository over HTTP: where it was found, and at which checked address."""

    url: str
    place: Place
    address: str


@dataclass(frozen=True, slots=True)
class Commit:
    """What was written."""

    id: str
    warnings: tuple[str, ...]


class Git:
    """One for the process."""

    def __init__(self, programs: Programs, ca_bundle: Callable[[], bytes | None]) -> None:
        self._programs = programs
        self._ca_bundle = ca_bundle
        self._version: tuple[int, ...] | None = None

    async def find(self, client: Client, url: str, rules: HostRules, schemes: tuple[str, ...]) -> Remote:
        """Where a repository is, redirects followed. Raises EgressError; Invalid and Unavailable (`source_...`)."""
        status = 0
        for candidate in dict.fromkeys((url, url + ".git")):
            async with client.get(candidate + _SERVICE, schemes=schemes, rules=rules) as answer:
                status = answer.status
                if status == _HTTP_OK and answer.header("content-type").partition(";")[0].strip() == _ADVERTISEMENT:
                    if not answer.place.target.endswith(_SERVICE):
                        raise Invalid(f"{url} redirects to what is no repository", code="source_not_found")
                    place = answer.place
                    return Remote(place.url.removesuffix(_SERVICE), place, answer.address)
        if status == _HTTP_OK or status in _NOT_OURS:
            raise Invalid(f"{url} is no git repository that can be read without credentials", code="source_not_found")
        raise Unavailable(f"{url} answers {status}", code="source_unreachable", retry_after_seconds=30)

    async def fetch(self, remote: Remote, ref: str, into: Path, limits: FetchLimits) -> Commit:
        """Write the files of `ref` into the new folder `into`. Raises DomainError."""
        await self.check()
        with folders_of_nobody("git") as folders:
            bundle = await self._programs.do(self._ca_bundle)
            options = self._options_for(remote, folders, bundle)
            run = _Run(self._programs, folders, limits, options, unprivileged=True)
            await run.git("init", "--quiet", "--bare", "--template=", "--", "repo")
            wanted = await self._resolve(run, remote.url, ref)
            refspec = f"+{wanted}:{_FETCHED}"
            await run.git(*_IN, "fetch", *_QUIETLY, "--depth=1", "--", remote.url, refspec)
            commit = (await run.git(*_IN, "rev-parse", "--verify", "--quiet", f"{_FETCHED}^{{commit}}")).strip()
            return await _write(run, _IN, commit.decode(), into)

    async def read(self, repository: Path, ref: str, into: Path, limits: FetchLimits) -> Commit:
        """The same of a repository on this machine, the operator's, by its absolute path: only files are copied."""
        await self.check()
        here = [f"--git-dir={repository}"]
        with folders_of_nobody("git") as folders:
            run = _Run(self._programs, folders, limits, {}, unprivileged=False)
            for name in _candidates(ref, f"refs/remotes/origin/{ref}"):
                try:
                    found = await run.git(*here, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
                except UnknownName:
                    continue
                return await _write(run, here, found.strip().decode(), into)
        raise _no_ref(ref)

    async def check(self) -> None:
        """Raises Unavailable (`git_not_available`) where git is not there, or too old to be held to an address."""
        if self._version is None:
            self._version = await version_of_git()
        wanted = ".".join(map(str, MIN_VERSION))
        if self._version < MIN_VERSION:
            detail = f"the server has no git of version {wanted} or newer; send the collection as a zip"
            self._version = None  # it may be installed meanwhile
            raise Unavailable(detail, code="git_not_available")

    def _options_for(self, remote: Remote, folders: Folders, bundle: bytes | None) -> dict[str, str]:
        address = f"[{remote.address}]" if ":" in remote.address else remote.address
        options = {f"protocol.{remote.place.scheme}.allow": "always"}
        if remote.address != remote.place.host:  # an address resolves to itself
            options["http.curloptResolve"] = f"{remote.place.host}:{remote.place.port}:{address}"
        if bundle is not None:
            file = folders.own / "certificates.pem"
            file.write_bytes(bundle)
            file.chmod(0o644)
            options["http.sslCAInfo"] = str(file)
        return options

    async def _resolve(self, run: _Run, url: str, ref: str) -> str:
        """What to ask the server for: a ref by its full name, or a commit."""
        if _FULL_SHA.fullmatch(ref):
            return ref
        names = _candidates(ref)
        listed = await run.git("ls-remote", "--quiet", "--", url, *names)
        there = {line.partition(b"\t")[2].decode("utf-8", "replace") for line in listed.splitlines()}
        for name in names:
            if name in there:
                return name
        if _SHORT_SHA.fullmatch(ref):
            return await self._lengthened(run, url, ref)
        raise _no_ref(ref)

    async def _lengthened(self, run: _Run, url: str, short: str) -> str:
        """A shortened commit in full: of all commits that branches and tags lead to, without their files."""
        await run.git("init", "--quiet", "--bare", "--template=", "--", "history")
        here = ["--git-dir=history"]
        every = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
        await run.git(*here, "fetch", *_QUIETLY, "--filter=tree:0", "--", url, *every)
        try:
            found = await run.git(*here, "rev-parse", "--verify", "--quiet", f"{short}^{{commit}}")
        except UnknownName as error:
            raise _no_ref(short) from error
        return found.strip().decode()


_IN = ("--git-dir=repo",)
_QUIETLY = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-maintenance")


class UnknownName(Exception):
    """`rev-parse` knows no such name."""


class _Run:
    """Runs of git for one fetch, within one time."""

    def __init__(
        self, programs: Programs, folders: Folders, limits: FetchLimits, options: dict[str, str], *, unprivileged: bool
    ) -> None:
        self.limits = limits
        self.folders = folders
        self.programs = programs
        self._options = [part for name, value in (_OPTIONS | options).items() for part in ("-c", f"{name}={value}")]
        self._unprivileged = unprivileged
        self._ends_at = asyncio.get_running_loop().time() + limits.timeout_seconds
        self._count = 0

    async def git(self, *arguments: str, max_out_bytes: int = 1024**2) -> bytes:
        """Its output, all of it. Raises DomainError, UnknownName."""
        out = await self.to_file(*arguments, max_out_bytes=max_out_bytes)
        return await self.programs.do(out.read_bytes)

    async def to_file(self, *arguments: str, given: Path | None = None, max_out_bytes: int | None = None) -> Path:
        """Its output as a file. Raises DomainError, UnknownName."""
        limits, work = self.limits, self.folders.work
        self._count += 1
        out = self.folders.own / f"out{self._count}"
        most = limits.max_bytes + _SLACK_BYTES
        fetches = "fetch" in arguments
        bounds = Bounds(
            seconds=max(0.1, self._ends_at - asyncio.get_running_loop().time()),
            folder_bytes=most,
            file_bytes=most if fetches or max_out_bytes is None else max_out_bytes,
        )
        environment = {**_ENVIRONMENT, "HOME": str(work), "TMPDIR": str(work)}
        try:
            ran = await self.programs.run(
                ["git", "--no-pager", *self._options, *arguments],
                cwd=work,
                out=out,
                environment=environment,
                bounds=bounds,
                given=given,
                unprivileged=self._unprivileged,
            )
        except RunTooLong as error:
            raise _too_slow(limits) from error
        except RunTooLarge as error:
            raise _too_large(limits) from error
        if ran.status:
            is_full = size_of(work) >= most or (out.stat().st_size >= bounds.file_bytes > 0)
            raise _failed(arguments, ran.status, ran.error, limits, is_full=is_full)
        return out


async def _write(run: _Run, here: list[str] | tuple[str, ...], commit: str, into: Path) -> Commit:
    limits = run.limits
    most = limits.max_files * _LISTED_BYTES + 1024**2
    raw = await run.git(*here, "ls-tree", "-r", "-z", "-l", "--full-tree", commit, max_out_bytes=most)
    wanted = await run.programs.do(lambda: read_listing(raw, limits))
    ids = run.folders.own / "ids"
    ids.write_text("".join(f"{oid}\n" for oid in wanted.blobs))
    batch = await run.to_file(*here, "cat-file", "--batch", "--buffer", given=ids)

    def write() -> None:
        with batch.open("rb") as file:
            write_files(file, wanted, into)

    await run.programs.do(write)
    return Commit(commit, tuple(wanted.warnings))


def _candidates(ref: str, *further: str) -> list[str]:
    """The full names that a ref may have, the likelier first. Raises Invalid for what is no ref's name."""
    if not ref:
        return ["HEAD"]
    if not _REF.fullmatch(ref):
        raise _no_ref(ref)
    if ref.startswith("refs/"):
        return [ref]
    if _FULL_SHA.fullmatch(ref):
        return [ref]
    found = [f"refs/heads/{ref}", f"refs/tags/{ref}"]
    if further:  # on this machine: a commit's shortened id can be looked up at once
        found += [*further, *([ref] if _SHORT_SHA.fullmatch(ref) else [])]
    return found


async def version_of_git() -> tuple[int, ...]:
    """Of the git that is on the PATH; () where there is none."""
    if not is_there("git"):
        return ()
    process = await asyncio.create_subprocess_exec(
        "git", "--version", stdout=asyncio.subprocess.PIPE, env={"PATH": SEARCH_PATH, "HOME": os.devnull}
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 10)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    match = re.search(rb"(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else ()


# What git's exits mean.


def _no_ref(ref: str) -> Invalid:
    named = f"branch, tag or commit {ref[:100]!r}" if ref else "commit: it is empty"
    return Invalid(f"the repository has no {named}", code="source_not_found")


def _too_large(limits: FetchLimits) -> TooLarge:
    return TooLarge(f"the repository is larger than {limits.max_bytes} bytes", code="source_too_large")


def _too_slow(limits: FetchLimits) -> Unavailable:
    return Unavailable(
        f"the repository was not fetched within {limits.timeout_seconds:.0f} s",
        code="source_timeout",
        retry_after_seconds=30,
    )


_SAID = (
    # what git says, in its own words for LC_ALL=C; our code; what we say
    (r"couldn't find remote ref|not our ref|Server does not allow request|no such remote ref|did not send all", "ref"),
    (r"Authentication failed|could not read Username|returned error: 40[134]|not found", "absent"),
    (r"Operation too slow|timed out", "slow"),
    (r"signal 25|File size limit|signal 24|CPU time", "large"),
    (r"^error: object [0-9a-f]+: (.+)$|fsck error|invalid path|(hasDot\w+|bad\w+|gitmodules\w+):", "invalid"),
)


def _failed(
    arguments: tuple[str, ...], status: int, said: str, limits: FetchLimits, *, is_full: bool
) -> DomainError | UnknownName:
    if "rev-parse" in arguments:
        return UnknownName()
    kind = next((kind for pattern, kind in _SAID if re.search(pattern, said, re.MULTILINE)), "")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = re.sub(r"\s+", " ", lines[-1])[:200] if lines else f"git ended with {status}"
    if is_full or kind == "large":
        return _too_large(limits)
    asked_by_id = "fetch" in arguments and _FULL_SHA.match(arguments[-1].removeprefix("+"))
    if kind == "ref" or (asked_by_id and "expected 'packfile'" in said):  # a server without that commit just hangs up
        return Invalid("the repository does not give this commit or ref", code="source_not_found")
    if kind == "absent":
        return Invalid("the repository can't be read without credentials", code="source_not_found")
    if kind == "slow":
        return _too_slow(limits)
    if kind == "invalid":
        told = next((line for line in lines if "object" in line or "path" in line), reason)
        return Invalid(f"git refuses what the repository holds: {told[:200]}", code="invalid_archive")
    if status < 0:
        return TooLarge("git was stopped by its limits on memory or time", code="source_too_large")
    return Unavailable(f"the repository can't be fetched: {reason}", code="source_unreachable", retry_after_seconds=30)
