"""What SES reports of the mails it has taken: events as EventBridge puts them into a queue, a little later.

Sources: Amazon SES Developer Guide, "Using the mailbox simulator" (what happens to its addresses, labels included),
"Contents of event data that Amazon SES publishes to Amazon SNS" and "SES events schema reference" (the shapes).
"""

import heapq
import itertools
import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parseaddr
from typing import Any, Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from campaign_jobs.errors import CampaignJobsError

_SIMULATOR: Final = "@simulator.amazonses.com"
_MAX_ENTRIES: Final = 10
_ACCOUNT: Final = "000000000000"

_DELIVERY: Final[tuple[str, str, dict[str, Any]]] = (
    "Delivery",
    "Email Delivered",
    {"processingTimeMillis": 500, "smtpResponse": "250 2.0.0 OK", "reportingMTA": "local.example.com"},
)
# What follows the Send of a mail to each address of the simulator; any other address is as success@.
_SCENARIOS: Final[dict[str, tuple[tuple[str, str, dict[str, Any]], ...]]] = {
    "success": (_DELIVERY,),
    "bounce": (("Bounce", "Email Bounced", {"bounceType": "Permanent", "bounceSubType": "General"}),),
    "suppressionlist": (
        ("Bounce", "Email Bounced", {"bounceType": "Permanent", "bounceSubType": "Suppressed"}),
    ),
    "ooto": (
        _DELIVERY,
        ("Bounce", "Email Bounced", {"bounceType": "Transient", "bounceSubType": "General"}),
    ),
    "complaint": (
        _DELIVERY,
        (
            "Complaint",
            "Email Complaint Received",
            {"complaintSubType": None, "complaintFeedbackType": "abuse"},
        ),
    ),
}
_RECIPIENTS: Final = {"Bounce": "bouncedRecipients", "Complaint": "complainedRecipients"}

log = logging.getLogger(__name__)


class FeedbackError(CampaignJobsError):
    """The settings of SES's events are wrong; the message says what is allowed."""


@dataclass(frozen=True)
class FeedbackSettings:
    """Where SES's events go, and how badly."""

    queue_url: str
    region: str
    delay_seconds: float = 0.5
    """Each event comes after half to one and a half times as long, so they overtake one another."""
    lost: float = 0
    """The share of events that never comes."""
    repeated: float = 0
    """The share of events that comes twice, under another id of EventBridge's."""
    seed: int | None = None


def read_feedback_settings(text: str) -> FeedbackSettings:
    """Raises FeedbackError."""
    try:
        settings = FeedbackSettings(**json.loads(text))
        shares = (settings.lost, settings.repeated)
        if not all(0 <= share <= 1 for share in shares) or settings.delay_seconds < 0:
            raise ValueError("lost and repeated are from 0 to 1, delay_seconds is not negative")
    except (TypeError, ValueError) as error:
        raise FeedbackError(f"the settings of SES's events are wrong: {error}") from error
    return settings


class SesFeedback:
    """Sends the events of accepted mails to the queue; without settings there are none."""

    def __init__(self, endpoint_url: str) -> None:
        self._endpoint_url = endpoint_url
        self._changed = threading.Condition()
        self._settings: FeedbackSettings | None = None
        self._random = random.Random()
        self._due: list[tuple[float, int, str]] = []
        self._number = itertools.count()
        self._on_their_way = 0
        self._sender: threading.Thread | None = None

    @property
    def pending(self) -> int:
        """Events that are not in the queue yet."""
        with self._changed:
            return self._on_their_way

    def configure(self, settings: FeedbackSettings) -> None:
        """From now on."""
        with self._changed:
            self._settings = settings
            self._random = random.Random(settings.seed)
            if self._sender is None:
                self._sender = threading.Thread(target=self._send, name="ses events", daemon=True)
                self._sender.start()

    def accepted(self, request: dict[str, Any], message_id: str, scenario: str | None = None) -> None:
        """Schedule what SES reports of this mail (a SendEmail request).

        `scenario` is one of the simulator's, in the place of the one that the mail's address names.
        """
        with self._changed:
            settings = self._settings
            if settings is None:
                return
            for event in events_of(request, message_id, settings.region, scenario):
                if self._random.random() < settings.lost:
                    continue
                copies = 2 if self._random.random() < settings.repeated else 1
                for _ in range(copies):
                    due = time.monotonic() + settings.delay_seconds * self._random.uniform(0.5, 1.5)
                    body = json.dumps({**event, "id": str(uuid.uuid4())})
                    heapq.heappush(self._due, (due, next(self._number), body))
                    self._on_their_way += 1
            self._changed.notify()

    def _send(self) -> None:
        clients: dict[str, Any] = {}
        while True:
            settings, bodies = self._take()
            try:
                if settings.region not in clients:
                    clients[settings.region] = self._client(settings.region)
                clients[settings.region].send_message_batch(
                    QueueUrl=settings.queue_url,
                    Entries=[{"Id": str(number), "MessageBody": body} for number, body in enumerate(bodies)],
                )
            except (BotoCoreError, ClientError):
                # Events are best effort, and the queue may have been deleted.
                log.exception("%d events of SES were not sent", len(bodies))
            with self._changed:
                self._on_their_way -= len(bodies)

    def _take(self) -> tuple[FeedbackSettings, Sequence[str]]:
        with self._changed:
            while True:
                now = time.monotonic()
                if self._settings is not None and self._due and self._due[0][0] <= now:
                    bodies: list[str] = []
                    while self._due and self._due[0][0] <= now and len(bodies) < _MAX_ENTRIES:
                        bodies.append(heapq.heappop(self._due)[2])
                    return self._settings, bodies
                self._changed.wait(self._due[0][0] - now if self._due else None)

    def _client(self, region: str) -> Any:
        return boto3.client(
            "sqs",
            endpoint_url=self._endpoint_url,
            region_name=region,
            aws_access_key_id="local",
            aws_secret_access_key="local",  # noqa: S106  The stand-in takes any.
        )


def events_of(
    request: dict[str, Any], message_id: str, region: str, scenario: str | None = None
) -> list[dict[str, Any]]:
    """What SES reports of an accepted mail (a SendEmail request), in its order and without EventBridge's ids."""
    destination = [to for addresses in request.get("Destination", {}).values() for to in addresses]
    configuration_set = request.get("ConfigurationSetName", "local")
    mail = {
        "timestamp": _now(),
        "source": parseaddr(request.get("FromEmailAddress", ""))[1],
        "sendingAccountId": _ACCOUNT,
        "messageId": message_id,
        "destination": destination,
        "headersTruncated": False,
        "headers": [],
        "tags": {
            "ses:configuration-set": [configuration_set],
            **{tag["Name"]: [tag["Value"]] for tag in request.get("EmailTags", [])},
        },
    }
    happened = [("Send", "Email Sent", {}), *_SCENARIOS[scenario or _scenario(destination)]]
    return [
        {
            "version": "0",
            "detail-type": detail_type,
            "source": "aws.ses",
            "account": _ACCOUNT,
            "time": _now(),
            "region": region,
            "resources": [f"arn:aws:ses:{region}:{_ACCOUNT}:configuration-set/{configuration_set}"],
            "detail": {
                "eventType": event_type,
                "mail": mail,
                event_type.lower(): _reported(event_type, part, destination),
            },
        }
        for event_type, detail_type, part in happened
    ]


def _scenario(destination: Sequence[str]) -> str:
    address = parseaddr(destination[0])[1].lower() if destination else ""
    name = address.removesuffix(_SIMULATOR).partition("+")[0] if address.endswith(_SIMULATOR) else "success"
    return name if name in _SCENARIOS else "success"


def _reported(event_type: str, part: dict[str, Any], destination: Sequence[str]) -> dict[str, Any]:
    if event_type == "Send":
        return {}
    if event_type == "Delivery":
        return {**part, "timestamp": _now(), "recipients": list(destination)}
    recipients = [{"emailAddress": address} for address in destination]
    return {**part, "timestamp": _now(), "feedbackId": str(uuid.uuid4()), _RECIPIENTS[event_type]: recipients}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
