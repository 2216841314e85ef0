"""Wheels from an index that the test serves: resolved together, never built, never what a runtime has itself."""

import hashlib
import importlib.metadata
import os
import subprocess
import sys

import pytest

from amplifier_api_server.control_plane.catalog import guarded_pip
from amplifier_api_server.control_plane.catalog.runtime_pins import runtime_pins
from amplifier_api_server.control_plane.catalog.source_limits import FetchLimits
from amplifier_api_server.control_plane.catalog.trees import Trees
from amplifier_api_server.control_plane.catalog.wheels import Wheels, _plain_bytes, checked_requirements
from amplifier_api_server.control_plane.settings import Collections
from amplifier_api_server.tenants.errors import DomainError
from tests.control_plane.catalog.wheel_index import WheelIndex, sdist

LIMITS = FetchLimits(max_bytes=4 * 1024**2, max_files=200, timeout_seconds=60)


@pytest.fixture
def index():
    with WheelIndex() as running:
        yield running


@pytest.fixture
def trees(tmp_path):
    return Trees(tmp_path / "trees")


@pytest.fixture
def download(index, trees):
    made = []

    async def download(*requirements, exclude=(), limits=LIMITS, **settings):
        wheels = Wheels(Collections.model_validate({"wheel_index": index.url, **settings}), trees)
        made.append(wheels)
        return await wheels.download(requirements, exclude=exclude, limits=limits)

    yield download
    for one in made:
        one.close()


async def refused(downloading) -> DomainError:
    with pytest.raises(DomainError) as error:
        await downloading
    return error.value


async def test_what_is_needed_is_downloaded_with_what_that_needs(index, trees, download):
    content = index.add("alpha", "1.2", requires=("beta-lib>=2",))
    index.add("beta-lib", "1.0")
    index.add("beta-lib", "2.1")
    found = await download("alpha<2")
    assert [(one.name, one.version) for one in found.wheels] == [("alpha", "1.2"), ("beta-lib", "2.1")]
    assert found.wheels[0].sha256 == hashlib.sha256(content).hexdigest()
    names = sorted(path.name for path in trees.path(found.tree).iterdir())
    assert names == ["alpha-1.2-py3-none-any.whl", "beta_lib-2.1-py3-none-any.whl"]


async def test_all_requirements_are_resolved_together(index, download):
    index.add("alpha", "1.0", requires=("shared<2",))
    index.add("beta", "1.0", requires=("shared>=1.5",))
    for version in ("1.0", "1.6", "2.0"):
        index.add("shared", version)
    found = await download("alpha", "beta")
    assert ("shared", "1.6") in [(one.name, one.version) for one in found.wheels]


async def test_what_a_runtime_has_is_resolved_against_and_never_downloaded(index, download):
    """Not even asked for by its file, though the index has another one of its name and version."""
    version = importlib.metadata.version("pydantic")
    index.add("pydantic", version, files={"pydantic/evil.py": ""})
    index.add("alpha", "1.0", requires=("pydantic>=2", "typing-extensions"))
    found = await download("alpha", "pydantic>=2", "amplifier-core")
    assert [one.name for one in found.wheels] == ["alpha"]
    assert not [path for path in index.asked if path.startswith("/files/pydantic")]


async def test_what_needs_another_version_of_what_a_runtime_has_is_a_conflict(index, download):
    index.add("alpha", "1.0", requires=("pydantic<2",))
    index.add("pydantic", "1.10")
    error = await refused(download("alpha"))
    assert error.stable_code == "requirements_conflict"
    assert "pydantic" in error.detail


async def test_requirements_that_exclude_each_other_are_a_conflict_that_names_them(index, trees, download):
    index.add("alpha", "1.0", requires=("shared<2",))
    index.add("beta", "1.0", requires=("shared>=2",))
    index.add("shared", "1.0")
    index.add("shared", "2.0")
    error = await refused(download("alpha", "beta"))
    assert error.stable_code == "requirements_conflict"
    assert "alpha" in error.detail
    assert "shared" in error.detail
    assert list(trees._folder.glob("*")) == []


async def test_a_package_without_a_wheel_is_named_and_its_setup_does_not_run(index, download, tmp_path):
    setup = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom setuptools import setup\nsetup()\n"
    index.files["only-source"] = {"only-source-1.0.tar.gz": sdist("only-source", "1.0", setup)}
    index.add("alpha", "1.0", requires=("only-source",))
    error = await refused(download("alpha"))
    assert error.stable_code == "wheel_not_found"
    assert "only-source" in error.detail
    assert not (tmp_path / "ran").exists()


async def test_a_package_that_is_not_there_is_named(download):
    error = await refused(download("no-such-thing==1"))
    assert error.stable_code == "wheel_not_found"
    assert "no-such-thing" in error.detail


@pytest.mark.parametrize("kind", ["https", "file", "git"])
async def test_a_wheel_that_names_a_dependency_by_its_address_gets_nothing_fetched_or_run(
    index, download, tmp_path, kind
):
    setup = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (tmp_path / "evil-1.0.tar.gz").write_bytes(sdist("evil", "1.0", setup))
    index.files["evil"] = {"evil-1.0.tar.gz": sdist("evil", "1.0", setup)}
    base = index.url.removesuffix("/simple/")
    address = {
        "https": f"{base}/files/evil/evil-1.0.tar.gz",
        "file": f"file://{tmp_path}/evil-1.0.tar.gz",
        "git": f"git+{base}/repo",
    }[kind]
    index.add("alpha", "1.0", requires=(f"evil @ {address}",))
    error = await refused(download("alpha"))
    assert error.stable_code in ("wheel_not_found", "requirements_conflict")
    assert not (tmp_path / "ran").exists()
    assert not [path for path in index.asked if "evil" in path or "repo" in path]


async def test_what_is_excluded_is_not_asked_for(index, download):
    index.add("alpha", "1.0")
    found = await download("alpha", "My_Own.Lib>=1", exclude=["my-own-lib"])
    assert [one.name for one in found.wheels] == ["alpha"]
    assert not [path for path in index.asked if "my-own-lib" in path]


async def test_nothing_needed_is_nothing_downloaded(index, download):
    assert (await download("my-own-lib", exclude=["my-own-lib"])).tree is None
    assert (await download("pydantic")).tree is None


async def test_a_marker_that_is_false_here_needs_nothing(index, download):
    index.add("alpha", "1.0")
    found = await download("alpha", "winonly; sys_platform == 'win32'")
    assert [one.name for one in found.wheels] == ["alpha"]


async def test_too_many_or_too_large_wheels_are_refused_and_nothing_is_left(index, trees, download):
    index.add("alpha", "1.0", requires=("beta",))
    index.add("beta", "1.0", files={"big.bin": "x" * 5 * 1024**2})
    assert (await refused(download("alpha"))).stable_code == "wheels_too_large"
    index.add("gamma", "1.0", requires=("delta",))
    index.add("delta", "1.0")
    assert (await refused(download("gamma", max_wheels=1))).stable_code == "wheels_too_large"
    assert list(trees._folder.glob("*")) == []


async def test_a_silent_index_is_left(index, download):
    index.is_silent = True
    limits = FetchLimits(max_bytes=10**6, max_files=10, timeout_seconds=3)
    assert (await refused(download("alpha", limits=limits))).stable_code == "wheels_timeout"


async def test_an_index_that_is_not_there_is_unreachable(download, monkeypatch):
    monkeypatch.setenv("PIP_RETRIES", "0")
    error = await refused(download("alpha", wheel_index="http://127.0.0.1:9/simple/"))
    assert error.stable_code == "wheels_unreachable"
    assert "127.0.0.1" not in error.detail


async def test_another_index_of_the_environment_does_not_mix_in(index, download, monkeypatch):
    with WheelIndex() as other:
        other.add("alpha", "9.9")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", other.url)
        index.add("alpha", "1.0")
        found = await download("alpha")
        assert found.wheels[0].version == "1.0"
        assert other.asked == []


async def test_without_a_setting_the_index_is_the_one_that_pip_is_configured_with(index, trees, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    index.add("alpha", "1.0")
    wheels = Wheels(Collections(), trees)
    try:
        assert (await wheels.download(["alpha"], limits=LIMITS)).wheels[0].name == "alpha"
    finally:
        wheels.close()


@pytest.mark.parametrize(
    "text",
    [
        "evil @ https://example.org/evil.whl",
        "evil @ file:///etc/passwd",
        "git+https://example.org/evil",
        "./evil",
        "/etc/evil.whl",
        "-r /etc/passwd",
        "--index-url=https://example.org",
        "alpha --hash=sha256:00",
        "alpha\n--index-url https://example.org",
        "alpha # comment",
        "",
        "a" * 2000,
    ],
)
def test_what_is_more_than_a_name_and_versions_is_invalid(text):
    with pytest.raises(DomainError) as error:
        checked_requirements([text])
    assert error.value.stable_code == "requirements_invalid"


def test_what_a_runtime_imports_is_pinned_as_it_is_installed():
    pins = runtime_pins()
    assert pins["amplifier-core"] == importlib.metadata.version("amplifier-core")
    assert {"pydantic", "pydantic-core", "typing-extensions", "pyyaml", "httptools", "uvloop"} <= set(pins)


AS_WHO = """
import os, runpy, sys
sys.argv = ["pip", "--version"]
os.setgroups([0, 7])
made = runpy.run_path(sys.orig_argv[-1], run_name="guarded")
made["_become_nobody"]()
try:
    open("/etc/shadow").read()
except PermissionError:
    print(os.getresuid(), os.getresgid(), os.getgroups(), open("/proc/self/status").read().split("CapEff:")[1][:17])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_pip_reads_what_a_tenant_chose_as_nobody_without_a_group_or_capability():
    ran = subprocess.run(
        [sys.executable, "-I", "-c", AS_WHO, guarded_pip.__file__],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    nobody = (65534,) * 3
    assert ran.stdout.split() == f"{nobody} {nobody} [] 0000000000000000".split(), ran.stderr


def test_what_pip_leaves_is_read_as_a_plain_file_or_not_at_all(tmp_path):
    """Whoever talked pip into something must not have us read a file of ours by a link of its."""
    secret, limits = tmp_path / "pepper", LIMITS
    secret.write_text("secret")
    (tmp_path / "link.whl").symlink_to(secret)
    (tmp_path / "hard.whl").hardlink_to(secret)
    os.mkfifo(tmp_path / "pipe.whl")
    (tmp_path / "folder.whl").mkdir()
    for name in ("link.whl", "hard.whl", "pipe.whl", "folder.whl", "missing.whl"):
        with pytest.raises(DomainError) as error:
            _plain_bytes(tmp_path / name, 100, limits)
        assert error.value.stable_code == "wheel_not_found"
    (tmp_path / "plain.whl").write_bytes(b"12345")
    assert _plain_bytes(tmp_path / "plain.whl", 5, limits) == b"12345"
    with pytest.raises(DomainError) as error:
        _plain_bytes(tmp_path / "plain.whl", 4, limits)
    assert error.value.stable_code == "wheels_too_large"
