"""Which keys of an issuer are taken, and what each may prove."""

from __future__ import annotations

import os
from typing import Any

import pytest
from joserfc.jws import JWSRegistry

from amplifier_api_server.control_plane.auth.key_sets import MAX_KEYS, Unusable, key_of, keys_in
from tests.control_plane.auth.issuer import b64, ec, ed, published, rsa

RSA_ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}


@pytest.mark.parametrize(
    ("listed", "proves"),
    [
        (lambda: published(rsa(), "k"), RSA_ALGORITHMS),
        (lambda: published(rsa(), "k", alg="PS256"), {"PS256"}),
        (lambda: published(ec(), "k"), {"ES256"}),
        (lambda: published(ec("P-384"), "k"), {"ES384"}),
        (lambda: published(ed(), "k"), {"EdDSA", "Ed25519"}),
        (lambda: published(ed(), "k", alg="EdDSA"), {"EdDSA", "Ed25519"}),
    ],
)
def test_a_key_proves_what_its_kind_can_and_no_more_than_it_says(listed: Any, proves: set[str]):
    key = key_of(listed())
    assert key is not None
    assert key.algorithms == proves


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        (lambda: {"kty": "RSA", "n": b64(b"\xff" * 128), "e": "AQAB"}, "1024 bits"),
        (lambda: {"kty": "RSA", "n": b64(b"\xff" * 1025), "e": "AQAB"}, "8200 bits"),
        (lambda: {"kty": "RSA", "n": b64(b"\xff" * 256), "e": b64(os.urandom(200))}, "bits"),
        (lambda: {"kty": "RSA", "kid": "odd", "n": "A", "e": "AQAB"}, "odd"),
        (lambda: {"kty": "oct", "k": b64(b"x" * 32)}, "kty"),
        (lambda: {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"}, "secp256k1"),
        (lambda: {"kty": "OKP", "crv": "X25519", "x": b64(b"x" * 32)}, "X25519"),
        (lambda: published(rsa(), "k", alg="ES256"), "ES256"),
        (lambda: {**rsa().as_dict(private=True), "kid": "k"}, "private"),
        (lambda: published(rsa(), 7), "kid"),
        (lambda: published(rsa(), "x" * 300), "kid"),
        (lambda: None, "object"),
    ],
)
def test_a_key_that_can_not_be_used_says_why(listed: Any, says: str):
    with pytest.raises(Unusable, match=says):
        key_of(listed())


def test_a_key_proves_nothing_by_an_algorithm_that_is_not_its_own():
    """Not even what it did sign: the token's header chooses among what the key may prove, it adds nothing."""
    key = key_of(published(rsa(), "k", alg="PS256"))
    assert key is not None
    for algorithm in ("RS256", "PS256"):
        signature = JWSRegistry.algorithms[algorithm].sign(b"text", rsa())
        assert key.proves(algorithm, b"text", signature) == (algorithm == "PS256")
    assert not key.proves("HS256", b"text", b"x" * 32)
    assert not key.proves("none", b"text", b"")


def test_a_list_of_keys_has_an_end():
    listed = {"keys": [published(ec(), str(number)) for number in range(MAX_KEYS + 50)]}
    assert len(keys_in(listed, "i")) == MAX_KEYS
