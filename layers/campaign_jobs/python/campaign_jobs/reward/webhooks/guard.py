"""Where an outgoing request may go. A tenant names the URL, so it may name our own network.

A host name is resolved once, every address it has is checked, and the connection is made to an address that was
checked: a name that answers differently the next time changes nothing.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

from campaign_jobs.errors import UnsafeTarget

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# The special-purpose registries of IANA, written out: `is_global` alone lets multicast and relays pass, and its answers
# differ between versions of Python.
# https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry
REFUSED_IPV4: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's platform services behind a public-looking address
        "169.254.0.0/16",  # link-local, with the metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast tunnelling
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, with the broadcast address
    )
)
# Everything else is loopback, unspecified, mapped or compatible IPv4, NAT64, unique local, link-local or multicast.
GLOBAL_UNICAST_IPV6: Final = ipaddress.IPv6Network("2000::/3")
REFUSED_IPV6: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, with Teredo, which embeds IPv4 addresses
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds IPv4 addresses
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # returned
        "3fff::/20",  # documentation
    )
)
# The second half of an ISATAP address is this and an IPv4 address.
_ISATAP_MARKS: Final = (0x00005EFE, 0x02005EFE)

HTTPS_PORT: Final = 443
FIRST_UNPRIVILEGED_PORT: Final = 1024


class Resolver(Protocol):
    def __call__(self, host: str, port: int, *, timeout_seconds: float) -> Sequence[str]:
        """All addresses of a host, as texts. Raises OSError when it has none or the answer takes too long."""
        ...


@dataclass(frozen=True)
class Target:
    """A URL that was checked, and the addresses that may be connected to."""

    host: str
    port: int
    path: str = field(repr=False)
    """Path and query; they may hold a token."""
    addresses: tuple[str, ...]
    is_test_target: bool = False


def check(
    url: str,
    *,
    resolve: Resolver,
    timeout_seconds: float,
    test_targets: frozenset[tuple[str, int]] = frozenset(),
) -> Target:
    """Resolve a webhook's URL and make sure that it leads to the public internet over HTTPS.

    `test_targets` are exact (host, port) pairs whose addresses are not checked. Raises UnsafeTarget that says what is
    wrong without repeating the URL, and OSError when the host name does not resolve.
    """
    host, port, path = _parse(url)
    is_test_target = (host, port) in test_targets
    if not is_test_target and port != HTTPS_PORT and port < FIRST_UNPRIVILEGED_PORT:
        raise UnsafeTarget(
            f"the webhook's port is {port}; allowed are {HTTPS_PORT} and {FIRST_UNPRIVILEGED_PORT} to 65535"
        )
    # Spellings such as 0x7f.1 or 2130706433 are read here as the connection would read them.
    addresses = tuple(dict.fromkeys(resolve(host, port, timeout_seconds=timeout_seconds)))
    if not addresses:
        raise OSError("the host name has no address")
    if not is_test_target and not all(is_public(address) for address in addresses):
        # Which address it is stays here: the answer would map our network for whoever writes URLs.
        raise UnsafeTarget(
            "the webhook's host has an address that is not public; allowed are public addresses only"
        )
    return Target(host, port, path, addresses, is_test_target)


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet and embeds no other one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        refused = any(parsed in network for network in REFUSED_IPV4)
    else:
        refused = (
            parsed.scope_id is not None
            or parsed not in GLOBAL_UNICAST_IPV6
            or any(parsed in network for network in REFUSED_IPV6)
            or (int(parsed) >> 32) & 0xFFFFFFFF in _ISATAP_MARKS
        )
    return parsed.is_global and not refused


def _parse(url: str) -> tuple[str, int, str]:
    # Parsers disagree about these, and a disagreement is how a guard is passed.
    if not re.fullmatch(r"[!-\[\]-~]+", url):
        raise UnsafeTarget(
            "the webhook's URL holds a space, a backslash, a control character or one that is not ASCII;"
            " allowed is ASCII, with percent-encoding and punycode for the rest"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UnsafeTarget("the webhook's URL has no valid host and port") from None
    if parts.scheme != "https":
        raise UnsafeTarget("the webhook's URL is not HTTPS; allowed is https:// only")
    if "@" in parts.netloc:
        raise UnsafeTarget("the webhook's URL names a user or password; allowed is none")
    host = host.removesuffix(".")
    if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f:.]+", host):
        raise UnsafeTarget("the webhook's host is not valid; allowed are a host name and an IP address")
    if port == 0:
        raise UnsafeTarget("the webhook's port is 0; allowed are 443 and 1024 to 65535")
    path = parts.path or "/"
    return host, HTTPS_PORT if port is None else port, f"{path}?{parts.query}" if parts.query else path
