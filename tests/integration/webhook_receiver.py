"""A real HTTPS server that answers webhooks as a test tells it to, with a certificate of a throwaway authority."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from local.certificates import Certificates

HOST = "hooks.example.com"
NAMES = [HOST, "127.0.0.1"]


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: bytes


Answering = Callable[[BaseHTTPRequestHandler], None]


def status(code: int, **headers: str) -> Answering:
    """Answer with a status code and headers; an underscore in a name stands for a hyphen."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


class Receiver:
    """Answers each request with `answering`, in the order they come, the last one again and again."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[Request] = []
        self._answering: list[Answering] = [status(200)]
        self._lock = threading.Lock()

    def url(self, host: str = HOST, path: str = "/rewards?token=t0ken") -> str:
        return f"https://{host}:{self.port}{path}"

    def answer(self, *answering: Answering) -> None:
        self._answering = list(answering)

    def take(self, request: Request) -> Answering:
        with self._lock:
            self.requests.append(request)
            return self._answering.pop(0) if len(self._answering) > 1 else self._answering[0]


@contextmanager
def receiving(certificates: Certificates) -> Iterator[Receiver]:
    """A receiver on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            # Here, in the request's own thread, so that a client that breaks off the handshake stops nobody else.
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def finish(self) -> None:
            try:
                super().finish()
            finally:
                self.request.close()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.take(Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body))(self)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            # Clients that hang up are what some tests are about.
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate_file, certificates.key_file)
    with Server(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
