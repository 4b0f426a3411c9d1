"""Posts a webhook and says what came back."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol

from campaign_jobs.reward.webhooks import guard
from campaign_jobs.reward.webhooks.resolver import resolve

if TYPE_CHECKING:
    import ssl

# Standard Webhooks recommends 15 to 30 seconds.
TOTAL_SECONDS: Final = 15.0
MAX_RESPONSE_BYTES: Final = 64 * 1024
MAX_RETRY_AFTER: Final = timedelta(hours=24)
USER_AGENT: Final = "campaign-jobs-webhooks/1.0"


@dataclass(frozen=True)
class Answer:
    """What an endpoint answered to one attempt."""

    status: int | None
    """None: there was no answer, and `error` says why."""
    error: str | None
    retry_after: timedelta | None
    """How long the endpoint asked us to wait, at most MAX_RETRY_AFTER."""
    duration: timedelta


class WebhookClient(Protocol):
    @property
    def total_seconds(self) -> float:
        """The longest that `post` takes."""
        ...

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post once. Raises UnsafeTarget when the URL leads where no request may go."""
        ...


class HttpsWebhookClient:
    """Posts over HTTPS to public addresses; used by many threads at a time."""

    def __init__(
        self,
        *,
        test_targets: frozenset[tuple[str, int]] = frozenset(),
        test_ca_file: Path | None = None,
        resolver: guard.Resolver = resolve,
        total_seconds: float = TOTAL_SECONDS,
    ) -> None:
        self._test_targets = test_targets
        self._test_ca_file = test_ca_file
        self._resolver = resolver
        self._total_seconds = total_seconds
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._contexts_lock = Lock()

    @property
    def total_seconds(self) -> float:
        return self._total_seconds

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post once, within `total_seconds` for all of it, from looking up the host to the end of the answer.

        Raises UnsafeTarget.
        """
        import http.client

        from campaign_jobs.reward.webhooks import transport

        started = time.monotonic()
        ends_at = started + self._total_seconds
        status = retry_after = error = None
        try:
            target = guard.check(
                url,
                resolve=self._resolver,
                timeout_seconds=self._total_seconds,
                test_targets=self._test_targets,
            )
            status, retry_after = transport.post(
                target,
                body,
                {
                    "Content-Type": "application/json",
                    "User-Agent": USER_AGENT,
                    "Connection": "close",
                    **headers,
                },
                self._context(target.is_test_target),
                ends_at=ends_at,
                max_bytes=MAX_RESPONSE_BYTES,
            )
        except (OSError, http.client.HTTPException) as failure:
            error = self._reason(failure)
        return Answer(
            status,
            error,
            None if retry_after is None else parse_retry_after(retry_after, now=datetime.now(UTC)),
            timedelta(seconds=time.monotonic() - started),
        )

    def _context(self, is_test_target: bool) -> "ssl.SSLContext":
        from campaign_jobs.reward.webhooks import transport

        with self._contexts_lock:
            if is_test_target not in self._contexts:
                self._contexts[is_test_target] = transport.tls_context(
                    self._test_ca_file if is_test_target else None
                )
            return self._contexts[is_test_target]

    def _reason(self, failure: Exception) -> str:
        """Why there was no answer, in words that hold nothing of the URL and nothing of the answer."""
        import socket
        import ssl

        from campaign_jobs.reward.webhooks import transport

        if isinstance(failure, TimeoutError):
            return f"the endpoint did not answer within {self._total_seconds:g} s"
        if isinstance(failure, socket.gaierror):
            return "the endpoint's host name does not resolve"
        if isinstance(failure, ssl.SSLCertVerificationError):
            return f"the endpoint's certificate is not valid: {failure.verify_message}"
        if isinstance(failure, ssl.SSLError):
            return f"TLS with the endpoint failed: {failure.reason or type(failure).__name__}"
        if isinstance(failure, transport.ResponseTooLarge):
            return f"the endpoint's answer has more than {MAX_RESPONSE_BYTES} bytes"
        if isinstance(failure, OSError):
            return f"the connection to the endpoint failed: {type(failure).__name__}"
        return f"the endpoint's answer is not HTTP: {type(failure).__name__}"


def parse_retry_after(value: str, *, now: datetime) -> timedelta | None:
    """A Retry-After header, in seconds or as an HTTP date, from nothing to MAX_RETRY_AFTER; None when it is neither."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,18}", value):
        return timedelta(seconds=min(int(value), MAX_RETRY_AFTER.total_seconds()))
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return min(max(moment - now, timedelta()), MAX_RETRY_AFTER)
