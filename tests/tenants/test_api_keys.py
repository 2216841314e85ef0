from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.tenants import api_keys
from amplifier_api_server.tenants.ids import ALPHABET


def test_a_key_has_the_shape_that_clients_and_scanners_look_for():
    minted = api_keys.mint()
    assert re.fullmatch(r"amp_live_[0-9A-Za-z]{38}", minted.text)
    assert re.fullmatch(r"amp_[A-Za-z0-9]+_[A-Za-z0-9]{20,}", minted.text)
    assert api_keys.is_well_formed(minted.text)
    assert minted.text.endswith(minted.hint)


def test_no_two_keys_are_alike():
    assert len({api_keys.mint().text for _ in range(100)}) == 100


def test_a_key_is_not_in_its_repr():
    minted = api_keys.mint()
    assert minted.text not in repr(minted)


@given(st.integers(0, 46), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_told_without_a_lookup(position: int, other: str):
    text = api_keys.mint().text
    changed = text[:position] + other + text[position + 1 :]
    assert api_keys.is_well_formed(changed) == (changed == text)


@given(st.text(max_size=200))
def test_any_text_is_no_key_and_no_error(text: str):
    assert not api_keys.is_well_formed(text)


@pytest.mark.parametrize(
    "change",
    [lambda k: k[:-1], lambda k: k + "\n", lambda k: " " + k, lambda k: k + "a", lambda k: k.replace("live", "test")],
)
def test_a_cut_or_padded_key_is_not_well_formed(change):
    assert not api_keys.is_well_formed(change(api_keys.mint().text))


def test_longer_secrets_are_taken():
    head = "amp_live_" + "a" * 60
    assert api_keys.is_well_formed(head + api_keys.checksum(head))


def test_the_digest_depends_on_the_pepper_and_hides_the_key():
    text = api_keys.mint().text
    one, other = api_keys.digest(b"1" * 32, text), api_keys.digest(b"2" * 32, text)
    assert len(one) == 32
    assert one != other
    assert text.encode() not in one


def test_a_pepper_that_protects_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        api_keys.digest(b"short", api_keys.mint().text)
