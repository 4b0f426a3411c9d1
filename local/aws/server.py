"""The server process of the stand-in: moto, with mails kept as files and what becomes of them scripted."""

import io
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
from werkzeug.test import run_wsgi_app

import local.aws.queue_ages  # noqa: F401  moto finds its figures among the subclasses.
from local.aws.account import Account, AccountError, AccountSettings, read_settings, write_seconds
from local.aws.feedback import FeedbackError, SesFeedback, read_feedback_settings
from local.aws.mails import MailDirectory
from local.aws.queues import OneAtATime
from local.aws.script import Answer, Script, ScriptError, ScriptLine, read_script
from local.aws.suppressions import PATH as _SUPPRESSIONS_PATH
from local.aws.suppressions import SuppressionList
from local.aws.wsgi import (
    ACCOUNT_PATH,
    FEEDBACK_PATH,
    READY_PATH,
    SCRIPT_PATH,
    Application,
    Environ,
    StartResponse,
    read_body,
)
from local.processes import HOST

_SEND_EMAIL_PATH: Final = "/v2/email/outbound-emails"
_GET_ACCOUNT_PATH: Final = "/v2/email/account"
_IDENTITIES_PATH: Final = "/v2/email/identities/"

# Status and error type of each refusal. Source: the SES API v2 reference, SendEmail, Errors.
_REFUSALS: Final = {
    Answer.THROTTLE: ("429 TOO MANY REQUESTS", "TooManyRequestsException", "Maximum sending rate exceeded."),
    Answer.PAUSED: ("400 BAD REQUEST", "SendingPausedException", "Sending is paused for this account."),
    Answer.REJECT: ("400 BAD REQUEST", "MessageRejected", "Email content was rejected."),
}
# What SES accepts and then reports; the values are those of the mailbox simulator.
_REPORTED: Final = {Answer.BOUNCE, Answer.COMPLAINT}


class SendEmail:
    """WSGI middleware around moto: follows the script before SES is asked, and keeps each mail that SES accepts.

    It also plays the account and its suppression list, of which moto knows nothing. What SES then reports of the mail
    goes to the feedback.
    """

    def __init__(
        self,
        application: Application,
        mails: MailDirectory,
        script: Script,
        *,
        account: Account,
        feedback: SesFeedback,
    ) -> None:
        self._application = application
        self._mails = mails
        self._script = script
        self._account = account
        self._feedback = feedback
        self._suppressions = SuppressionList()
        self.closing = threading.Event()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == READY_PATH:
            return _answer(start_response, "200 OK", {})
        if path == SCRIPT_PATH:
            return self._replace_script(environ, start_response)
        if path == FEEDBACK_PATH:
            return self._configure_feedback(environ, start_response)
        if path == ACCOUNT_PATH:
            return self._show_or_replace_account(environ, start_response)
        if path == _GET_ACCOUNT_PATH and environ["REQUEST_METHOD"] == "GET":
            return _answer(start_response, "200 OK", self._account.answer_get_account())
        if path == _SEND_EMAIL_PATH and environ["REQUEST_METHOD"] == "POST":
            return self._send(environ, start_response)
        if str(path).startswith(_IDENTITIES_PATH) and environ["REQUEST_METHOD"] == "GET":
            return self._show_identity(environ, start_response)
        if str(path).startswith(_SUPPRESSIONS_PATH):
            return self._suppressed(environ, start_response)
        return self._application(environ, start_response)

    def _send(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body = read_body(environ)
        request = json.loads(body)
        recipients = [to for addresses in request.get("Destination", {}).values() for to in addresses]
        line = self._script.next_line(recipients)
        refusal = line.answer if line is not None and line.answer in _REFUSALS else self._accounts_refusal()
        if refusal is not None:
            status, error, message = _REFUSALS[refusal]
            return _answer(start_response, status, {"message": message}, [("x-amzn-ErrorType", error)])
        answer, status, headers = run_wsgi_app(
            self._application, {**environ, "wsgi.input": io.BytesIO(body)}, buffered=True
        )
        content = b"".join(answer)
        if status.startswith("200"):
            self._account.count_accepted()
        if status.startswith("200") and "Simple" in request["Content"]:
            message_id = json.loads(content)["MessageId"]
            self._mails.add(request, message_id)
            scenario = line.answer if line is not None and line.answer in _REPORTED else None
            self._feedback.accepted(request, message_id, scenario)
        if line is not None and line.answer is Answer.TIMEOUT:
            self.closing.wait(line.seconds)
        start_response(status, headers.to_wsgi_list())
        return [content]

    def _show_identity(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Every identity is verified, since nobody here looks into a domain's DNS."""
        answer, status, headers = run_wsgi_app(self._application, environ, buffered=True)
        content = b"".join(answer)
        if not status.startswith("200"):
            start_response(status, headers.to_wsgi_list())
            return [content]
        identity = json.loads(content)
        return _answer(start_response, status, {**identity, "VerifiedForSendingStatus": True})

    def _suppressed(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        status, content, headers = self._suppressions.answer(
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            environ.get("QUERY_STRING", ""),
            read_body(environ),
        )
        return _answer(start_response, status, content, headers)

    def _accounts_refusal(self) -> Answer | None:
        if not self._account.settings.sending_enabled:
            return Answer.PAUSED
        return None if self._account.may_send() else Answer.THROTTLE

    def _show_or_replace_account(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "GET":
            return _answer(start_response, "200 OK", write_seconds(self._account.seconds()))
        try:
            self._account.replace(read_settings(read_body(environ).decode()))
        except AccountError as error:
            return _answer(start_response, "400 BAD REQUEST", {"message": str(error)})
        return _answer(start_response, "200 OK", {})

    def _replace_script(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            self._script.replace(read_script(read_body(environ).decode()))
        except ScriptError as error:
            return _answer(start_response, "400 BAD REQUEST", {"message": str(error)})
        return _answer(start_response, "200 OK", {})

    def _configure_feedback(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT":
            try:
                self._feedback.configure(read_feedback_settings(read_body(environ).decode()))
            except FeedbackError as error:
                return _answer(start_response, "400 BAD REQUEST", {"message": str(error)})
        return _answer(start_response, "200 OK", {"pending": self._feedback.pending})


class _QuietRequestHandler(MotoRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """A line for each of a hundred thousand mails helps nobody; errors are still logged."""


def serve(port: int, mail_directory: Path, script: Sequence[ScriptLine], account: AccountSettings) -> None:
    """Serve on 127.0.0.1 until SIGTERM or SIGINT, then bring the index of mails up to date."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    mails = MailDirectory(mail_directory)
    moto = DomainDispatcherApplication(create_backend_app)
    application = SendEmail(
        OneAtATime(moto),
        mails,
        Script(script),
        account=Account(account),
        feedback=SesFeedback(f"http://{HOST}:{port}"),
    )
    server = make_server(HOST, port, application, threaded=True, request_handler=_QuietRequestHandler)
    # A client that keeps its connection open must not keep us from leaving.
    server.daemon_threads = True  # type: ignore[attr-defined]
    server.block_on_close = False  # type: ignore[attr-defined]

    def leave(_number: int, _frame: Any) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    print(
        f"SES and SQS answer on http://{HOST}:{port}; mails go to {mail_directory}",
        file=sys.stderr,
        flush=True,
    )
    try:
        server.serve_forever()
    finally:
        application.closing.set()
        server.server_close()
        mails.close()


def _answer(
    start_response: StartResponse,
    status: str,
    content: dict[str, Any] | str,
    headers: Sequence[tuple[str, str]] = (),
) -> Iterable[bytes]:
    body = (content if isinstance(content, str) else json.dumps(content)).encode()
    start_response(
        status, [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers]
    )
    return [body]
