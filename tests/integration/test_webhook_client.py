"""Webhooks over real TLS: pinned, verified, bounded in time and size, never redirected."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from campaign_jobs.errors import UnsafeTarget
from campaign_jobs.reward.webhooks import guard
from campaign_jobs.reward.webhooks.client import MAX_RESPONSE_BYTES, HttpsWebhookClient
from local.certificates import Certificates, make_certificates
from tests.integration.webhook_receiver import HOST, NAMES, Receiver, receiving, status
from tests.ssrf.corpus import entries, named

BODY = b'{"type":"reward.earned"}'


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"), NAMES)


@pytest.fixture
def receiver(certificates: Certificates) -> Iterator[Receiver]:
    with receiving(certificates) as receiver:
        yield receiver


def here(host: str, port: int, *, timeout_seconds: float) -> Sequence[str]:
    return ["127.0.0.1"]


def client_of(
    receiver: Receiver,
    ca_file: Path | None,
    *,
    host: str = HOST,
    resolver: guard.Resolver = here,
    total_seconds: float = 15.0,
) -> HttpsWebhookClient:
    return HttpsWebhookClient(
        test_targets=frozenset({(host, receiver.port)}),
        test_ca_file=ca_file,
        resolver=resolver,
        total_seconds=total_seconds,
    )


@pytest.fixture
def client(receiver: Receiver, certificates: Certificates) -> HttpsWebhookClient:
    return client_of(receiver, certificates.ca_file)


def test_a_post_arrives_as_it_was_sent(client: HttpsWebhookClient, receiver: Receiver) -> None:
    answer = client.post(receiver.url(), BODY, {"webhook-id": "user_reward_1"})
    assert (answer.status, answer.error, answer.retry_after) == (200, None, None)
    (request,) = receiver.requests
    assert (request.path, request.body) == ("/rewards?token=t0ken", BODY)
    assert request.headers["host"] == f"{HOST}:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("campaign-jobs")
    assert request.headers["webhook-id"] == "user_reward_1"


@pytest.mark.parametrize("entry", entries("redirect"), ids=named)
def test_a_redirect_is_an_answer_and_is_not_followed(
    client: HttpsWebhookClient, receiver: Receiver, entry: dict[str, Any]
) -> None:
    # To the receiver itself, too, where a request that is sent would be seen.
    location = entry["location"].replace("{receiver}", receiver.url(path=""))
    receiver.answer(status(entry["status"], Location=location))
    assert client.post(receiver.url(), BODY, {}).status == entry["status"]
    assert [request.path for request in receiver.requests] == ["/rewards?token=t0ken"]


def test_retry_after_is_handed_on(client: HttpsWebhookClient, receiver: Receiver) -> None:
    receiver.answer(status(503, Retry_After="120"))
    answer = client.post(receiver.url(), BODY, {})
    assert (answer.status, answer.retry_after) == (503, timedelta(seconds=120))


def test_a_proxy_of_the_environment_is_not_used(
    client: HttpsWebhookClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert client.post(receiver.url(), BODY, {}).status == 200


def test_the_connection_goes_to_the_address_that_was_checked(
    receiver: Receiver, certificates: Certificates
) -> None:
    """The name exists nowhere, so a second look-up on the way could only fail."""
    asked: list[str] = []

    def resolver(host: str, port: int, *, timeout_seconds: float) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    client = client_of(receiver, certificates.ca_file, resolver=resolver)
    assert client.post(receiver.url(), BODY, {}).status == 200
    assert asked == [HOST]


def test_the_second_address_is_tried_when_the_first_refuses(
    receiver: Receiver, certificates: Certificates
) -> None:
    client = client_of(
        receiver, certificates.ca_file, resolver=lambda *arguments, **named: ["127.0.0.9", "127.0.0.1"]
    )
    assert client.post(receiver.url(), BODY, {}).status == 200


def test_an_inner_address_is_refused_and_nothing_is_sent(
    receiver: Receiver, certificates: Certificates
) -> None:
    client = client_of(receiver, certificates.ca_file, host="another.example.com")
    with pytest.raises(UnsafeTarget, match="not public"):
        client.post(receiver.url(), BODY, {})
    assert receiver.requests == []


def test_a_certificate_of_another_host_is_refused(receiver: Receiver, certificates: Certificates) -> None:
    client = client_of(receiver, certificates.ca_file, host="other.example.com")
    answer = client.post(receiver.url("other.example.com"), BODY, {})
    assert answer.status is None and answer.error is not None
    assert "certificate is not valid" in answer.error
    assert "t0ken" not in answer.error
    assert receiver.requests == []


def test_a_certificate_of_an_unknown_authority_is_refused(receiver: Receiver) -> None:
    answer = client_of(receiver, None).post(receiver.url(), BODY, {})
    assert answer.status is None and answer.error is not None and "certificate is not valid" in answer.error
    assert receiver.requests == []


def test_the_test_authority_is_not_trusted_for_other_targets(
    receiver: Receiver, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "is_public", lambda address: True)
    client = client_of(receiver, certificates.ca_file, host="another.example.com")
    answer = client.post(receiver.url(), BODY, {})
    assert answer.error is not None and "certificate is not valid" in answer.error


@pytest.fixture
def quick(receiver: Receiver, certificates: Certificates) -> HttpsWebhookClient:
    return client_of(receiver, certificates.ca_file, total_seconds=0.5)


def test_a_head_that_drips_ends_with_the_total_time(quick: HttpsWebhookClient, receiver: Receiver) -> None:
    """Each byte comes well within a socket's timeout, which alone would wait for all of them."""
    hung_up = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        try:
            for byte in b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * 5_000:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.01)
        except OSError:
            hung_up.set()

    receiver.answer(answer)
    assert quick.post(receiver.url(), BODY, {}).error == "the endpoint did not answer within 0.5 s"
    assert hung_up.wait(10)


def test_a_body_that_drips_does_not_undo_the_status(quick: HttpsWebhookClient, receiver: Receiver) -> None:
    hung_up = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
            for _ in range(5_000):
                handler.wfile.write(b"x")
                time.sleep(0.01)
        except OSError:
            hung_up.set()

    receiver.answer(answer)
    assert quick.post(receiver.url(), BODY, {}).status == 200
    assert hung_up.wait(10)


def test_silence_ends_with_the_total_time(quick: HttpsWebhookClient, receiver: Receiver) -> None:
    released = threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> None:
        released.wait(10)

    receiver.answer(wait)
    try:
        assert quick.post(receiver.url(), BODY, {}).error == "the endpoint did not answer within 0.5 s"
    finally:
        released.set()


def test_a_slow_resolver_counts_towards_the_total_time(
    receiver: Receiver, certificates: Certificates
) -> None:
    def resolver(host: str, port: int, *, timeout_seconds: float) -> Sequence[str]:
        time.sleep(timeout_seconds)
        return ["127.0.0.1"]

    client = client_of(receiver, certificates.ca_file, resolver=resolver, total_seconds=0.05)
    assert client.post(receiver.url(), BODY, {}).error == "the endpoint did not answer within 0.05 s"
    assert receiver.requests == []


@pytest.mark.parametrize("length", ["Content-Length: 100000000000", "X-Length: unknown"])
def test_no_more_than_the_limit_is_read_of_a_body(
    client: HttpsWebhookClient, receiver: Receiver, length: str
) -> None:
    sent = 0
    hung_up = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        try:
            handler.wfile.write(f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode())
            while sent < 1_000 * MAX_RESPONSE_BYTES:
                sent += handler.wfile.write(b"x" * MAX_RESPONSE_BYTES)
        except OSError:
            hung_up.set()

    receiver.answer(answer)
    assert client.post(receiver.url(), BODY, {}).status == 200
    assert hung_up.wait(10)


def test_a_head_beyond_the_limit_is_a_failure(client: HttpsWebhookClient, receiver: Receiver) -> None:
    receiver.answer(status(200, **{f"X_{number}": "x" * 10_000 for number in range(10)}))
    answer = client.post(receiver.url(), BODY, {})
    assert (answer.status, answer.error) == (
        None,
        f"the endpoint's answer has more than {MAX_RESPONSE_BYTES} bytes",
    )


def test_what_is_not_http_is_a_failure(client: HttpsWebhookClient, receiver: Receiver) -> None:
    def answer_like_a_mail_server(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"220 mail.example.com ESMTP\r\n\r\n")

    receiver.answer(answer_like_a_mail_server)
    answer = client.post(receiver.url(), BODY, {})
    assert answer.status is None
    assert answer.error == "the endpoint's answer is not HTTP: BadStatusLine"


def test_a_hang_up_is_a_failure(client: HttpsWebhookClient, receiver: Receiver) -> None:
    receiver.answer(lambda handler: handler.connection.close())
    answer = client.post(receiver.url(), BODY, {})
    assert answer.status is None and answer.error is not None


def test_nobody_listening_is_a_failure(certificates: Certificates) -> None:
    with receiving(certificates) as receiver:
        client, url = client_of(receiver, certificates.ca_file), receiver.url()
    answer = client.post(url, BODY, {})
    assert answer.error == "the connection to the endpoint failed: ConnectionRefusedError"


def test_a_name_without_an_address_is_a_failure(receiver: Receiver, certificates: Certificates) -> None:
    def resolver(host: str, port: int, *, timeout_seconds: float) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    answer = client_of(receiver, certificates.ca_file, resolver=resolver).post(receiver.url(), BODY, {})
    assert answer.error == "the endpoint's host name does not resolve"
