"""The child's side of one Lambda execution environment: `python -m local.runtime <fd> <function> <handler.py>`.

Frames on the socket `fd` are a length (4 bytes, big-endian) and JSON. We send `{"ready": true}` once the handler is
imported, or `{"error": …}` and end; each `{"event", "qualifier", "request_id", "deadline_ms"}` is answered by
`{"result": …}` or `{"error": …}`. Standard output and error belong to the handler's logs.
"""

import importlib.util
import json
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LENGTH = struct.Struct(">I")

Handler = Callable[[Any, "Context"], Any]


def send_frame(channel: socket.socket, message: dict[str, Any], deadline: float | None = None) -> None:
    """Raises ValueError or TypeError where the message is not JSON, BrokenPipeError where the other side is gone and
    TimeoutError at `deadline` (monotonic).
    """
    body = json.dumps(message, allow_nan=False).encode("utf-8")
    channel.settimeout(_until(deadline))
    channel.sendall(_LENGTH.pack(len(body)) + body)


def receive_frame(channel: socket.socket, deadline: float | None = None) -> dict[str, Any] | None:
    """The next frame, or None once the other side has closed. Raises TimeoutError at `deadline` (monotonic)."""
    header = _receive(channel, _LENGTH.size, deadline)
    body = None if header is None else _receive(channel, _LENGTH.unpack(header)[0], deadline)
    if body is None:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def _receive(channel: socket.socket, size: int, deadline: float | None) -> bytes | None:
    received = bytearray()
    while len(received) < size:
        channel.settimeout(_until(deadline))
        try:
            part = channel.recv(min(size - len(received), 1 << 20))
        except ConnectionResetError:
            return None
        if not part:
            return None
        received += part
    return bytes(received)


def _until(deadline: float | None) -> float | None:
    # Zero would mean non-blocking.
    return None if deadline is None else max(deadline - time.monotonic(), 0.001)


class Context:
    """What Lambda's Python runtime hands to a handler as `context` (Lambda Developer Guide, "context object")."""

    def __init__(self, request_id: str, deadline_ms: int, qualifier: str | None = None) -> None:
        self.aws_request_id = request_id
        self.function_name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
        self.function_version = os.environ["AWS_LAMBDA_FUNCTION_VERSION"]
        self.memory_limit_in_mb = int(os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"])
        self.log_group_name = os.environ["AWS_LAMBDA_LOG_GROUP_NAME"]
        self.log_stream_name = os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]
        region = os.environ["AWS_REGION"]
        arn = f"arn:aws:lambda:{region}:000000000000:function:{self.function_name}"
        self.invoked_function_arn = arn if qualifier is None else f"{arn}:{qualifier}"
        self.identity = None
        self.client_context = None
        self._deadline_ms = deadline_ms

    def get_remaining_time_in_millis(self) -> int:
        return max(self._deadline_ms - int(time.time() * 1000), 0)


def load_handler(function: str, path: Path) -> Handler:
    # A name of its own: every function's file is called handler.py.
    name = f"functions_{function.replace('-', '_')}_handler"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    try:
        handler: Handler = module.handler
    except AttributeError:
        raise ImportError(f"{path} has no function named handler") from None
    return handler


def _described(error: Exception) -> dict[str, Any]:
    """The error as Lambda's runtime reports it; the trace goes to the log, as there."""
    traceback.print_exception(error)
    return {"error": {"type": type(error).__name__, "message": str(error)}}


def _read_requests(channel: socket.socket, requests: "queue.SimpleQueue[dict[str, Any]]") -> None:
    while (request := receive_frame(channel)) is not None:
        requests.put(request)
    # The parent closed the socket or is gone. The handler may hang, so nobody else could end this process.
    os._exit(0)


def _answer(handler: Handler, request: dict[str, Any]) -> dict[str, Any]:
    try:
        context = Context(request["request_id"], request["deadline_ms"], request["qualifier"])
        result = handler(request["event"], context)
    # Not BaseException: SystemExit ends the runtime in Lambda as well.
    except Exception as error:  # noqa: BLE001
        return _described(error)
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:
        return {"error": {"type": "Runtime.MarshalError", "message": f"the result is not JSON: {error}"}}
    return {"result": result}


def main() -> None:
    descriptor, function, path = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    # Ctrl-C is for the parent, which lets the batch in flight finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    channel = socket.socket(fileno=descriptor)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(channel, requests), daemon=True).start()
    try:
        handler = load_handler(function, path)
    except Exception as error:  # noqa: BLE001
        send_frame(channel, _described(error))
        sys.exit(1)
    send_frame(channel, {"ready": True})
    while True:
        answer = _answer(handler, requests.get())
        send_frame(channel, answer)


if __name__ == "__main__":
    main()
