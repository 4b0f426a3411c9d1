"""The receivers of the launch's webhooks: a real HTTPS server with a certificate of a throwaway authority.

Three endpoints: one works, one fails the first time for each delivery, one has gone. Signatures are checked here by
what Standard Webhooks says (https://www.standardwebhooks.com), without the code that makes them.
"""

import base64
import hashlib
import hmac
import ssl
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from local.certificates import Certificates, make_certificates
from local.demo.services import endpoint_secret

ADDRESS: Final = "127.0.0.1"
ENDPOINTS: Final = ("working", "flaky", "gone")


@dataclass(frozen=True)
class Received:
    """One request, and what it was answered."""

    endpoint: str
    webhook_id: str
    status: int
    is_signed: bool


class WebhookReceiver:
    """Listens on a free port of this machine while it is entered."""

    endpoints: tuple[str, ...] = ENDPOINTS

    def __init__(self, directory: Path) -> None:
        """The authority's certificate goes into `directory`, which exists."""
        certificates = make_certificates(directory, [ADDRESS])
        self.ca_file = certificates.ca_file
        self.received: list[Received] = []
        self._tries: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = _Server(self, _tls_context(certificates))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def target(self) -> str:
        """host:port, as WEBHOOK_TEST_TARGETS wants it."""
        return f"{ADDRESS}:{self._server.server_address[1]}"

    @property
    def urls(self) -> dict[str, str]:
        return {endpoint: f"https://{self.target}/{endpoint}" for endpoint in self.endpoints}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """Write the request down and say which status it gets."""
        endpoint = path.removeprefix("/")
        webhook_id = headers.get("webhook-id", "")
        with self._lock:
            self._tries[webhook_id] += 1
            tries = self._tries[webhook_id]
        status = self.status_of(endpoint, tries) if endpoint in self.endpoints else 404
        with self._lock:
            self.received.append(Received(endpoint, webhook_id, status, _is_signed(endpoint, headers, body)))
        return status

    def status_of(self, endpoint: str, tries: int) -> int:
        """What a request gets that is the endpoint's `tries`-th of one delivery."""
        if endpoint == "gone":
            return 410
        return 500 if endpoint == "flaky" and tries == 1 else 200


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, receiver: WebhookReceiver, context: ssl.SSLContext) -> None:
        self.receiver = receiver
        self.context = context
        super().__init__((ADDRESS, 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up, or was killed, is no error of the receiver's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        assert isinstance(self.server, _Server)
        # In the request's own thread, so that a slow handshake holds up nobody else.
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.request.close()

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.send_response(self.server.receiver.answer(self.path, headers, body))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """What came is in `received`; nothing goes to the terminal."""


def _is_signed(endpoint: str, headers: dict[str, str], body: bytes) -> bool:
    key = base64.b64decode(endpoint_secret(endpoint).removeprefix("whsec_"))
    signed = f"{headers.get('webhook-id')}.{headers.get('webhook-timestamp')}.".encode() + body
    wanted = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return any(
        hmac.compare_digest(wanted, given) for given in headers.get("webhook-signature", "").split(" ")
    )


def _tls_context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate_file, certificates.key_file)
    # Only the authority's certificate is needed from here on.
    certificates.certificate_file.unlink()
    certificates.key_file.unlink()
    return context
