"""What the functions ask of SES, SQS and EventBridge, no more. It counts what it accepts, and its queues show
everything that is in them.

The other tests use moto's. Here time passes between two invocations without anybody waiting for it, so that a message
that SQS would deliver in an hour must be at hand; moto has no way to let it out early.
"""

import hashlib
import json
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Status and error type of each refusal. Source: the SES API v2 reference, SendEmail, Errors.
REFUSALS = {
    "throttle": (429, "TooManyRequestsException"),
    "reject": (400, "MessageRejected"),
    "fail": (500, "InternalServiceErrorException"),
}


MAX_SEND_RATE = 1_000_000.0
"""Nobody waits for a token, so that two runs ask for tokens equally often."""


RULES = {
    "rule-of-analytics": {"ScheduleExpression": "cron(0 * * * ? *)", "State": "ENABLED"},
    "rule-of-fraud": {"ScheduleExpression": "rate(15 minutes)", "State": "DISABLED"},
}


@dataclass(frozen=True)
class Mail:
    """A mail that SES accepted."""

    recipient: str
    type: str


class Aws:
    """SES and SQS of one run after the other."""

    def __init__(self, port: int) -> None:
        self.endpoint_url = f"http://127.0.0.1:{port}"
        self._lock = threading.Lock()
        self.begin({})

    def begin(self, answers: Mapping[str, Sequence[str]], account: Sequence[str] = ()) -> None:
        """Forget the run before.

        `answers` are the refusals that await a recipient; where "for ever" ends them, the one before it goes on.
        `account` is what GetAccount answers at first: "fail", or "disabled".
        """
        self.mails: list[Mail] = []
        self.queues: defaultdict[str, list[str]] = defaultdict(list)
        """The bodies of the messages by the queue's name."""
        self._account = list(account)
        self._answers = {recipient: list(refusals) for recipient, refusals in answers.items()}

    def queue_url(self, name: str) -> str:
        return f"{self.endpoint_url}/000000000000/{name}"

    def answer(
        self, path: str, target: str | None, request: dict[str, Any]
    ) -> tuple[int, str, dict[str, Any]]:
        """The status, the error's type, and the body of the answer to a request."""
        with self._lock:
            if path == "/v2/email/account":
                return self._get_account()
            if path == "/v2/email/outbound-emails":
                return self._send_email(request)
            if target == "AWSEvents.DescribeRule":
                return 200, "", {"Name": request["Name"], **RULES[request["Name"]]}
            assert target == "AmazonSQS.SendMessageBatch", f"nobody expected {target or path}"
            return 200, "", self._send_messages(request)

    def _get_account(self) -> tuple[int, str, dict[str, Any]]:
        answer = self._account.pop(0) if self._account else ""
        if answer in REFUSALS:
            return (*REFUSALS[answer], {"message": answer})
        return 200, "", {"SendingEnabled": answer != "disabled", "SendQuota": {"MaxSendRate": MAX_SEND_RATE}}

    def _send_email(self, request: dict[str, Any]) -> tuple[int, str, dict[str, Any]]:
        (recipient,) = request["Destination"]["ToAddresses"]
        awaiting = self._answers.get(recipient, [])
        if awaiting:
            refusal = awaiting[0] if awaiting[-1] == "for ever" else awaiting.pop(0)
            return (*REFUSALS[refusal], {"message": refusal})
        tags = {tag["Name"]: tag["Value"] for tag in request["EmailTags"]}
        self.mails.append(Mail(recipient, tags["type"]))
        return 200, "", {"MessageId": uuid.uuid4().hex}

    def _send_messages(self, request: dict[str, Any]) -> dict[str, Any]:
        queue = self.queues[request["QueueUrl"].rsplit("/", 1)[-1]]
        entries = request["Entries"]
        queue += [entry["MessageBody"] for entry in entries]
        return {
            "Successful": [
                {
                    "Id": entry["Id"],
                    "MessageId": str(uuid.uuid4()),
                    "MD5OfMessageBody": hashlib.md5(
                        entry["MessageBody"].encode(), usedforsecurity=False
                    ).hexdigest(),
                }
                for entry in entries
            ],
            "Failed": [],
        }


@contextmanager
def serving_aws() -> Iterator[Aws]:
    """SES and SQS on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # One packet for an answer: its end would wait until the client acknowledges its beginning, which it puts off.
        wbufsize = -1

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, request: dict[str, Any]) -> None:
            status, error, answer = aws.answer(self.path, self.headers["X-Amz-Target"], request)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if error:
                self.send_header("x-amzn-ErrorType", error)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            # A client that was stopped hangs up.
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        aws = Aws(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield aws
        finally:
            server.shutdown()
            thread.join()
