"""No URL, however it is written, leads past the guard to an address that is not public."""

import re
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from campaign_jobs.errors import UnsafeTarget
from campaign_jobs.reward.webhooks.guard import check, is_public

PUBLIC: Final = "93.184.215.14"


def _resolve(host: str, port: int, *, timeout_seconds: float) -> Sequence[str]:
    """As the system does it where it needs no network: numbers in every spelling; names are public."""
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return ["127.0.0.1"] if host.rstrip(".") == "localhost" else [PUBLIC]
    except UnicodeError:
        raise OSError("the host name is not valid") from None
    return [str(address[0]) for *_, address in entries]


def run(data: bytes) -> None:
    url = data.decode("utf-8", "replace")
    try:
        target = check(url, resolve=_resolve, timeout_seconds=1)
    except UnsafeTarget as error:
        assert str(error).isprintable()
        return
    except OSError:
        return
    assert target.addresses and all(is_public(address) for address in target.addresses)
    assert not target.is_test_target
    assert target.port == 443 or 1024 <= target.port <= 65535
    assert re.fullmatch(r"[a-z0-9_.:-]+", target.host)
    # One line of a request, and nothing that could be taken for the end of it.
    assert re.fullmatch(r"/?[!-~]*", target.path)
    parts = urlsplit(url)
    assert parts.scheme == "https"
    assert (parts.hostname or "").removesuffix(".") == target.host
