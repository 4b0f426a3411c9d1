"""One HTTPS request to an address that was checked, in bounded time and size.

Kept apart from the client, so that a cold start without a webhook loads neither `ssl` nor `http.client`.
"""

import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from campaign_jobs.reward.webhooks.guard import Target


class ResponseTooLarge(OSError):
    """The endpoint sent more than we read."""


class _BoundedSocket(ssl.SSLSocket):
    """Ends reading and writing at a moment and after a number of bytes, however slowly they come.

    A socket's own timeout starts anew with each byte, so a receiver that sends one now and then would hold us for ever.
    """

    ends_at: float
    bytes_left: int

    def _limit(self) -> None:
        self.settimeout(_left(self.ends_at))

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        self._limit()
        received = super().recv_into(*arguments, **named)
        self.bytes_left -= received
        if self.bytes_left < 0:
            raise ResponseTooLarge
        return received

    def send(self, *arguments: Any, **named: Any) -> int:
        self._limit()
        return super().send(*arguments, **named)


class _PinnedConnection(http.client.HTTPSConnection):
    """Connects to the addresses that were checked, while TLS and the Host header go by the host's name.

    http.client follows no redirect and reads no proxy from the environment.
    """

    def __init__(self, target: Target, context: ssl.SSLContext, *, ends_at: float, max_bytes: int) -> None:
        super().__init__(target.host, target.port, context=context)
        self._target = target
        self._tls = context
        self._ends_at = ends_at
        self._max_bytes = max_bytes

    def connect(self) -> None:
        plain = self._connect_to_any()
        try:
            # The handshake's timeout is one for all of it.
            plain.settimeout(_left(self._ends_at))
            secured = self._tls.wrap_socket(plain, server_hostname=self._target.host)
        except BaseException:
            plain.close()
            raise
        assert isinstance(secured, _BoundedSocket)
        secured.ends_at = self._ends_at
        secured.bytes_left = self._max_bytes
        self.sock = secured

    def _connect_to_any(self) -> socket.socket:
        addresses = self._target.addresses
        for position, address in enumerate(addresses):
            # One address that swallows packets leaves time for the others.
            share = _left(self._ends_at) / (len(addresses) - position)
            try:
                return socket.create_connection((address, self._target.port), timeout=share)
            except OSError:
                if position == len(addresses) - 1:
                    raise
        raise AssertionError("unreachable")


def tls_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """Verifies certificates against the system's authorities, or against those in `ca_file` alone."""
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _BoundedSocket
    return context


def post(
    target: Target,
    body: bytes,
    headers: Mapping[str, str],
    context: ssl.SSLContext,
    *,
    ends_at: float,
    max_bytes: int,
) -> tuple[int, str | None]:
    """Send the request and return the status code and the Retry-After header.

    `ends_at` is on the monotonic clock. Raises OSError (ssl.SSLError, TimeoutError and ResponseTooLarge are kinds of
    it) or http.client.HTTPException when there was no answer.
    """
    connection = _PinnedConnection(target, context, ends_at=ends_at, max_bytes=max_bytes)
    try:
        connection.request("POST", target.path, body, dict(headers))
        response = connection.getresponse()
        answer = response.status, response.getheader("Retry-After")
        try:
            # Read for politeness, since some servers take a hang-up for a failure. The status has been said, so neither
            # a body that never ends nor one that breaks off changes what it means.
            response.read(max_bytes)
        except (OSError, http.client.HTTPException, ValueError, ArithmeticError):
            # The last two are what http.client makes of a chunk's size that is no size, such as a negative one.
            pass
        return answer
    finally:
        connection.close()


def _left(ends_at: float) -> float:
    left = ends_at - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
