"""What the server keeps secret at rest: secrets of its own, in files of the data folder, and tenants' secrets, encrypted.

Owns making and reading those files, and the encryption. Invariants: a secret of the server's own is never made anew while a
file holds one; what is sealed opens only with the key, and for the purpose and the owner, that it was sealed with; what can't
be opened is an error that says why, never an empty secret.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from amplifier_api_server.control_plane.settings import Settings, SettingsError

MIN_SECRET_BYTES = 16
_MADE_BYTES = 32
_KEY_BYTES = 32  # AES-256
_NONCE_BYTES = 12  # NIST SP 800-38D, 8.2: random ones, for far fewer than 2**32 messages a key
_KEY_ID_BYTES = 8
_VERSION = b"\x01"


def folder_of(settings: Settings) -> Path:
    """Where embedded mode keeps secrets that nobody has set."""
    return settings.server.data_dir / "secrets"


def kept_secret(path: Path, what: str, lost: str, *, at_least_bytes: int = MIN_SECRET_BYTES) -> bytes:
    """The secret in this file, made where there is none. `what` it is, and what is `lost` without it, are for messages.

    Raises SettingsError where the file can't be read, or is cut off.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{what} can't be kept in {path}: {error}") from error
    if len(secret) < at_least_bytes:
        raise SettingsError(f"{what} in {path} is cut off; restore it, or {lost}")
    return secret


def _make(path: Path) -> None:
    """Write a new secret where none is, whole or not at all: of two processes that start at once, both use the first's."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_MADE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return
    finally:
        temporary.unlink()


class SealBroken(Exception):
    """What was sealed can't be opened; the message says why, and holds no secret."""


class Vault:
    """Seals secrets and opens them: AES-256-GCM, by a key that HKDF-SHA256 (RFC 5869) makes of the encryption key.

    What is sealed begins with a version and the key's id, so that another key is told apart from a forgery. `owner` is not in
    it, but authenticated: what was sealed for one opens for no other.
    """

    def __init__(self, encryption_key: bytes) -> None:
        self._cipher = AESGCM(_derived(encryption_key, b"sealing"))
        self._key_id = hashlib.sha256(_derived(encryption_key, b"key id")).digest()[:_KEY_ID_BYTES]

    def seal(self, secret: SecretStr, owner: tuple[str, ...]) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, secret.get_secret_value().encode(), _authenticated(owner))
        return _VERSION + self._key_id + nonce + sealed

    def open(self, sealed: bytes, owner: tuple[str, ...]) -> SecretStr:
        """Raises SealBroken."""
        version, key_id = sealed[:1], sealed[1 : 1 + _KEY_ID_BYTES]
        if version != _VERSION:
            raise SealBroken("it is of a version of this server that this one does not know")
        if key_id != self._key_id:
            raise SealBroken("it was encrypted with another secrets.encryption_key than the one that is set")
        rest = sealed[1 + _KEY_ID_BYTES :]
        try:
            opened = self._cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], _authenticated(owner))
        except (InvalidTag, ValueError) as error:
            raise SealBroken("it was changed, or belongs to somebody else") from error
        return SecretStr(opened.decode())

    def sealed_here(self, sealed: bytes) -> bool:
        """Whether it was sealed with this very key; opens nothing."""
        return sealed[:1] == _VERSION and sealed[1 : 1 + _KEY_ID_BYTES] == self._key_id

    def __repr__(self) -> str:
        return "Vault()"


def _derived(encryption_key: bytes, purpose: bytes) -> bytes:
    info = b"amplifier-api-server/1/" + purpose
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(encryption_key)


def _authenticated(owner: tuple[str, ...]) -> bytes:
    return json.dumps(owner).encode()  # unambiguous, whatever is in the parts


def vault_of(settings: Settings) -> Vault:
    """The vault of this installation; its key is made on the first start where none is set. Raises SettingsError."""
    given = settings.secrets.encryption_key
    if given is not None:
        key = given.get_secret_value().encode()
        if len(key) < _KEY_BYTES:
            message = f"should have at least {_KEY_BYTES} bytes, from a random source"
            raise SettingsError(f"secrets.encryption_key: {message}, as `openssl rand -hex 32` gives them")
        return Vault(key)
    what, lost = "the key that secrets are encrypted with", "tenants have to set their provider keys again"
    return Vault(kept_secret(folder_of(settings) / "encryption_key", what, lost, at_least_bytes=_MADE_BYTES))
