"""An issuer's public keys, as its JWKS document says them (RFC 7517). Pure.

Owns which keys are taken, and which algorithms each may prove. Invariant: what a key may prove follows from the key alone,
never from a token: a token's `alg` chooses among that, so an RSA key never verifies an HMAC (RFC 8725, 3.1).
"""

from __future__ import annotations

import warnings
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key
from joserfc.jws import JWSRegistry

log = structlog.get_logger(__name__)

MAX_KEYS: Final = 100
_MAX_KID_CHARS: Final = 256
_RSA_BITS: Final = range(2048, 8193)  # below it is broken, above it a check costs milliseconds
_MAX_EXPONENT_BYTES: Final = 4
_OF_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_OF_CURVE: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA", "Ed25519"}),  # two names of one algorithm (RFC 9864)
}
_PUBLIC: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}


class Unusable(Exception):
    """A key or a document that proves nothing here; the message says why, for the operator."""


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """A public key that signatures are checked with."""

    kid: str | None
    thumbprint: str  # RFC 7638: the key itself, whatever it is called
    algorithms: frozenset[str]
    key: Key

    def proves(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Whether this key made the signature, by that algorithm."""
        if algorithm not in self.algorithms:
            return False
        model = JWSRegistry.algorithms[algorithm]
        try:
            model.check_key(self.key)
            return bool(model.verify(signed, signature, self.key))
        except (JoseError, ValueError, TypeError):
            return False


def keys_in(document: Any, issuer: str) -> list[IssuerKey]:
    """The keys of a JWKS document that can be used; the others are logged and skipped. Raises Unusable for no JWKS."""
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise Unusable("it has no list of keys")
    found: list[IssuerKey] = []
    for one in listed[:MAX_KEYS]:
        try:
            key = key_of(one)
        except Unusable as error:
            log.info("a key of an issuer is not used", issuer=issuer, why=str(error))
            continue
        if key is not None:
            found.append(key)
    return found


def key_of(given: Any) -> IssuerKey | None:
    """A key of the document; None for one that is not for signatures. Raises Unusable."""
    if not isinstance(given, dict):
        raise Unusable("it is no object")
    operations = given.get("key_ops")
    if given.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return None
    kind, kid = given.get("kty"), given.get("kid")
    if kid is not None and not (isinstance(kid, str) and len(kid) <= _MAX_KID_CHARS):
        raise Unusable("its kid is no text, or too long")
    if not isinstance(kind, str) or kind not in _PUBLIC:
        raise Unusable(f"its kty is {str(kind)[:20]!r}; RSA, EC and OKP are taken")
    if "d" in given:
        raise Unusable(f"{kid!r} was published with its private part: whoever reads it can sign")
    public: dict[str, str | list[str]] = {
        name: given[name] for name in _PUBLIC[kind] if isinstance(given.get(name), str)
    }
    if len(public) < len(_PUBLIC[kind]):
        raise Unusable(f"{kid!r} lacks {', '.join(_PUBLIC[kind])}")
    try:
        algorithms = _allowed(kind, public, given.get("alg"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            key = JWKRegistry.import_key({"kty": kind, **public})
        return IssuerKey(kid, key.thumbprint(), algorithms, key)
    except (JoseError, ValueError, TypeError, Warning) as error:
        raise Unusable(f"{kid!r} can't be read: {type(error).__name__}") from error


def _allowed(kind: str, public: Mapping[str, Any], named: Any) -> frozenset[str]:
    """What it may prove. Raises Unusable."""
    if kind == "RSA":
        modulus, exponent = _integer(public["n"]), urlsafe_b64decode(_padded(public["e"]))
        if modulus.bit_length() not in _RSA_BITS or len(exponent) > _MAX_EXPONENT_BYTES:
            raise Unusable(f"an RSA key has {modulus.bit_length()} bits; 2048 to 8192 are taken")
        possible = _OF_RSA
    else:
        possible = _OF_CURVE.get((kind, public["crv"]), frozenset())
    if isinstance(named, str):
        same = {"EdDSA", "Ed25519"} if named in ("EdDSA", "Ed25519") else {named}
        possible = possible & same
    if not possible:
        raise Unusable(
            f"nothing that is taken here is proved by {kind} {str(public.get('crv', ''))[:20]} {named!s:.20}"
        )
    return possible


def _integer(text: str) -> int:
    return int.from_bytes(urlsafe_b64decode(_padded(text)), "big")


def _padded(text: str) -> str:
    return text + "=" * (-len(text) % 4)
