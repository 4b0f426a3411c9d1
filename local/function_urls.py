"""Stand-in for Lambda function URLs: an HTTP server on this machine that invokes a function for each request.

Event and answer have payload format 2.0: AWS Lambda Developer Guide, "Invoking Lambda function URLs".
"""

import base64
import binascii
import json
import logging
import sys
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl

from local.functions import FunctionFailed
from local.mappings import Invocable
from local.processes import HOST, Service, pick_port

MAX_BODY_BYTES: Final = 6 * 1024 * 1024
"""Lambda's limit of a synchronous invocation, for requests and answers."""
IDLE_SECONDS: Final = 30

log = logging.getLogger(__name__)


class FunctionUrl(Service):
    """One function's URL, without authentication."""

    def __init__(self, function: Invocable, *, port: int | None = None) -> None:
        """`port` is a free one of ours unless given."""
        self.function = function
        self.port = pick_port() if port is None else port
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """With the slash at the end that Lambda's have."""
        return url_at(self.port)

    def start(self) -> None:
        self._server = _Server(self.port, self.function)
        threading.Thread(
            target=self._server.serve_forever, name=f"function URL :{self.port}", daemon=True
        ).start()

    def stop(self) -> None:
        """Take no more requests, and wait for the invocations under way."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.finish()
            self._server = None


def url_at(port: int) -> str:
    return f"http://{HOST}:{port}/"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A browser keeps connections open on which nothing comes; only invocations are waited for.
    block_on_close = False

    def __init__(self, port: int, function: Invocable) -> None:
        super().__init__((HOST, port), _RequestHandler)
        self._function = function
        self._changed = threading.Condition()
        self._under_way = 0
        self._finishing = False

    def invoke(self, event: dict[str, Any]) -> Any:
        """Raises FunctionFailed."""
        with self._changed:
            if self._finishing:
                raise FunctionFailed("ServiceException", "the function URL is being taken away")
            self._under_way += 1
        try:
            return self._function.invoke(event)
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Whoever asked may hang up whenever they like, as browsers do.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def finish(self) -> None:
        with self._changed:
            self._finishing = True
            self._changed.wait_for(lambda: self._under_way == 0)


class _RequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: _Server

    def handle_any(self) -> None:
        if self.headers.get("Transfer-Encoding") is not None:
            self._answer(HTTPStatus.LENGTH_REQUIRED, {}, b"", close=True)
            return
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()):
            self._answer(HTTPStatus.BAD_REQUEST, {}, b"", close=True)
            return
        if int(length) > MAX_BODY_BYTES:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {}, b"", close=True)
            return
        body = self.rfile.read(int(length))
        event = request_event(self.command, self.path, self.headers, body, source_ip=self.client_address[0])
        try:
            status, headers, content = response_of(self.server.invoke(event))
        except (FunctionFailed, InvalidAnswer) as error:
            log.warning("a request of the function URL :%d failed: %s", self.server.server_port, error)
            status, headers, content = 502, {"content-type": "text/plain"}, b"Internal Server Error"
        self._answer(status, headers, content)

    # The names that http.server looks up.
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = handle_any  # noqa: N815

    def _answer(
        self, status: int, headers: Mapping[str, str | list[str]], content: bytes, *, close: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            for each in value if isinstance(value, list) else [value]:
                self.send_header(name, each)
        self.send_header("Content-Length", str(len(content)))
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Links are secrets; errors are logged where they happen."""


def request_event(
    method: str, target: str, headers: Message, body: bytes, *, source_ip: str
) -> dict[str, Any]:
    """The event that Lambda makes of a request."""
    path, _, query = target.partition("?")
    named: dict[str, str] = {}
    for name in headers:
        named[name.lower()] = ",".join(headers.get_all(name, []))
    cookies = named.pop("cookie", "")
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        parameters[name] = f"{parameters[name]},{value}" if name in parameters else value
    domain = named.get("host", HOST)
    now = datetime.now(UTC)
    is_text = _is_text(headers.get_content_type())
    text = body.decode("utf-8", "replace") if is_text else base64.b64encode(body).decode("ascii")
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        **({"cookies": cookies.split("; ")} if cookies else {}),
        "headers": named,
        **({"queryStringParameters": parameters} if parameters else {}),
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "local",
            "domainName": domain,
            "domainPrefix": "local",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": source_ip,
                "userAgent": named.get("user-agent", ""),
            },
            "requestId": str(uuid.uuid4()),
            "routeKey": "$default",
            "stage": "$default",
            "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(now.timestamp() * 1000),
        },
        **({"body": text} if body else {}),
        "isBase64Encoded": bool(body) and not is_text,
    }


class InvalidAnswer(ValueError):
    """A function's result cannot be made an HTTP answer."""


def response_of(result: Any) -> tuple[int, dict[str, str | list[str]], bytes]:
    """Status, headers and content that Lambda makes of a function's result. Raises InvalidAnswer."""
    if not isinstance(result, dict) or "statusCode" not in result:
        # Lambda takes anything else for the body of a success.
        return 200, {"content-type": "application/json"}, json.dumps(result).encode()
    try:
        status = int(result["statusCode"])
        body = str(result.get("body") or "")
        content = base64.b64decode(body, validate=True) if result.get("isBase64Encoded") else body.encode()
        headers: dict[str, str | list[str]] = {
            str(name).lower(): str(value) for name, value in (result.get("headers") or {}).items()
        }
    except (AttributeError, TypeError, ValueError, binascii.Error) as error:
        raise InvalidAnswer(f"it is not of payload format 2.0: {error}") from error
    if not 100 <= status <= 599:
        raise InvalidAnswer(f"statusCode={status}; allowed is 100 to 599")
    if len(content) > MAX_BODY_BYTES:
        raise InvalidAnswer(f"its body is larger than {MAX_BODY_BYTES} bytes")
    headers.setdefault("content-type", "application/json")
    if cookies := result.get("cookies"):
        headers["set-cookie"] = [str(cookie) for cookie in cookies]
    return status, headers, content


def _is_text(content_type: str) -> bool:
    """Everything else comes as base64, forms included."""
    return content_type.startswith("text/") or content_type in (
        "application/json",
        "application/javascript",
        "application/xml",
    )
