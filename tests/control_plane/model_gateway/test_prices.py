"""What a count costs, and where prices and capabilities come from."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.model_gateway import catalogue
from amplifier_api_server.control_plane.model_gateway.catalogue import load_catalogue
from amplifier_api_server.control_plane.model_gateway.targets import Counted, Price, cost_microdollars
from amplifier_api_server.control_plane.money import dollars
from amplifier_api_server.control_plane.settings import SettingsError

TOKENS = st.integers(0, 2**40)
CENTS = st.integers(0, 10**7).map(lambda number: number / 10_000)
PRICES = st.builds(Price, CENTS, CENTS, st.none() | CENTS, st.none() | CENTS, st.none() | CENTS)


def counted(prompt: int, completion: int = 0, **more: int) -> Counted:
    return Counted(prompt, completion, prompt + completion, **more)


@pytest.mark.parametrize(
    ("count", "price", "expected"),
    [
        (counted(1_000_000, 1_000_000), Price(3, 15), 18_000_000),
        (counted(1000, 100, cached_tokens=800), Price(3, 15, 0.3), 600 + 240 + 1500),
        (counted(1000, 0, cached_tokens=800), Price(3, 15), 3000),
        (counted(1000, 0, cache_write_tokens=500), Price(3, 15, cache_write=3.75), 1500 + 1875),
        (
            counted(1000, 0, cache_write_tokens=500, cache_write_long_tokens=100),
            Price(3, 15, cache_write=3.75, cache_write_long=6),
            1500 + 1500 + 600,
        ),
        (counted(0, 100, reasoning_tokens=90), Price(3, 15), 1500),  # reasoning is part of the completion
        (counted(1), Price(0.5, 0), 1),  # half a microdollar is rounded up
        (counted(1), Price(0.4, 0), 0),
        (counted(3), Price(0.1, 0), 0),  # 0.1 is the operator's 0.1, not the nearest binary fraction
        (counted(5), Price(0.1, 0), 1),
        (counted(10, 0, cached_tokens=999, cache_write_tokens=999), Price(1, 1, 0.5), 5),
        (counted(100_000, 10), Price(0.1, 0.5, above_prompt_tokens=100_000, above=Price(0.5, 2.5)), 10_005),
        (counted(100_001, 10), Price(0.1, 0.5, above_prompt_tokens=100_000, above=Price(0.5, 2.5)), 50_026),
        (counted(5, 5), None, None),
        (counted(5, 5), Price(0, 0), 0),
    ],
)
def test_costs(count, price, expected):
    assert cost_microdollars(count, price) == expected


@given(TOKENS, TOKENS, TOKENS, TOKENS, PRICES)
def test_a_cost_is_exact_to_half_a_microdollar_and_never_negative(prompt, completion, cached, written, price):
    found = cost_microdollars(counted(prompt, completion, cached_tokens=cached, cache_write_tokens=written), price)
    read = min(cached, prompt)
    kept = min(written, prompt - read)

    def rate(one: float | None) -> Fraction:
        return Fraction(str(price.input if one is None else one))

    exact = (prompt - read - kept) * rate(None) + completion * Fraction(str(price.output))
    exact += read * rate(price.cached_input) + kept * rate(price.cache_write)
    assert abs(found - exact) <= Fraction(1, 2)
    assert found >= 0


@given(TOKENS, TOKENS, PRICES, st.integers(0, 10**6))
def test_more_tokens_never_cost_less(prompt, completion, price, more):
    small = cost_microdollars(counted(prompt, completion), price)
    assert cost_microdollars(counted(prompt + more, completion + more), price) >= small


@pytest.mark.parametrize(
    ("micro", "told"), [(0, "0.000000"), (1, "0.000001"), (1_234_567, "1.234567"), (10**15, "1000000000.000000")]
)
def test_money_is_told_to_the_last_digit(micro, told):
    assert dollars(micro) == told


def test_no_money_is_not_no_cost():
    assert dollars(None) is None


def test_every_shipped_price_says_where_and_when_it_was_published():
    for entry in catalogue._read(catalogue._SHIPPED):
        if entry.price is not None and entry.price.input:
            assert entry.price.source.startswith("https://"), entry.models
            assert entry.price.as_of is not None, entry.models
            assert entry.price.output >= entry.price.input >= (entry.price.cached_input or 0), entry.models


def test_a_dated_name_is_its_family_and_another_version_is_not():
    known = load_catalogue()
    assert (
        known.find("openai", "gpt-5-2025-08-07") == known.find("openai", "gpt-5") != known.find("openai", "gpt-5-mini")
    )
    assert known.find("c", "claude-sonnet-5-5") != known.find("c", "claude-sonnet-5")
    assert known.find("c", "claude-opus-5-9").price is None
    assert known.find("o", "gpt-5-of-somebody-else").price is None


def test_every_shipped_pattern_is_reached_by_what_it_names():
    entries = catalogue._read(catalogue._SHIPPED)
    known = load_catalogue()
    for entry in entries:
        for name in entry.models:
            plain = name.replace("20[0-9][0-9]*", "20261123").rpartition("/")[2]
            provider = name.partition("/")[0] if "/" in name else "p"
            assert known.find(provider, plain).list_price == entry.price, name


def test_the_operators_file_is_laid_over_the_shipped_one(tmp_path: Path):
    own = tmp_path / "models.yaml"
    own.write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "models": [
                    {"models": ["azure/gpt-5"], "price": {"input": 1, "output": 2}},
                    {"models": "my-*", "context_window": 8192, "tools": False},
                ],
            }
        )
    )
    known = load_catalogue(own)
    assert known.find("azure", "gpt-5").price == Price(1, 2)
    assert known.find("azure", "gpt-5").context_window == 400_000  # what it leaves out, the shipped one says
    assert known.find("openai", "gpt-5").price == Price(1.25, 10, 0.125)
    assert known.find("x", "my-model").context_window == 8192
    assert known.first_of("p", ["whisper", "gpt-4o", "gpt-5"]) == "gpt-5"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("version: 2", "version"),
        ("- 1", "the file"),
        ("version: 1\nmodels: [{models: [x], prise: {}}]", "prise"),
        ("version: 1\nmodels: [{models: []}]", "models.0.models"),
        ("version: 1\nmodels: [{models: [x], price: {input: -1, output: 2}}]", "price.input"),
        ("version: 1\nmodels: [{models: [x], price: {input: 1}}]", "price.output"),
        ("version: 1\nmodels: [{models: [x], price: {input: .nan, output: 1}}]", "price.input"),
        ("version: 1\nmodels: [{models: [x], price: {input: '1', output: 1}}]", "price.input"),
        ("version: 1\nmodels: [{models: [x], context_window: 1, max_output_tokens: 2}]", "max_output_tokens"),
        ("version: [", "YAML"),
    ],
)
def test_a_wrong_file_stops_the_start_and_says_where(tmp_path: Path, content: str, what: str):
    own = tmp_path / "own.yaml"
    own.write_text(content)
    with pytest.raises(SettingsError) as refused:
        load_catalogue(own)
    assert "models.catalog" in str(refused.value)
    assert str(own) in str(refused.value)
    assert what in str(refused.value)


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path):
    with pytest.raises(SettingsError, match="not-there"):
        load_catalogue(tmp_path / "not-there.yaml")
