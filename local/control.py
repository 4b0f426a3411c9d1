"""Stand-in for what operators ask of Lambda and EventBridge: mappings, invocations and rules of the local system.

Shapes: AWS Lambda API Reference (ListEventSourceMappings, GetEventSourceMapping, UpdateEventSourceMapping, Invoke) and
Amazon EventBridge API Reference (DescribeRule, EnableRule, DisableRule). Anything else is refused.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from local.functions import FunctionFailed
from local.mappings import Invocable
from local.mappings.registered import RegisteredMapping
from local.processes import HOST, Service, pick_port
from local.schedules import Schedule

_MAPPINGS: Final = re.compile(r"/2015-03-31/event-source-mappings/?(?P<uuid>[^/]*)")
_INVOCATIONS: Final = re.compile(r"/2015-03-31/functions/(?P<name>[^/]+)/invocations")

Answer = tuple[int, Mapping[str, str], Any]


class Refused(Exception):
    """A request that the API refuses: its status, its error's type and message."""

    def __init__(self, status: HTTPStatus, type_: str, message: str) -> None:
        super().__init__(message)
        self.status, self.type = status, type_


class Control(Service):
    """An HTTP server that answers for the given functions, mappings and schedules."""

    def __init__(
        self,
        functions: Iterable[tuple[str, Invocable]],
        mappings: Sequence[RegisteredMapping],
        schedules: Iterable[Schedule],
        *,
        port: int | None = None,
    ) -> None:
        """`functions` by the names they are deployed under."""
        self.port = pick_port() if port is None else port
        self._functions = dict(functions)
        self._mappings = {mapping.uuid: mapping for mapping in mappings}
        self._rules = {schedule.rule_name: schedule for schedule in schedules}
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        answer = self.answer

        class Handler(_RequestHandler):
            respond = staticmethod(answer)

        self._server = ThreadingHTTPServer((HOST, self.port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, name="Lambda's API", daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Status, headers and JSON of one request, whose headers have lower-case names. Raises Refused."""
        parts = urlsplit(target)
        if action := headers.get("x-amz-target"):
            return HTTPStatus.OK, {}, self._rule(action, _json(body))
        if found := _MAPPINGS.fullmatch(parts.path):
            return self._mapping(method, unquote(found["uuid"]), parse_qs(parts.query), body)
        if (found := _INVOCATIONS.fullmatch(parts.path)) and method == "POST":
            return self._invoke(unquote(found["name"]), headers, _json(body))
        raise Refused(
            HTTPStatus.NOT_IMPLEMENTED, "NotImplemented", f"{method} {parts.path} is not played here"
        )

    def _mapping(self, method: str, uuid: str, query: Mapping[str, list[str]], body: bytes) -> Answer:
        if not uuid:
            wanted = query.get("FunctionName", [None])[0]
            source = query.get("EventSourceArn", [None])[0]
            listed = [
                mapping.description()
                for mapping in self._mappings.values()
                if wanted in (None, mapping.target) and source in (None, mapping.event_source_arn)
            ]
            return HTTPStatus.OK, {}, {"EventSourceMappings": listed}
        if (mapping := self._mappings.get(uuid)) is None:
            raise Refused(HTTPStatus.NOT_FOUND, "ResourceNotFoundException", f"there is no mapping {uuid}")
        if method == "GET":
            return HTTPStatus.OK, {}, mapping.description()
        change = _json(body)
        if method != "PUT" or change.keys() != {"Enabled"} or not isinstance(change["Enabled"], bool):
            raise Refused(
                HTTPStatus.BAD_REQUEST, "InvalidParameterValueException", "only Enabled can be changed here"
            )
        if change["Enabled"]:
            mapping.start()
        else:
            mapping.stop()
        return HTTPStatus.ACCEPTED, {}, mapping.description()

    def _invoke(self, name: str, headers: Mapping[str, str], event: dict[str, Any]) -> Answer:
        # By name, by name:alias, or by ARN.
        function = self._functions.get(
            name.partition(":function:")[2].partition(":")[0] or name.partition(":")[0]
        )
        if function is None:
            raise Refused(HTTPStatus.NOT_FOUND, "ResourceNotFoundException", f"there is no function {name}")
        if headers.get("x-amz-invocation-type") == "Event":
            threading.Thread(target=_invoke_aside, args=(function, event), daemon=True).start()
            return HTTPStatus.ACCEPTED, {}, None
        try:
            return HTTPStatus.OK, {}, function.invoke(event)
        except FunctionFailed as error:
            failure = {"errorType": error.error_type, "errorMessage": error.message}
            return HTTPStatus.OK, {"X-Amz-Function-Error": "Unhandled"}, failure

    def _rule(self, action: str, request: Mapping[str, Any]) -> dict[str, Any]:
        name = str(request.get("Name"))
        if (schedule := self._rules.get(name)) is None:
            raise Refused(HTTPStatus.BAD_REQUEST, "ResourceNotFoundException", f"Rule {name} does not exist.")
        match action:
            case "AWSEvents.DescribeRule":
                return schedule.description()
            case "AWSEvents.EnableRule":
                schedule.enable()
            case "AWSEvents.DisableRule":
                schedule.disable()
            case _:
                raise Refused(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented", f"{action} is not played here")
        return {}


def _invoke_aside(function: Invocable, event: dict[str, Any]) -> None:
    try:
        function.invoke(event)
    except FunctionFailed:
        pass  # The function has logged it, and nobody waits for the result.


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body or b"{}")
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "InvalidRequestContentException", str(error)) from error
    if not isinstance(value, dict):
        raise Refused(HTTPStatus.BAD_REQUEST, "InvalidRequestContentException", "not a JSON object")
    return value


class _RequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    respond: Callable[[str, str, Mapping[str, str], bytes], Answer]

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status: int
        try:
            status, headers, content = self.respond(
                self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body
            )
        except Refused as error:
            status, headers = error.status, {"x-amzn-ErrorType": error.type}
            content = {"__type": error.type, "message": str(error), "Message": str(error)}
        encoded = b"" if content is None and status == HTTPStatus.ACCEPTED else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """A line for each look helps nobody."""
