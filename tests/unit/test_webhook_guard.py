"""No spelling of an inner address passes the guard of outgoing requests."""

import ipaddress
import socket
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_jobs.errors import UnsafeTarget
from campaign_jobs.reward.webhooks.guard import Target, check, is_public
from campaign_jobs.reward.webhooks.resolver import resolve

PUBLIC = "93.184.215.14"


class Names:
    """A resolver whose successive answers are given; the last one is repeated."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int, *, timeout_seconds: float) -> Sequence[str]:  # noqa: ARG002
        self.asked.append((host, port))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def checked(url: str, *addresses: str) -> Target:
    return check(url, resolve=Names(addresses or (PUBLIC,)), timeout_seconds=1)


INNER = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.9",
    "192.0.0.170",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "192.175.48.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::ffff:169.254.169.254",
    "::ffff:93.184.215.14",
    "::127.0.0.1",
    "::93.184.215.14",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2606:2800:220:1:0:5efe:7f00:1",
    "2606:2800:220:1:200:5efe:a00:1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd12:3456:789a::1",
    "fe80::1",
    "fe80::1%eth0",
    "2606:2800:220:1::1%eth0",
    "fec0::1",
    "ff02::1",
    "not an address",
]


@pytest.mark.parametrize("address", INNER)
def test_inner_and_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(UnsafeTarget, match="not public"):
        checked("https://hooks.example.com/", address)


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "2a00:1450:4001::1"]
)
def test_public_addresses_pass(address: str) -> None:
    assert checked("https://hooks.example.com/", address).addresses == (address,)


@given(st.ip_addresses())
def test_nothing_passes_that_the_standard_library_takes_for_special(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    special = (
        not address.is_global
        or address.is_multicast
        or address.is_reserved
        or address.is_loopback
        or address.is_link_local
        or address.is_unspecified
    )
    assert not (special and is_public(str(address)))


@given(st.ip_addresses(v=4))
def test_no_ipv6_form_that_embeds_an_ipv4_address_passes(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    teredo = 0x20010000 << 96 | (number ^ 0xFFFFFFFF)
    for embedding in (
        0xFFFF << 32 | number,
        number,
        0xFFFF << 48 | number,
        0x64FF9B << 96 | number,
        0x2002 << 112 | number << 80,
        teredo,
        0x26062800022000010000_5EFE << 32 | number,
    ):
        assert not is_public(str(ipaddress.IPv6Address(embedding)))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0X7F.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "0",
        "0x0",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "[::1]",
        "[::]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
    ],
)
def test_every_spelling_is_read_as_the_connection_would_read_it(host: str) -> None:
    """With the system's own resolver, which takes these apart without asking the network."""
    with pytest.raises(UnsafeTarget, match="not public"):
        check(f"https://{host}/hook", resolve=resolve, timeout_seconds=5)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://hooks.example.com/", "not HTTPS"),
        ("ftp://hooks.example.com/", "not HTTPS"),
        ("file:///etc/passwd", "not HTTPS"),
        ("//hooks.example.com/", "not HTTPS"),
        ("", "allowed is ASCII"),
        ("https://", "host is not valid"),
        ("https:///path", "host is not valid"),
        ("https://user@hooks.example.com/", "user or password"),
        ("https://user:secret@hooks.example.com/", "user or password"),
        ("https://hooks.example.com@127.0.0.1/", "user or password"),
        ("https://127.0.0.1\\@hooks.example.com/", "allowed is ASCII"),
        ("https://hooks.example.com/ path", "allowed is ASCII"),
        ("https://hooks.example.com/\r\nHost: inner", "allowed is ASCII"),
        ("https://hooks.example.com/\t", "allowed is ASCII"),
        ("https://hooks.example.com/\x00", "allowed is ASCII"),
        ("https://①②⑦.⓪.⓪.①/", "allowed is ASCII"),
        ("https://127。0。0。1/", "allowed is ASCII"),
        ("https://exa%6dple.com/", "host is not valid"),
        ("https://[fe80::1%25eth0]/", "host is not valid"),
        ("https://[::1/", "no valid host and port"),
        ("https://hooks.example.com:port/", "no valid host and port"),
        ("https://hooks.example.com:65536/", "no valid host and port"),
        ("https://hooks.example.com:0/", "port is 0"),
        ("https://hooks.example.com:22/", "port is 22"),
        ("https://hooks.example.com:25/", "port is 25"),
        ("https://.example.com/", "host is not valid"),
    ],
)
def test_other_urls_are_refused_with_a_reason_and_nobody_is_asked(url: str, message: str) -> None:
    names = Names([PUBLIC])
    with pytest.raises(UnsafeTarget, match=message) as refusal:
        check(url, resolve=names, timeout_seconds=1)
    assert names.asked == []
    assert "secret" not in str(refusal.value)


def test_one_inner_address_among_public_ones_is_enough_to_refuse() -> None:
    with pytest.raises(UnsafeTarget, match="not public") as refusal:
        checked("https://hooks.example.com/", PUBLIC, "10.0.0.7", "8.8.8.8")
    assert "10.0.0.7" not in str(refusal.value)


def test_a_name_that_answers_differently_the_second_time_is_asked_only_once() -> None:
    names = Names([PUBLIC], ["127.0.0.1"])
    target = check("https://hooks.example.com:8443/in?token=t", resolve=names, timeout_seconds=1)
    assert names.asked == [("hooks.example.com", 8443)]
    assert target == Target("hooks.example.com", 8443, "/in?token=t", (PUBLIC,))
    assert "token" not in repr(target)


def test_host_port_and_path_are_completed() -> None:
    assert checked("https://Hooks.Example.COM.") == Target("hooks.example.com", 443, "/", (PUBLIC,))
    assert checked("https://h.example?q=1#part") == Target("h.example", 443, "/?q=1", (PUBLIC,))
    assert checked("HTTPS://h.example:1024/a").port == 1024


def test_a_test_target_is_exempt_by_exact_host_and_port() -> None:
    exempt = frozenset({("127.0.0.1", 8443)})
    target = check("https://127.0.0.1:8443/", resolve=resolve, timeout_seconds=5, test_targets=exempt)
    assert target.is_test_target
    for url in ("https://127.0.0.1:8444/", "https://localhost:8443/", "https://127.1:8443/"):
        with pytest.raises(UnsafeTarget):
            check(url, resolve=resolve, timeout_seconds=5, test_targets=exempt)
    with pytest.raises(UnsafeTarget, match="not HTTPS"):
        check("http://127.0.0.1:8443/", resolve=resolve, timeout_seconds=5, test_targets=exempt)


def test_the_resolver_gives_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **named: [][: answered.wait(30)])
    try:
        with pytest.raises(TimeoutError):
            resolve("slow.example", 443, timeout_seconds=0.01)
    finally:
        answered.set()


def test_the_resolver_says_when_a_name_has_no_address() -> None:
    with pytest.raises(OSError, match="not valid"):
        resolve("a" * 64 + ".example", 443, timeout_seconds=5)
