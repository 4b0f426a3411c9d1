"""Whatever bytes an endpoint answers, a webhook's attempt ends in an answer with bounded values."""

import io
from datetime import UTC, datetime, timedelta
from typing import Final
from unittest import mock

from campaign_jobs.reward.decisions import retry_delay
from campaign_jobs.reward.webhooks import transport
from campaign_jobs.reward.webhooks.client import MAX_RETRY_AFTER, HttpsWebhookClient, parse_retry_after
from tests.fuzz.targets.urls import PUBLIC

NOW: Final = datetime(2026, 3, 1, tzinfo=UTC)
_CLIENT: Final = HttpsWebhookClient(resolver=lambda host, port, *, timeout_seconds: [PUBLIC])


class _Endpoint:
    """A socket whose other side sends these bytes and hangs up."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def sendall(self, data: bytes) -> None:
        pass

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._answer)

    def close(self) -> None:
        pass


def run(data: bytes) -> None:
    def connect(connection: transport._PinnedConnection) -> None:
        connection.sock = _Endpoint(data)  # type: ignore[assignment]

    with mock.patch.object(transport._PinnedConnection, "connect", connect):
        answer = _CLIENT.post("https://hooks.example.com/in", b"{}", {})
    assert (answer.status is None) == (answer.error is not None)
    if answer.status is not None:
        assert 100 <= answer.status <= 999
    if answer.error is not None:
        assert answer.error.isprintable() and len(answer.error) < 100
    _bounded(answer.retry_after)
    _bounded(parse_retry_after(data.decode("latin-1"), now=NOW))


def _bounded(retry_after: timedelta | None) -> None:
    if retry_after is not None:
        assert timedelta() <= retry_after <= MAX_RETRY_AFTER
    assert timedelta() < retry_delay(3, retry_after, 0.5) <= timedelta(days=2)
