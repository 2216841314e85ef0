"""Which hosts and addresses may be reached for a tenant: in every spelling, and whatever a name says the second time."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.egress import addresses
from amplifier_api_server.control_plane.egress.addresses import (
    HostRules,
    NotAllowed,
    NotPublic,
    host_of,
    is_pattern,
    is_public,
    matches,
    place_of,
    reachable_addresses,
)


async def at_once(seconds: float) -> None:
    """Instead of the wait before a name is told not to be found."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(addresses, "_sleep", at_once)


PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001:80b::200e"]
NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",  # a cloud's metadata
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "2001::1",  # Teredo
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4
    "fc00::1",
    "fd00:ec2::254",  # a cloud's metadata
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "4000::1",  # not assigned
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_of_a_network_or_a_machine_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_python_knows_to_be_private_is_never_public(address):
    if is_public(address):
        assert address.is_global
        assert not any((address.is_private, address.is_multicast, address.is_link_local, address.is_reserved))


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:", "::", "64:ff9b::"]))
def test_no_ipv4_address_hides_in_an_ipv6_one(address, prefix):
    assert not is_public(ipaddress.IPv6Address(f"{prefix}{address}"))


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.1",
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "127.0.0.1.2",
        "127.0.0.256",
        "1.2.3.0x4",
        "a..b",
        "",
        ".",
        "..",
        "-a.com",
        "a b",
        "fe80::1%eth0",
        "::1%25lo",
        "[::1]",
        "::gg",
        "a" * 64 + ".com",
        "a." * 130 + "com",
        "example.com/",
        "user@example.com",
    ],
)
def test_a_host_in_any_but_its_usual_form_is_refused(host):
    with pytest.raises(NotAllowed):
        host_of(host)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("EXAMPLE.org", "example.org"),
        ("example.org.", "example.org"),
        ("example。org", "example.org"),
        ("\uff11\uff12\uff17.\uff10.\uff10.\uff11", "127.0.0.1"),  # full-width digits
        ("①②⑦.0.0.1", "127.0.0.1"),
        ("\u217cocalhost", "localhost"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:7f00:1"),
    ],
)
def test_a_host_is_checked_in_the_form_in_which_it_is_asked_for(written, meant):
    assert host_of(written) == meant


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "gopher://example.org/",
        "//example.org/",
        "example.org",
        "https://user@example.org/",
        "https://user:secret@example.org/",
        "https://example.org:0/",
        "https://example.org:99999/",
        "https://example.org:/",
        "https://example.org:80a/",
        "https:///path",
        "https://exa mple.org/",
        "https://example.org/a b",
        "https://example.org/\r\nHost: other",
        "https://example.org\\@127.0.0.1/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://example.org/" + "x" * 5000,
    ],
)
def test_an_odd_address_is_refused(url):
    with pytest.raises(NotAllowed):
        place_of(url)


def test_an_address_is_asked_for_in_ascii_and_without_its_fragment():
    place = place_of("https://Example.ORG/é?q=ü&r=%20#there")
    assert place.url == "https://example.org/%C3%A9?q=%C3%BC&r=%20"


@given(st.text(max_size=60))
def test_no_text_makes_a_request_of_more_than_one_line(text):
    try:
        place = place_of(f"https://example.org/{text}")
    except NotAllowed:
        return
    assert place.host == "example.org"
    assert place.target.isascii()
    assert not any(char.isspace() for char in place.target)


@pytest.mark.parametrize("pattern", ["*", "example.org", "*.example.org", "10.0.0.1", "::1"])
def test_patterns_that_are_taken(pattern):
    assert is_pattern(pattern)


@pytest.mark.parametrize("pattern", ["", "**", "*example.org", "a.*.org", "https://example.org", "a b", "*.", "[a]"])
def test_patterns_that_are_not_taken(pattern):
    assert not is_pattern(pattern)


def test_a_pattern_is_of_one_host_or_of_all_below_it():
    assert matches("example.org", ["example.org"])
    assert not matches("www.example.org", ["example.org"])
    assert matches("a.b.example.org", ["*.example.org"])
    assert not matches("example.org", ["*.example.org"])
    assert not matches("notexample.org", ["*.example.org"])


def answering(*addresses):
    async def resolve(host, port):
        return list(addresses)

    return resolve


async def test_of_a_names_addresses_only_the_public_ones_are_used():
    found = await reachable_addresses("a.test", 443, HostRules(), answering("10.0.0.1", "1.1.1.1", "::1", "1.1.1.1"))
    assert found == ["1.1.1.1"]


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_a_name_of_a_private_address_is_refused_without_saying_which(address):
    with pytest.raises(NotAllowed) as refused:
        await reachable_addresses("a.test", 443, HostRules(), answering(address))
    assert address not in str(refused.value)


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_a_private_address_itself_is_refused(address):
    with pytest.raises(NotAllowed):
        await reachable_addresses(host_of(address), 443, HostRules(), answering())


async def test_a_private_address_is_reached_by_the_name_that_the_operator_names_and_no_other():
    rules = HostRules(private=("git.corp:8443", "10.0.0.9"))
    assert await reachable_addresses("git.corp", 8443, rules, answering("10.0.0.1")) == ["10.0.0.1"]
    assert await reachable_addresses("10.0.0.9", 9000, rules, answering()) == ["10.0.0.9"]
    for host, port in (("git.corp", 443), ("other.corp", 8443), ("10.0.0.1", 8443)):
        with pytest.raises(NotAllowed):
            await reachable_addresses(host, port, rules, answering("10.0.0.1"))


@pytest.mark.parametrize("port", [1, 22, 25, 5432, 6379, 9200, 11211])
async def test_no_port_but_the_webs_is_asked(port):
    with pytest.raises(NotAllowed):
        await reachable_addresses("a.test", port, HostRules(), answering("1.1.1.1"))


async def test_a_denied_host_is_refused_even_where_all_are_allowed():
    with pytest.raises(NotAllowed):
        await reachable_addresses("a.test", 443, HostRules(deny=("*.test",)), answering("1.1.1.1"))


class SlowClock:
    """A loop's clock and sleep: what waits is noted, and takes no time."""

    def __init__(self) -> None:
        self.now = 100.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_a_name_within_and_one_that_nobody_knows_are_one_answer_at_one_time(monkeypatch):
    """In whatever time the resolver answers: else a tenant could ask which names there are within, one by one."""
    found = []
    for answer, seconds in (
        (["10.0.0.1"], 0.001),
        (["169.254.169.254", "fd00::1"], 1.0),
        ([], 0.2),
        (OSError("no such name"), 2.5),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), 0.0),
        (TimeoutError(), addresses._RESOLVE_SECONDS),
        (UnicodeError("label too long"), 0.0),
    ):
        clock = SlowClock()

        async def resolve(host, port, answer=answer, seconds=seconds, clock=clock):
            clock.now += seconds
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(addresses, "_now", lambda clock=clock: clock.now)
        monkeypatch.setattr(addresses, "_sleep", clock.sleep)
        with pytest.raises(NotAllowed) as refused:
            await reachable_addresses("a.test", 443, HostRules(), resolve)
        found.append((type(refused.value), str(refused.value), round(clock.now - 100.0, 6)))
    assert set(found) == {(NotPublic, "a.test was not found at a public address", addresses._RESOLVE_SECONDS)}
