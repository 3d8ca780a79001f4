"""Where live sinks may send to, and how a name becomes an address."""

from __future__ import annotations

import asyncio
import socket

import pytest
from onecontainer_driver_ffmpeg.egress import HostRules
from onecontainer_driver_ffmpeg.sinks import SinkRules

from onecontainer.driver import errors

AT = "outputs[0].live.udp.host"


def allowed(entries: list[str]) -> SinkRules:
    return SinkRules(HostRules.parse(entries))


def test_hosts_ports_and_domains() -> None:
    rules = allowed(["127.0.0.1", "tv.example.com:1935", "*.cdn.example.com", "[::1]:9000", "239.1.2.3:5000"])
    for host, port in [
        ("127.0.0.1", 5000),
        ("tv.example.com", 1935),
        ("TV.example.com.", 1935),
        ("a.cdn.example.com", 7),
        ("::1", 9000),
        ("239.1.2.3", 5000),
    ]:
        rules.check_host(host, port, AT)
    for host, port in [
        ("127.0.0.2", 5000),
        ("tv.example.com", 1936),
        ("cdn.example.com", 7),
        ("::1", 9001),
        ("239.1.2.3", 5001),
    ]:
        with pytest.raises(errors.SourceNotAllowed, match="sink_hosts") as caught:
            rules.check_host(host, port, AT)
        assert caught.value.violations[0].field == AT


@pytest.mark.parametrize(
    "host", ["a b", "a/b", "a?b", "a@b", "-x", "a%00", "a&passphrase=b", "a#b", "[::1]", "x" * 254, "é.example"]
)
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(errors.FieldInvalid):
        allowed(["*.example"]).check_host(host, 1935, AT)
    with pytest.raises(errors.FieldRequired):
        SinkRules().check_host("", 1935, AT)


def test_listeners_are_on_loopback_unless_the_operator_says_otherwise() -> None:
    rules = allowed(["0.0.0.0:9000"])
    rules.check_listener("127.0.0.1", 9001, AT)
    rules.check_listener("::1", 9001, AT)
    rules.check_listener("0.0.0.0", 9000, AT)
    with pytest.raises(errors.SourceNotAllowed):
        rules.check_listener("0.0.0.0", 9001, AT)
    with pytest.raises(errors.FieldInvalid, match="no address"):
        rules.check_listener("localhost", 9000, AT)


@pytest.mark.parametrize(
    ("answer", "leads_to"),
    [
        (["192.0.2.7"], "192.0.2.7"),
        (["10.0.0.7"], "10.0.0.7"),  # a receiver in the operator's own network
        (["2001:db8::7", "192.0.2.7"], "192.0.2.7"),
        (["127.0.0.1"], None),
        (["::ffff:127.0.0.1"], None),
        (["169.254.169.254"], None),
        (["0.0.0.0"], None),
        (["239.1.2.3"], None),
        (["255.255.255.255"], None),
        (["127.0.0.1", "192.0.2.7"], "192.0.2.7"),
        (["239.9.9.9"], "239.9.9.9"),  # allowed by itself
    ],
)
async def test_a_name_leads_to_no_address_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, answer: list[str], leads_to: str | None
) -> None:
    async def resolver(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 1935)) for address in answer]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolver)
    rules = allowed(["*.example.com", "239.9.9.9"])
    if leads_to:
        assert await rules.resolve("tv.example.com", 1935, AT) == leads_to
    else:
        with pytest.raises(errors.SourceNotAllowed, match=r"tv\.example\.com leads to") as caught:
            await rules.resolve("tv.example.com", 1935, AT)
        assert caught.value.violations[0].field == AT


async def test_localhost_is_loopback() -> None:
    assert await allowed(["localhost"]).resolve("localhost", 1935, AT) == "127.0.0.1"


async def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolver(*_: object, **__: object) -> list[tuple[object, ...]]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolver)
    with pytest.raises(errors.BackendUnreachable, match="not known") as caught:
        await allowed(["*.example.com"]).resolve("tv.example.com", 1935, AT)
    assert caught.value.violations[0].field == AT
