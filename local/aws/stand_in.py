"""The stand-in as a child process of whoever needs SES and SQS."""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from local.aws.account import AccountError, AccountSettings, Second, read_seconds, write_settings
from local.aws.feedback import FeedbackError, FeedbackSettings
from local.aws.script import ScriptError, ScriptLine, write_script
from local.aws.wsgi import ACCOUNT_PATH, FEEDBACK_PATH, READY_PATH, SCRIPT_PATH
from local.processes import HOST, ChildProcess, Service, StartError, pick_port

_START_SECONDS: Final = 60

# Never through a proxy that the environment names for the rest of the world.
_direct: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class AwsStandIn(Service):
    """SES and SQS on 127.0.0.1, for boto3 clients with `endpoint_url` and any credentials.

    What SES accepts lies in `mail_directory`. Queues and identities live in memory: they end with the process.
    """

    def __init__(
        self,
        mail_directory: Path,
        *,
        preferred_port: int | None = None,
        log_file: Path | None = None,
        script: Sequence[ScriptLine] = (),
        account: AccountSettings | None = None,
    ) -> None:
        """`log_file` is aws.log beside the mail directory unless given."""
        self.mail_directory = mail_directory.absolute()
        self.log_file = log_file or self.mail_directory.parent / "aws.log"
        self._preferred_port = preferred_port
        self._script = list(script)
        self._account = account
        self._port: int | None = None
        self._process: ChildProcess | None = None

    @property
    def endpoint_url(self) -> str:
        if self._port is None:
            raise StartError("the SES and SQS stand-in has not been started, so it has no address yet")
        return f"http://{HOST}:{self._port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start, and return when it answers. Raises StartError. A later start takes the same port."""
        if self.running:
            raise StartError(f"the SES and SQS stand-in is running already, on {self.endpoint_url}")
        if self._port is None:
            self._port = pick_port(self._preferred_port)
        self._process = ChildProcess(
            "the SES and SQS stand-in",
            [sys.executable, "-m", "local.aws", "--port", str(self._port), "--mail-dir", self.mail_directory],
            log_file=self.log_file,
            # The child imports the same modules, wherever we found them.
            environment={"PYTHONPATH": _python_path()},
        )
        self._process.start()
        self._process.wait_until(self._answers, timeout_seconds=_START_SECONDS)
        if self._script:
            self.play(self._script)
        if self._account is not None:
            self.set_account(self._account)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def play(self, script: Sequence[ScriptLine]) -> None:
        """Replace the script that SES follows; an empty one makes it accept again. Raises ScriptError."""
        try:
            self._put(SCRIPT_PATH, write_script(script))
        except urllib.error.HTTPError as error:
            raise ScriptError(error.read().decode()) from error

    def report(self, settings: FeedbackSettings) -> None:
        """Let SES report what becomes of the mails that it takes from now on. Raises FeedbackError."""
        try:
            self._put(FEEDBACK_PATH, json.dumps(asdict(settings)))
        except urllib.error.HTTPError as error:
            raise FeedbackError(error.read().decode()) from error

    def pending_reports(self) -> int:
        """Events of SES that are not in their queue yet."""
        with _direct.open(self.endpoint_url + FEEDBACK_PATH, timeout=10) as answer:
            return int(json.load(answer)["pending"])

    def set_account(self, account: AccountSettings) -> None:
        """Replace how fast the account may send, and whether it may at all. Raises AccountError."""
        try:
            self._put(ACCOUNT_PATH, write_settings(account))
        except urllib.error.HTTPError as error:
            raise AccountError(error.read().decode()) from error

    def seconds(self) -> list[Second]:
        """How many mails SES accepted and throttled, for each second in which it did, since the start."""
        with _direct.open(self.endpoint_url + ACCOUNT_PATH, timeout=10) as answer:
            return read_seconds(answer.read().decode())

    def _put(self, path: str, body: str) -> None:
        request = urllib.request.Request(  # noqa: S310  The address is our own.
            self.endpoint_url + path, data=body.encode(), method="PUT"
        )
        _direct.open(request, timeout=10).close()

    def _answers(self) -> bool:
        try:
            _direct.open(self.endpoint_url + READY_PATH, timeout=2).close()
        except OSError:
            return False
        return True


def _python_path() -> str:
    return os.pathsep.join(path for path in sys.path if path)
