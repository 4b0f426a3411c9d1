"""What moto's SQS needs to serve several clients at once.

moto's queues are plain lists without a lock: deleting a message rebuilds the list and loses what is sent meanwhile, and
two receivers may be handed the same message. So all SQS requests take turns here; a long poll waits outside its turn.
"""

import io
import json
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

import moto.sqs.models
from moto.core.utils import unix_time_millis
from moto.sqs.models import sqs_backends
from werkzeug.test import run_wsgi_app

from local.aws.wsgi import Application, Environ, StartResponse, read_body

_LOOK_AGAIN_SECONDS: Final = 0.2
"""Messages come into sight with time, too."""


class QuickQueue(moto.sqs.models.Queue):
    """moto computes these counts several times for each message it takes or gives, with a look at the clock for each
    message in the queue: with a thousand of them, 120 messages a second. The numbers are the same.
    """

    @property
    def messages(self) -> list[moto.sqs.models.Message]:
        now = unix_time_millis()
        return [
            message for message in self._messages if now > message.visible_at and now >= message.delayed_until
        ]

    @property
    def approximate_number_of_messages_delayed(self) -> int:
        now = unix_time_millis()
        return sum(now < message.delayed_until for message in self._messages)

    @property
    def approximate_number_of_messages_not_visible(self) -> int:
        now = unix_time_millis()
        return sum(now <= message.visible_at for message in self._messages)


def _may_have_messages(queue_name: str) -> bool:
    """Whether a message is visible in a queue of this name, of whichever account and region; or there is none."""
    found = [
        queue
        for regions in list(sqs_backends.values())
        for backend in list(regions.values())
        if (queue := backend.queues.get(queue_name)) is not None
    ]
    return not found or any(queue.messages for queue in found)


class OneAtATime:
    """WSGI middleware that lets SQS requests take turns and passes everything else on."""

    def __init__(self, application: Application) -> None:
        moto.sqs.models.Queue = QuickQueue  # type: ignore[misc]
        self._application = application
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        action = environ.get("HTTP_X_AMZ_TARGET", "")
        if not action.startswith("AmazonSQS."):
            return self._application(environ, start_response)
        body = read_body(environ)
        queue_name, wait_seconds = "", 0.0
        if action == "AmazonSQS.ReceiveMessage":
            request = json.loads(body)
            wait_seconds = float(request.get("WaitTimeSeconds") or 0)
            # moto takes a queue's own waiting time, which nobody sets here, only where this is absent.
            body = json.dumps({**request, "WaitTimeSeconds": 0}).encode()
            queue_name = str(request.get("QueueUrl", "")).rpartition("/")[2]
        deadline = time.monotonic() + wait_seconds
        while True:
            content, status, headers = self._take_a_turn(environ, body)
            if time.monotonic() >= deadline or not status.startswith("200") or b'"Messages"' in content:
                break
            # A request costs milliseconds, and each lane has its pollers; a look at the queue costs next to nothing.
            with self._changed:
                self._changed.wait(_LOOK_AGAIN_SECONDS)
                while time.monotonic() < deadline and not _may_have_messages(queue_name):
                    self._changed.wait(_LOOK_AGAIN_SECONDS)
        if action != "AmazonSQS.ReceiveMessage":
            with self._changed:
                self._changed.notify_all()
        start_response(status, headers)
        return [content]

    def _take_a_turn(self, environ: Environ, body: bytes) -> tuple[bytes, str, list[tuple[str, str]]]:
        with self._turn:
            request: dict[str, Any] = {
                **environ,
                "wsgi.input": io.BytesIO(body),
                "CONTENT_LENGTH": str(len(body)),
            }
            content, status, headers = run_wsgi_app(self._application, request, buffered=True)
            return b"".join(content), status, headers.to_wsgi_list()
