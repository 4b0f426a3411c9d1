"""What a function URL makes of HTTP requests and of a function's results, over real HTTP and a function's process."""

import base64
import http.client
import json
import socket
import struct
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from local.function_urls import MAX_BODY_BYTES, FunctionUrl
from local.functions import Function, FunctionConfiguration

ECHO = """
import json

def handler(event, context):
    answer = event.get("queryStringParameters", {}).get("answer")
    if answer == "raise":
        raise RuntimeError("no")
    if answer == "exit":
        import os
        os._exit(3)
    if answer is not None:
        return json.loads(answer)
    return {"statusCode": 200, "headers": {"content-type": "application/json"}, "body": json.dumps(event)}
"""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[FunctionUrl]:
    handler = tmp_path / "handler.py"
    handler.write_text(textwrap.dedent(ECHO), encoding="utf-8")
    configuration = FunctionConfiguration(
        name="echo", handler=handler, timeout_seconds=60, memory_mb=128, log_dir=tmp_path / "logs"
    )
    with Function(configuration) as function, FunctionUrl(function) as url:
        yield url


def request(
    url: FunctionUrl, method: str, target: str, body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", url.port, timeout=60)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, names)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def event_of(url: FunctionUrl, method: str, target: str, body: bytes | None = None, **headers: str) -> Any:
    status, _, content = request(url, method, target, body, **headers)
    assert status == 200
    return json.loads(content)


def test_a_request_becomes_an_event_of_format_2(url: FunctionUrl) -> None:
    event = event_of(
        url, "GET", "/a%20b/c?x=1&y=%C3%A4+b&x=2&z=", User_Agent="test", X_Case="Kept", Cookie="a=1; b=2"
    )
    assert event["version"] == "2.0"
    assert event["routeKey"] == "$default"
    assert event["rawPath"] == "/a%20b/c"
    assert event["rawQueryString"] == "x=1&y=%C3%A4+b&x=2&z="
    assert event["queryStringParameters"] == {"x": "1,2", "y": "ä b", "z": ""}
    assert event["cookies"] == ["a=1", "b=2"]
    assert event["headers"]["x-case"] == "Kept"
    assert event["headers"]["host"] == f"127.0.0.1:{url.port}"
    assert "cookie" not in event["headers"]
    assert "body" not in event and event["isBase64Encoded"] is False
    context = event["requestContext"]
    assert context["http"]["method"] == "GET"
    assert context["http"]["path"] == "/a%20b/c"
    assert context["http"]["sourceIp"] == "127.0.0.1"
    assert context["http"]["userAgent"] == "test"
    bare = event_of(url, "GET", "/")
    assert "queryStringParameters" not in bare and "cookies" not in bare


@pytest.mark.parametrize(
    ("content_type", "is_text"),
    [
        ("application/json", True),
        ("text/plain; charset=utf-8", True),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
        ("application/octet-stream", False),
    ],
)
def test_only_text_comes_as_it_is(url: FunctionUrl, content_type: str, is_text: bool) -> None:
    body = b'{"a": 1}'
    event = event_of(url, "POST", "/", body, Content_Type=content_type)
    assert event["isBase64Encoded"] is not is_text
    assert event["body"] == (body.decode() if is_text else base64.b64encode(body).decode())


def answered(url: FunctionUrl, answer: Any) -> tuple[int, http.client.HTTPMessage, bytes]:
    return request(url, "GET", f"/?answer={quote(json.dumps(answer))}")


def test_a_result_becomes_an_answer(url: FunctionUrl) -> None:
    status, headers, content = answered(
        url,
        {
            "statusCode": 201,
            "headers": {"X-One": "1"},
            "cookies": ["a=1; Secure", "b=2"],
            "body": base64.b64encode(b"\x00\xff").decode(),
            "isBase64Encoded": True,
        },
    )
    assert (status, content) == (201, b"\x00\xff")
    assert headers["x-one"] == "1"
    assert headers.get_all("set-cookie") == ["a=1; Secure", "b=2"]
    assert headers["content-type"] == "application/json"
    # What says nothing of a status is the body of a success.
    for result in ({"message": "hello"}, "hello", None):
        status, _, content = answered(url, result)
        assert (status, json.loads(content)) == (200, result)


@pytest.mark.parametrize(
    "answer",
    [
        "raise",
        "exit",
        '{"statusCode": "soon"}',
        '{"statusCode": 99}',
        '{"statusCode": 200, "headers": "none"}',
        '{"statusCode": 200, "body": "é", "isBase64Encoded": true}',
    ],
)
def test_a_function_that_fails_is_a_bad_gateway_and_the_next_request_goes_on(
    url: FunctionUrl, answer: str
) -> None:
    status, _, content = request(url, "GET", f"/?answer={quote(answer)}")
    assert (status, content) == (502, b"Internal Server Error")
    assert event_of(url, "GET", "/")["rawPath"] == "/"


def test_what_is_too_large_or_has_no_length_never_reaches_the_function(url: FunctionUrl) -> None:
    for header, value, wanted in [
        ("Content-Length", str(MAX_BODY_BYTES + 1), b"413"),
        ("Content-Length", "-1", b"400"),
        ("Transfer-Encoding", "chunked", b"411"),
    ]:
        with socket.create_connection(("127.0.0.1", url.port), timeout=30) as client:
            client.sendall(f"POST / HTTP/1.1\r\nHost: x\r\n{header}: {value}\r\n\r\n".encode())
            assert client.makefile("rb").readline().split()[1] == wanted
    assert isinstance(url.function, Function)
    assert url.function.invocations == 0
    # The largest arrives; echoed with its envelope it would be too large an answer.
    largest = b"x" * MAX_BODY_BYTES
    assert request(url, "POST", "/?answer=7", largest, Content_Type="text/plain")[::2] == (200, b"7")
    assert request(url, "POST", "/", largest, Content_Type="text/plain")[0] == 502


def test_who_hangs_up_is_no_news(url: FunctionUrl, capfd: pytest.CaptureFixture[str]) -> None:
    assert isinstance(url.function, Function)
    for number in (1, 2):
        with socket.create_connection(("127.0.0.1", url.port), timeout=30) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            client.recv(1)
            # Closing resets the connection, with most of the answer unread.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert url.function.invocations == number
    # Whoever comes later is served, and the threads of the others have ended by then.
    while any("process_request_thread" in thread.name for thread in threading.enumerate()):
        threading.Event().wait(0.05)
    assert "Traceback" not in capfd.readouterr().err


def test_a_head_has_the_headers_and_no_body(url: FunctionUrl) -> None:
    status, headers, content = request(url, "HEAD", "/")
    assert (status, content) == (200, b"")
    assert headers["content-type"] == "application/json"
