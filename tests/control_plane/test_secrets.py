"""What is encrypted at rest opens for its owner, with its key, and in no other way."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from amplifier_api_server.control_plane.secrets import SealBroken, Vault, vault_of
from amplifier_api_server.control_plane.settings import Secrets, Server, Settings, SettingsError

KEY = b"k" * 32
OWNER = ("provider_key", "ten_1", "openai")
SECRET = SecretStr("sk-a-tenants-own-key")
TEXT = st.text(max_size=50)


@given(TEXT, st.lists(TEXT, max_size=3))
def test_what_is_sealed_opens_for_its_owner_and_is_not_to_be_read(secret, owner):
    vault = Vault(KEY)
    sealed = vault.seal(SecretStr(secret), tuple(owner))
    assert vault.open(sealed, tuple(owner)).get_secret_value() == secret
    assert len(secret) < 4 or secret.encode() not in sealed
    assert sealed != vault.seal(SecretStr(secret), tuple(owner))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_one_changed_byte_is_noticed(place, flip):
    vault = Vault(KEY)
    sealed = bytearray(vault.seal(SECRET, OWNER))
    sealed[place % len(sealed)] ^= flip
    with pytest.raises(SealBroken):
        vault.open(bytes(sealed), OWNER)


@pytest.mark.parametrize(
    "owner",
    [("provider_key", "ten_2", "openai"), ("provider_key", "ten_1", "other"), ("provider_key", "ten_1openai"), ()],
)
def test_what_is_anothers_does_not_open(owner):
    vault = Vault(KEY)
    with pytest.raises(SealBroken, match="somebody else"):
        vault.open(vault.seal(SECRET, OWNER), owner)


def test_another_key_is_named_as_the_reason():
    sealed = Vault(KEY).seal(SECRET, OWNER)
    assert Vault(KEY).sealed_here(sealed)
    assert not Vault(b"x" * 32).sealed_here(sealed)
    with pytest.raises(SealBroken, match=r"another secrets\.encryption_key"):
        Vault(b"x" * 32).open(sealed, OWNER)
    for cut in (b"", sealed[:1], sealed[:9], sealed[:15], sealed[:-1]):
        with pytest.raises(SealBroken):
            Vault(KEY).open(cut, OWNER)


def at(folder: Path, **given) -> Settings:
    return Settings(server=Server(data_dir=folder), secrets=Secrets(**given))


def test_a_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path):
    sealed = vault_of(at(tmp_path)).seal(SECRET, OWNER)
    assert vault_of(at(tmp_path)).open(sealed, OWNER) == SECRET
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "secrets" / "encryption_key").stat().st_mode) == 0o600
    with pytest.raises(SealBroken):
        vault_of(at(tmp_path / "elsewhere")).open(sealed, OWNER)


def test_a_configured_key_wins_and_leaves_no_file(tmp_path: Path):
    vault_of(at(tmp_path, encryption_key="e" * 32))
    assert list(tmp_path.iterdir()) == []


def test_a_short_or_spoiled_key_stops_the_start_and_is_left_alone(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"secrets\.encryption_key"):
        vault_of(at(tmp_path, encryption_key="short"))
    (tmp_path / "secrets").mkdir()
    path = tmp_path / "secrets" / "encryption_key"
    for content in ("", "abcd", "no hex"):
        path.write_text(content)
        with pytest.raises(SettingsError, match="encryption_key"):
            vault_of(at(tmp_path))
        assert path.read_text() == content
