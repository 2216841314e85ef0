"""Where settings come from, who wins, and what is said about a wrong one."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.sections import Section
from amplifier_api_server.control_plane.settings import Settings, SettingsError, load, parse_duration, parse_size


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_nothing_set_is_the_embedded_mode(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(environ={}) == Settings()


def test_the_environment_beats_the_file_and_the_command_line_beats_both(tmp_path):
    path = written(tmp_path, "server: {port: 1}\nsessions: {idle_timeout: 1m, max_duration: 2h}\n")
    environ = {"AMPLIFIER_SESSIONS__IDLE_TIMEOUT": "5m", "PORT": "2"}
    found = load(path, environ, server={"port": 3})
    assert found.server.port == 3
    assert found.sessions.idle_timeout == timedelta(minutes=5)
    assert found.sessions.max_duration == timedelta(hours=2)


def test_lists_and_mappings_can_come_from_the_environment():
    environ = {
        "AMPLIFIER_CORS__ALLOWED_ORIGINS": "[https://a.example]",
        "AMPLIFIER_RATE_LIMITING__TIERS__PRO__REQUESTS_PER_MINUTE": "7",
    }
    found = load(environ=environ)
    assert found.cors.allowed_origins == ("https://a.example",)
    assert found.limits_of("pro").requests_per_minute == 7


@pytest.mark.parametrize(
    "text", ["123456789012345678901234567890123456", "12e4", "0x1f", "null", "yes", "[a", "2026-11-30", "a: b", "'q'"]
)
def test_text_from_the_environment_is_text_whatever_it_looks_like(text):
    found = load(environ={"AMPLIFIER_SECRETS__ENCRYPTION_KEY": text, "AMPLIFIER_MODELS__DEFAULT": text})
    assert found.secrets.encryption_key.get_secret_value() == text
    assert found.models.default == text


def numbers(section: type[Section], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every setting that is a number, a size or a duration."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from numbers(field.annotation, (*path, name))
        elif field.annotation in (int, float, timedelta):
            yield (*path, name)


@pytest.mark.parametrize("path", list(numbers(Settings)), ids=".".join)
def test_true_is_no_number(path):
    environ = {f"AMPLIFIER_{'__'.join(path).upper()}": "true"}
    with pytest.raises(SettingsError, match=rf"{path[-1]}.*should"):
        load(environ=environ)


CLIENT = "[{type: oauth2, provider: github, client_id: x, client_secret_env: THE_SECRET}]"


@pytest.mark.parametrize("around", ["{}\n", " {}\r\n", "\t{}", "{}"])
def test_white_space_around_a_secret_of_a_header_is_no_part_of_it(around):
    environ = {"OPENAI_API_KEY": around.format("sk-env"), "THE_SECRET": around.format("s3")}
    found = load(environ={**environ, "AMPLIFIER_AUTH__METHODS": CLIENT})
    assert found.models.providers[0].api_key.get_secret_value() == "sk-env"
    assert found.auth.logins[0].client_secret.get_secret_value() == "s3"


@pytest.mark.parametrize("secret", ["sk\nX-Injected: yes", "sk env", "sk\u00e9", "sk\x00", "\n"])
def test_a_secret_that_no_header_can_carry_stops_the_start_and_is_not_shown(secret):
    for environ in (
        {"OPENAI_API_KEY": secret},
        {"THE_SECRET": secret, "AMPLIFIER_AUTH__METHODS": CLIENT},
        {"K": secret, "AMPLIFIER_MODELS__PROVIDERS": "[{name: a, base_url: 'http://h/v1', api_key_env: K}]"},
    ):
        if secret == "sk env" and "THE_SECRET" in environ:
            continue  # a client's secret goes out encoded, so it may have a space (RFC 6749, A.2)
        with pytest.raises(SettingsError, match=r"(api_key|client_secret): .*visible ASCII") as wrong:
            load(environ=environ)
        assert "Injected" not in str(wrong.value)


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"AMPLIFIER_SESSIONS__IDLE_TIMEOUT": "soon"}, "sessions.idle_timeout"),
        ({"PORT": "70000"}, "server.port"),
        ({"AMPLIFIER_SERVER__PROT": "1"}, "server.prot"),
        ({"AMPLIFIER_SEVRER__PORT": "1"}, "sevrer"),
        ({"AMPLIFIER_CORS__ALLOWED_ORIGINS": "[a.example]"}, "a.example"),
        ({"AMPLIFIER_RATE_LIMITING__TIERS__FREE__TOKENS": "1"}, "free.tokens"),
        ({"AMPLIFIER_RATE_LIMITING__DEFAULT__TOKENS_PER_DAY": "-1"}, "default.tokens_per_day"),
        ({"AMPLIFIER_LOGGING__LEVEL": "loud"}, "logging.level"),
        ({"AMPLIFIER_SANDBOX__MEMORY": "much"}, "sandbox.memory"),
        ({"OPENAI_BASE_URL": "not a url"}, "models.providers.0.base_url"),
        ({"AMPLIFIER_CORS__ALLOWED_ORIGINS": "[["}, "AMPLIFIER_CORS__ALLOWED_ORIGINS"),
    ],
)
def test_a_wrong_setting_stops_the_start_by_its_name(environ, names):
    with pytest.raises(SettingsError) as wrong:
        load(environ=environ)
    assert names in str(wrong.value)


def told(path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    path.write_text(text)
    with pytest.raises(SettingsError) as wrong:
        load(path, environ or {})
    return [line.strip() for line in str(wrong.value).splitlines()[1:]]


def test_a_wrong_setting_is_told_with_where_it_stands_and_a_name_that_is_near(tmp_path):
    path = tmp_path / "mine.yaml"
    assert told(path, "server: {prot: 1}") == [f"{path}: server.prot: there is no such setting; did you mean port?"]
    assert told(path, "severs: {port: 1}") == [f"{path}: severs: there is no such setting; did you mean server?"]
    assert told(path, "logging: {colour: 1}") == [
        f"{path}: logging.colour: there is no such setting; there are level, format"
    ]
    provider = "models: {providers: [{name: a, base_ulr: 'http://x', dialect: openai}]}"
    assert f"{path}: models.providers.0.base_ulr: there is no such setting; did you mean base_url?" in told(
        path, provider
    )
    assert told(path, "server: {port: x}")[0].startswith(f"{path}: server.port: Input should be a valid integer")
    environ = {"AMPLIFIER_SESSIONS__IDLE_TIMOUT": "1m", "PORT": "x", "OPENAI_BASE_URL": "nowhere"}
    assert [line.partition(": ")[0] for line in told(path, "server: {port: 1}", environ)] == [
        "PORT",
        "AMPLIFIER_SESSIONS__IDLE_TIMOUT",
        "models.providers.0.base_url",
    ]


def test_what_other_configurations_have_is_told_of(tmp_path):
    text = "server: {workers: 4}\nauth: {type: api_key}\nrate_limiting: {backend: redis, redis_url: x}"
    says = " ".join(told(tmp_path / "c.yaml", text))
    for part in ("one process serves all", "auth.methods lists the ways in", "limits are kept in memory"):
        assert part in says


def test_a_key_that_is_there_twice_is_refused_with_both_lines(tmp_path):
    with pytest.raises(SettingsError, match="line 3: port is there twice, first in line 2"):
        load(written(tmp_path, "server:\n  port: 1\n  port: 2\n"), {})
    assert load(written(tmp_path, "\ufeffserver: {port: 1}\napi: {max_body: 1MiB}\n"), {}).server.port == 1


@pytest.mark.parametrize("text", ["- a", "server: 7", "{", "server: {port: x}", "\x00"])
def test_a_file_that_is_no_configuration_is_refused_in_words(tmp_path, text):
    with pytest.raises(SettingsError):
        load(written(tmp_path, text), {})


def test_a_file_that_was_named_must_be_there(tmp_path):
    with pytest.raises(SettingsError, match="does not exist"):
        load(tmp_path / "none.yaml", {})


def test_a_secret_is_in_no_message_and_no_repr(tmp_path):
    found = load(environ={"OPENAI_API_KEY": "sk-heron", "AMPLIFIER_AUTH__KEY_PEPPER": "plover" * 9})
    assert "heron" not in repr(found)
    assert "plover" not in repr(found)
    with pytest.raises(SettingsError) as wrong:
        load(environ={"OPENAI_API_KEY": "sk-heron", "OPENAI_BASE_URL": "nowhere", "PORT": "x"})
    assert "heron" not in str(wrong.value)


def test_a_provider_can_name_the_variable_of_its_key(tmp_path):
    text = "models: {providers: [{name: one, base_url: 'http://127.0.0.1:1/v1', api_key_env: ONE_KEY}]}"
    path = written(tmp_path, text)
    found = load(path, {"ONE_KEY": "sk-1"})
    assert found.models.providers[0].api_key.get_secret_value() == "sk-1"
    with pytest.raises(SettingsError, match="ONE_KEY is not set"):
        load(path, {})


def test_tiers_are_laid_over_each_other():
    environ = {
        "AMPLIFIER_RATE_LIMITING__DEFAULT__CONCURRENT_SESSIONS": "3",
        "AMPLIFIER_RATE_LIMITING__TIERS__GOLD__TOKENS_PER_DAY": "unlimited",
        "AMPLIFIER_SESSIONS__MAX_PER_USER": "20",
    }
    found = load(environ=environ)
    assert found.limits_of("free").concurrent_sessions == 3
    assert found.limits_of("free").requests_per_minute == 10
    assert found.limits_of("pro").concurrent_sessions == 10
    assert found.limits_of("gold").tokens_per_day is None
    assert found.limits_of("gold").sessions_per_user == 20
    assert found.limits_of("lead") is None


@given(st.integers(0, 10_000), st.sampled_from(["s", "m", "h", "d"]))
def test_durations_have_units(number, unit):
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert parse_duration(f"{number}{unit}") == timedelta(seconds=number * seconds)


@given(st.text())
def test_no_text_breaks_the_parsers(text):
    for parse in (parse_duration, parse_size):
        try:
            parse(text)
        except ValueError:
            pass
