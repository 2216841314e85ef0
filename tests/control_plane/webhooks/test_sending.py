"""Sending to other people's servers: to public addresses alone, over TLS, without following anybody anywhere."""

import socket
import time

import pytest
from pydantic import SecretStr

from amplifier_api_server.control_plane.clock import SystemClock
from amplifier_api_server.control_plane.egress import addresses
from amplifier_api_server.control_plane.egress.addresses import NotAllowed
from amplifier_api_server.control_plane.egress.certificates import context_of
from amplifier_api_server.control_plane.webhooks.sending import Attempt, Message, Schedule, Sender
from tests.git_server import GitServer
from tests.receiver import KEY, SECRET, Receiver

MESSAGE = Message("cb_1", b'{"a":1}', SecretStr(SECRET))


def sender(*private, resolve=None, ca_file=None, timeout_seconds=5.0):
    more = {"resolve": resolve} if resolve is not None else {}
    return Sender(private, lambda: context_of(ca_file), SystemClock(), timeout_seconds=timeout_seconds, **more)


async def test_a_message_arrives_signed_with_its_id_and_its_time():
    with Receiver() as receiver:
        assert (await sender(receiver.host).send(receiver.url, MESSAGE)).is_delivered
    (received,) = receiver.received
    assert (received.path, received.body) == ("/called-back?of=mine", MESSAGE.body)
    assert (received.headers["webhook-id"], received.headers["content-type"]) == ("cb_1", "application/json")
    assert abs(int(received.headers["webhook-timestamp"]) - time.time()) < 300
    assert received.is_signed_with(KEY)
    assert not received.is_signed_with(b"another")


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 500, 503])
async def test_whatever_is_no_success_failed_and_a_redirect_is_not_followed(status):
    with Receiver() as other, Receiver(statuses=[status], headers={"Location": other.url}) as receiver:
        attempt = await sender(receiver.host, other.host).send(receiver.url, MESSAGE)
    assert (attempt.is_delivered, attempt.is_final, attempt.problem) == (False, False, f"it was answered with {status}")
    assert other.received == []


async def test_a_receiver_that_is_gone_is_not_asked_again():
    with Receiver(statuses=[410]) as receiver:
        assert (await sender(receiver.host).send(receiver.url, MESSAGE)).is_final


async def test_a_receiver_says_when_it_wants_to_be_asked_again():
    with Receiver(statuses=[429], headers={"Retry-After": "120"}) as receiver:
        assert (await sender(receiver.host).send(receiver.url, MESSAGE)).retry_after_seconds == 120
    with Receiver(statuses=[429], headers={"Retry-After": "soon"}) as receiver:
        assert (await sender(receiver.host).send(receiver.url, MESSAGE)).retry_after_seconds is None


async def test_a_receiver_that_does_not_answer_costs_the_time_out():
    with Receiver(before=lambda: time.sleep(2)) as receiver:
        attempt = await sender(receiver.host, timeout_seconds=0.1).send(receiver.url, MESSAGE)
    assert attempt == Attempt("no answer within 0.1 s")


async def test_nobody_who_listens_is_a_failure_that_may_pass():
    with Receiver() as receiver:
        host, url = receiver.host, receiver.url
    attempt = await sender(host).send(url, MESSAGE)
    assert not attempt.is_delivered
    assert not attempt.is_final


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "ftp://example.org/",
        "https://user:secret@example.org/",
        "https://example.org:22/",
        "https://2852039166/",
        "https:///x",
        "https://exa mple.org/",
        "https://example.org/\r\nX-Injected: 1",
    ],
)
async def test_what_can_be_seen_to_be_wrong_is_refused_before_anything_is_asked(url):
    with pytest.raises(NotAllowed):
        sender().check(url)
    assert (await sender().send(url, MESSAGE)).is_final


async def test_a_name_that_leads_inside_is_told_as_one_that_nobody_knows(monkeypatch):
    """Else a tenant could ask, name by name, what there is in the operator's network."""

    async def inside(host, port):
        return ["169.254.169.254", "10.0.0.1", "127.0.0.1"]

    async def unknown(host, port):
        raise socket.gaierror

    async def nowhere(host, port):
        return []

    async def silent(host, port):
        raise TimeoutError

    async def at_once(seconds):
        """Instead of the wait before it is told."""

    monkeypatch.setattr(addresses, "_sleep", at_once)
    attempts = []
    for resolve in (inside, unknown, nowhere, silent):
        one = sender(resolve=resolve)
        one.check("https://innocent.example/")
        attempts.append(await one.send("https://innocent.example/", MESSAGE))
    assert attempts == [Attempt("its host was not found at a public address")] * 4


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "[fd00::1]", "localhost", "a.localhost", "LOCALHOST."]
)
def test_what_is_known_to_be_inside_without_asking_is_refused_at_once(host):
    with pytest.raises(NotAllowed, match="not at a public address"):
        sender().check(f"https://{host}/")
    named = host.lower().strip("[].")
    assert sender(named).check(f"https://{host}/").host == named


async def test_a_certificate_has_to_be_right(tmp_path):
    with GitServer(tmp_path) as server:
        host = f"git.test:{server.port}"
        trusting = sender(host, resolve=server.resolve, ca_file=server.ca_file)
        answered = await trusting.send(server.url("hook", host="git.test"), MESSAGE)
        assert answered.problem.startswith("it was answered with")
        attempt = await sender(host, resolve=server.resolve).send(server.url("hook", host="git.test"), MESSAGE)
        assert "not trusted" in attempt.problem


def test_six_attempts_are_spread_over_about_an_hour():
    schedule = Schedule(retries=5, first_delay_seconds=10)
    delays = [schedule.delay_seconds(attempts, spread=0) for attempts in range(1, 7)]
    assert delays == [10, 40, 160, 640, 2560, None]
    assert [schedule.delay_seconds(1, spread=one) for one in (-1, 1)] == [8, 12]
    assert schedule.delay_seconds(1, 600, spread=0) == 600
    assert schedule.delay_seconds(1, 1e9, spread=0) == 6 * 3600
