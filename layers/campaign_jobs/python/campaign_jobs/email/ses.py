"""Sending one mail through SES, and what its answers mean for the job."""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formataddr
from typing import TYPE_CHECKING, Any, Final, Protocol

from campaign_jobs.email.rendering import RenderedEmail
from campaign_jobs.errors import RateUnknown, SendingStopped

if TYPE_CHECKING:
    from mypy_boto3_sesv2 import SESV2Client

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 10
"""An answer takes well under a second; one that has not come by then counts as a crash."""


@dataclass(frozen=True)
class Mail:
    sender_name: str | None
    sender: str
    foreign_sender: bool
    """The campaign sends from a domain of its own, so that a refusal of the domain is the campaign's trouble alone."""
    reply_to: str | None
    recipient: str
    content: RenderedEmail
    tags: Mapping[str, str]
    headers: Mapping[str, str]
    """Headers besides those that SES writes itself."""


@dataclass(frozen=True)
class Accepted:
    message_id: str


@dataclass(frozen=True)
class Refused:
    """SES will never take this mail."""

    reason: str


@dataclass(frozen=True)
class Throttled:
    """Over the account's rate; never a failure of the job."""


@dataclass(frozen=True)
class Failed:
    """It was surely not sent, and may go another time."""

    reason: str


@dataclass(frozen=True)
class Unreached(Failed):
    """SES could not even be connected to, so that it is not about the mail."""


@dataclass(frozen=True)
class Unknown:
    """No answer came: it may have been sent or not."""

    reason: str


SendResult = Accepted | Refused | Throttled | Failed | Unknown


class EmailSender(Protocol):
    """Sends mails; used by several threads at once."""

    def send(self, mail: Mail) -> SendResult:
        """Send one mail, once. Raises SendingStopped when the whole account may not send."""
        ...

    def max_send_rate(self) -> float:
        """How many mails a second the account may send.

        Raises SendingStopped when it may send none, and RateUnknown when SES does not say.
        """
        ...


# Error codes, without the "Exception" that some of them end with.
# https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html#API_SendEmail_Errors
# https://docs.aws.amazon.com/ses/latest/APIReference/CommonErrors.html
_THROTTLES: Final = {"TooManyRequests", "Throttling", "LimitExceeded"}
_REFUSALS: Final = {"MessageRejected", "BadRequest", "Validation"}
# Perhaps about the domain or the address that a mail is sent from.
_SENDER_REFUSALS: Final = {"MailFromDomainNotVerified", "AccessDenied", "NotAuthorized"}
# The account's troubles or our credentials', not the mail's: the whole queue must wait, not die.
_STOPS: Final = {
    "SendingPaused",
    "AccountSuspended",
    "NotFound",
    "UnrecognizedClient",
    "InvalidClientTokenId",
    "ExpiredToken",
    "InvalidSignature",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "MissingAuthenticationToken",
    "OptInRequired",
    "RequestExpired",
}
_NOT_LET_IN: Final = (401, 403)


class SesSender:
    """SES v2."""

    def __init__(self, *, pool_size: int, configuration_set: str | None) -> None:
        self._pool_size = pool_size
        self._configuration_set = configuration_set
        self._building = threading.Lock()
        self._built: SESV2Client | None = None

    @property
    def _client(self) -> "SESV2Client":
        # The threads of a pool ask for it at once, and boto3 cannot build two clients at the same time.
        with self._building:
            if self._built is None:
                self._built = self._build()
            return self._built

    def _build(self) -> "SESV2Client":
        import boto3
        from botocore.config import Config

        return boto3.client(
            "sesv2",
            config=Config(
                # SES has no idempotency token, so a repetition by the SDK could be a second mail that nobody recorded.
                retries={"total_max_attempts": 1},
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                max_pool_connections=self._pool_size,
            ),
        )

    def send(self, mail: Mail) -> SendResult:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectTimeoutError,
            CredentialRetrievalError,
            EndpointConnectionError,
            NoCredentialsError,
            NoRegionError,
            ParamValidationError,
            PartialCredentialsError,
        )

        try:
            sender = formataddr((mail.sender_name, mail.sender))
        except UnicodeError:
            return Refused("the sender's address is not ASCII, which SES does not take")

        request: dict[str, Any] = {
            "FromEmailAddress": sender,
            "Destination": {"ToAddresses": [mail.recipient]},
            "Content": {
                "Simple": {
                    "Subject": _text(mail.content.subject),
                    "Body": {"Html": _text(mail.content.html), "Text": _text(mail.content.text)},
                }
            },
            "EmailTags": [{"Name": name, "Value": value} for name, value in mail.tags.items()],
        }
        if mail.headers:
            headers = [{"Name": name, "Value": value} for name, value in mail.headers.items()]
            request["Content"]["Simple"]["Headers"] = headers
        if mail.reply_to is not None:
            request["ReplyToAddresses"] = [mail.reply_to]
        if self._configuration_set is not None:
            request["ConfigurationSetName"] = self._configuration_set
        try:
            return Accepted(self._client.send_email(**request)["MessageId"])
        except ClientError as error:
            return _meaning(error.response, mail)
        except (ConnectTimeoutError, EndpointConnectionError) as error:
            return Unreached(f"SES was not reached: {type(error).__name__}")
        except (
            CredentialRetrievalError,
            NoCredentialsError,
            NoRegionError,
            PartialCredentialsError,
        ) as error:
            raise SendingStopped(f"SES cannot be asked: {type(error).__name__}") from error
        except ParamValidationError:
            return Refused("SES does not take such a request")
        except BotoCoreError as error:
            # A read timeout, a connection that broke on the way: the mail may be out.
            return Unknown(f"no answer from SES: {type(error).__name__}")

    def max_send_rate(self) -> float:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            account = self._client.get_account()
        except ClientError as error:
            raise RateUnknown(f"SES refused GetAccount: {error.response['Error']['Code']}") from error
        except BotoCoreError as error:
            raise RateUnknown(f"no answer from SES: {type(error).__name__}") from error
        if not account.get("SendingEnabled", True) or account.get("EnforcementStatus") == "SHUTDOWN":
            raise SendingStopped("SES does not send for this account: sending is not enabled")
        rate = account.get("SendQuota", {}).get("MaxSendRate", 0)
        if rate <= 0:
            raise SendingStopped(f"SES does not send for this account: its MaxSendRate is {rate:g}")
        return rate


def _meaning(response: Mapping[str, Any], mail: Mail) -> SendResult:
    error = response.get("Error", {})
    code = error.get("Code", "")
    name = code.removesuffix("Exception")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if name in _THROTTLES:
        return Throttled()
    if name in _STOPS:
        raise SendingStopped(f"SES does not send for this account: {code}")
    if name in _SENDER_REFUSALS or status in _NOT_LET_IN:
        if mail.foreign_sender:
            return Refused(f"SES does not let us send from the campaign's from_email: {code or status}")
        raise SendingStopped(f"SES does not send for this account: {code or status}")
    if (
        name == "MessageRejected"
        and not mail.foreign_sender
        and _is_unverified(mail, error.get("Message", ""))
    ):
        raise SendingStopped("SES does not send for this account: our sender is not verified")
    if name in _REFUSALS:
        return Refused(f"SES refused the mail: {code}")
    if status is not None and 400 <= status < 500:
        return Refused(f"SES refused the mail: {code or status}")
    return Failed(f"SES failed: {code or status}")


def _is_unverified(mail: Mail, message: str) -> bool:
    """Whether SES says of the sender that it is not verified; in its sandbox it says that of recipients too.

    "Email address is not verified. The following identities failed the check in region EU-CENTRAL-1: Name <address>,
    address", with dots at the end where some are left out.
    https://docs.aws.amazon.com/ses/latest/dg/troubleshoot-error-messages.html
    """
    sender = mail.sender.lower()
    named = {word.strip(".") for word in re.split(r"[\s,<>]+", message.lower())}
    return "not verified" in message and (sender in named or sender.rpartition("@")[2] in named)


def _text(data: str) -> dict[str, str]:
    return {"Data": data, "Charset": "UTF-8"}
