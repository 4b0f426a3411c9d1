"""What SES tells of a mail: its event, as EventBridge puts it into a queue, read into what we keep of it.

Source of the shapes: Amazon SES Developer Guide, "Contents of event data that Amazon SES publishes to Amazon SNS" (the
event itself is the same for every destination) and "SES events schema reference" (EventBridge's envelope around it).
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from campaign_jobs.email.tags import MESSAGE_TAG
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.events import Timestamp

DeliveryStatus = Literal[
    "sent", "delayed", "soft_bounced", "delivered", "rendering_failed", "rejected", "bounced", "complained"
]
DELIVERY_STATUSES: Final[tuple[DeliveryStatus, ...]] = (
    "sent",
    "delayed",
    # SES gave up after a while, or an automatic answer came back, and then the mail is delivered all the same.
    "soft_bounced",
    "delivered",
    "rendering_failed",
    "rejected",
    # A receiving server may accept a mail and send it back later, and only who got a mail can complain.
    "bounced",
    "complained",
)
"""In the order in which a mail's status may advance, whatever the order in which its events come."""

_WITHOUT_DETAILS: Final[dict[str, DeliveryStatus]] = {
    "Send": "sent",
    "Delivery": "delivered",
    "DeliveryDelay": "delayed",
    "Reject": "rejected",
    "Rendering Failure": "rendering_failed",
}
_OUR_TAG: Final = re.compile("[0-9a-f]{32}")


class UnreadableEvent(CampaignJobsError):
    """A message of the feedback queue is not an event of SES; the message says what is wrong."""


@dataclass(frozen=True)
class SesEvent:
    """What is kept of one event."""

    tag: str
    ses_message_id: str
    delivery_status: DeliveryStatus
    occurred_at: datetime
    detail: str | None = None
    """The type of a bounce or a complaint."""
    suppressed: tuple[str, ...] = ()
    """The addresses that must not be written to again, as the mail had them."""

    @property
    def suppression(self) -> str:
        return "complaint" if self.delivery_status == "complained" else "bounce"


_Word = Annotated[str, StringConstraints(max_length=100, pattern=r"^[ -~]*$")]
_Address = Annotated[str, StringConstraints(min_length=1, max_length=320, pattern=r"^[^\x00-\x1f]+$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class _Mail(_Part):
    message_id: Annotated[_Word, Field(alias="messageId", min_length=1)]
    timestamp: Timestamp
    destination: Annotated[list[_Address], Field(max_length=50)]


class _Reported(_Part):
    """The part of an event that is named as its type; only some types have a time of their own."""

    timestamp: Timestamp | None = None
    bounce_type: Annotated[_Word | None, Field(alias="bounceType")] = None
    bounce_subtype: Annotated[_Word | None, Field(alias="bounceSubType")] = None
    complaint_subtype: Annotated[_Word | None, Field(alias="complaintSubType")] = None
    complaint_feedback: Annotated[_Word | None, Field(alias="complaintFeedbackType")] = None


_PARTS: Final = {
    "Bounce": "bounce",
    "Complaint": "complaint",
    "Delivery": "delivery",
    "DeliveryDelay": "deliveryDelay",
}


def read_ses_event(body: str) -> SesEvent | None:
    """Read a message of the feedback queue; None where it is not about a mail of ours, or tells nothing about delivery.

    Raises UnreadableEvent when it is not an event of SES.
    """
    detail = _detail(body)
    mail, event_type = detail.get("mail"), detail.get("eventType")
    if not isinstance(mail, dict) or not isinstance(event_type, str):
        raise UnreadableEvent("the event names no mail or no eventType")
    tag = _our_tag(mail)
    if tag is None or event_type not in {*_WITHOUT_DETAILS, "Bounce", "Complaint"}:
        return None
    try:
        sent = _Mail.model_validate(mail)
        reported = _Reported.model_validate(detail.get(_PARTS.get(event_type, "")) or {})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UnreadableEvent(f"{event_type}: {where}: {first['msg']}") from None
    return _event(event_type, tag, sent, reported)


def _detail(body: str) -> dict[str, Any]:
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        raise UnreadableEvent("the message is not JSON") from None
    if not isinstance(event, dict) or event.get("source") != "aws.ses":
        raise UnreadableEvent("the message is not an event of SES")
    detail = event.get("detail")
    if not isinstance(detail, dict):
        raise UnreadableEvent("the event has no detail")
    return detail


def _our_tag(mail: dict[str, Any]) -> str | None:
    tags = mail.get("tags")
    values = tags.get(MESSAGE_TAG) if isinstance(tags, dict) else None
    match values:
        case [str(value)] if _OUR_TAG.fullmatch(value):
            return value
    return None


def _event(event_type: str, tag: str, mail: _Mail, reported: _Reported) -> SesEvent | None:
    occurred_at = reported.timestamp or mail.timestamp
    match event_type:
        case "Bounce":
            permanent = reported.bounce_type == "Permanent"
            return SesEvent(
                tag,
                mail.message_id,
                "bounced" if permanent else "soft_bounced",
                occurred_at,
                _joined(reported.bounce_type, reported.bounce_subtype),
                _addresses(mail) if permanent else (),
            )
        case "Complaint" if reported.complaint_feedback == "not-spam":
            # Somebody took the mail out of a folder for spam.
            return None
        case "Complaint":
            return SesEvent(
                tag,
                mail.message_id,
                "complained",
                occurred_at,
                _joined(reported.complaint_feedback, reported.complaint_subtype),
                _addresses(mail),
            )
        case _:
            return SesEvent(tag, mail.message_id, _WITHOUT_DETAILS[event_type], occurred_at)


def _addresses(mail: _Mail) -> tuple[str, ...]:
    """The one that we wrote to.

    Not the recipients that a bounce or a complaint names: those come from the receiving side, which may have forwarded
    the mail, or may name whom it likes.
    """
    return tuple(mail.destination) if len(mail.destination) == 1 else ()


def _joined(*parts: str | None) -> str | None:
    return " ".join(part for part in parts if part) or None
