"""No spelling of an inner address passes the guard of outgoing requests."""

import ipaddress
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_jobs.errors import UnsafeTarget
from campaign_jobs.reward.webhooks.guard import Target, check, is_public
from campaign_jobs.reward.webhooks.resolver import resolve
from tests.ssrf.corpus import entries, named

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


@pytest.mark.parametrize("entry", entries("address"), ids=lambda entry: entry["address"])
def test_inner_and_special_addresses_are_not_public(entry: dict[str, Any]) -> None:
    address = entry["address"]
    assert not is_public(address)
    with pytest.raises(UnsafeTarget, match="not public"):
        checked("https://hooks.example.com/", address)


@pytest.mark.parametrize("entry", entries("allowed"), ids=named)
def test_public_targets_pass_as_they_are(entry: dict[str, Any]) -> None:
    expected = Target(entry["host"], entry["port"], entry["path"], (entry["address"],))
    assert checked(entry["url"], entry["address"]) == expected


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


@pytest.mark.parametrize("entry", entries("spelling"), ids=lambda entry: entry["host"])
def test_every_spelling_is_read_as_the_connection_would_read_it(entry: dict[str, Any]) -> None:
    """With the system's own resolver, which takes these apart without asking the network."""
    with pytest.raises(UnsafeTarget, match="not public"):
        check(f"https://{entry['host']}/hook", resolve=resolve, timeout_seconds=5)


@pytest.mark.parametrize("entry", entries("url"), ids=named)
def test_other_urls_are_refused_with_a_reason_and_nobody_is_asked(entry: dict[str, Any]) -> None:
    names = Names([PUBLIC])
    with pytest.raises(UnsafeTarget, match=entry["expected"]) as refusal:
        check(entry["url"], resolve=names, timeout_seconds=1)
    assert names.asked == []
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("entry", entries("answers"), ids=named)
def test_a_names_first_answer_decides_and_all_of_it(entry: dict[str, Any]) -> None:
    names = Names(*entry["answers"])
    if entry["passes"]:
        target = check(f"https://{entry['host']}/", resolve=names, timeout_seconds=1)
        assert target.addresses == tuple(entry["answers"][0])
    else:
        with pytest.raises(UnsafeTarget, match="not public") as refusal:
            check(f"https://{entry['host']}/", resolve=names, timeout_seconds=1)
        assert not [address for address in entry["answers"][0] if address in str(refusal.value)]
    assert len(names.asked) == 1


def test_a_name_that_answers_differently_the_second_time_is_asked_only_once() -> None:
    names = Names([PUBLIC], ["127.0.0.1"])
    target = check("https://hooks.example.com:8443/in?token=t", resolve=names, timeout_seconds=1)
    assert names.asked == [("hooks.example.com", 8443)]
    assert target == Target("hooks.example.com", 8443, "/in?token=t", (PUBLIC,))
    assert "token" not in repr(target)


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
