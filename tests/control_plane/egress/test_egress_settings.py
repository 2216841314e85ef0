"""What an operator sets for fetching is checked at the start, and `doctor` says what is missing."""

import pytest

from amplifier_api_server.control_plane import doctor
from amplifier_api_server.control_plane.catalog import git
from amplifier_api_server.control_plane.doctor import Health
from amplifier_api_server.control_plane.settings import Settings, SettingsError, load


def settings_of(tmp_path, section, **values) -> Settings:
    return load(None, {}, **{"server": {"data_dir": str(tmp_path)}, section: values})


@pytest.mark.parametrize(
    "mirrors",
    [
        {"https://github.com/": "file://relative/path"},
        {"https://github.com/": "/srv/mirrors"},
        {"https://github.com/": "ssh://git.internal/"},
        {"https://github.com/": "https://user:secret@git.internal/"},
        {"github.com/": "https://git.internal/"},
        {"": "https://git.internal/"},
    ],
)
def test_a_mirror_that_leads_nowhere_stops_the_start(tmp_path, mirrors):
    with pytest.raises(SettingsError, match=r"collections\.mirrors"):
        settings_of(tmp_path, "collections", mirrors=mirrors)


@pytest.mark.parametrize("host", ["*.internal", "https://git.internal", "git.internal/", "a b", ""])
@pytest.mark.parametrize("section", ["collections", "web"])
def test_a_private_host_is_named_in_full(tmp_path, section, host):
    with pytest.raises(SettingsError, match=rf"{section}\.private_hosts"):
        settings_of(tmp_path, section, private_hosts=[host])


@pytest.mark.parametrize("host", ["git.internal", "git.internal:8443", "10.0.0.1:80", "[::1]:8443", "::1"])
def test_a_host_with_or_without_a_port_can_be_named(tmp_path, host):
    assert settings_of(tmp_path, "web", private_hosts=[host]).web.private_hosts == (host,)


async def found_by_doctor(settings):
    return {one.name: one for one in await doctor._collections(settings)}


async def test_doctor_finds_git(tmp_path):
    assert (await found_by_doctor(settings_of(tmp_path, "collections")))["git"].health is Health.GOOD


async def test_doctor_says_that_git_is_missing_or_too_old(tmp_path, monkeypatch):
    monkeypatch.setattr(git, "is_there", lambda program: False)
    finding = (await found_by_doctor(settings_of(tmp_path, "collections")))["git"]
    assert (finding.health, "install git 2.37" in finding.advice) == (Health.WARNING, True)


async def test_doctor_says_that_certificates_or_a_mirror_are_not_there(tmp_path):
    settings = settings_of(
        tmp_path,
        "collections",
        ca_file=str(tmp_path / "no.pem"),
        mirrors={"https://github.com/": f"file://{tmp_path}/no"},
    )
    found = await found_by_doctor(settings)
    assert found["certificates"].health is Health.BAD
    assert found["mirrors"].health is Health.WARNING
