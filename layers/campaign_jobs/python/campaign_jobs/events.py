"""The event contract: what a record's value must be, and whose it is.

Liberal in what it takes, as existing producers send it: unknown extra fields, null for absent, no timestamp. Bounded to
what the database holds, so that a value that passes here never fails a batch statement.
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID, uuid4

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from campaign_jobs import catalog
from campaign_jobs.errors import InvalidEvent, NotOurs

INT4_MAX: Final = 2_147_483_647
MAX_TEMPLATE_DATA_ENTRIES: Final = 50

EmailType = Literal["verification", "welcome", "position_update", "reward_earned", "milestone"]
EMAIL_EVENT_PREFIX: Final = "job.email."
NO_TIME_BEFORE: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""A timestamp from before is none: Go's zero time, for one, which producers send who set nothing, or Unix's epoch."""


def _storable(text: str) -> str:
    # PostgreSQL's text holds neither, and one such value would fail the statement of a whole batch.
    if "\x00" in text:
        raise ValueError("must not contain NUL")
    # Asked first, because it is known of a text, and most are.
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise ValueError("must not contain a lone surrogate")
    return text


def _printable(text: str) -> str:
    if not _storable(text).isprintable():
        raise ValueError("must not contain control characters")
    return text


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict) or None not in value.values():
        return value
    return {key: entry for key, entry in value.items() if entry is not None}


def _as_utc(moment: datetime) -> datetime:
    # A time without a zone is taken as UTC, which is what producers that leave it out mean.
    if not moment.utcoffset():
        # Most say so, and replacing the zone takes a tenth of what converting does.
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be between the years 1 and 9999 in UTC") from None


def _only_text(value: Any) -> Any:
    if not isinstance(value, (str, datetime)):
        raise ValueError("must be a text such as 2025-01-01T12:00:00Z")
    return value


def _not_a_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a text or a number")
    return value


EventId = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Timestamp = Annotated[datetime, BeforeValidator(_only_text), AfterValidator(_as_utc)]
Int4 = Annotated[int, Field(strict=True, ge=-INT4_MAX, le=INT4_MAX)]
TemplateText = Annotated[str, Field(max_length=5_000), AfterValidator(_storable)]
TemplateNumber = (
    Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]
    | Annotated[float, Field(strict=True, allow_inf_nan=False)]
)
TemplateValue = Annotated[TemplateText | TemplateNumber, BeforeValidator(_not_a_boolean)]
TemplateKey = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class _Model(BaseModel):
    # A payload may hold what a person wrote, so the errors of its construction do not repeat it.
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return _without_nulls(value)


class EmailJobPayload(_Model):
    """One mail to one user."""

    type: EmailType
    campaign_id: UUID
    user_id: UUID
    priority: Int4 = 0
    """Inside one batch, higher is handled first. Kafka has no priority, so nothing more is promised."""
    template_id: UUID | None = None
    """A template of the campaign to use instead of its enabled one."""
    template_data: Annotated[
        dict[TemplateKey, TemplateValue],
        BeforeValidator(_without_nulls),
        Field(max_length=MAX_TEMPLATE_DATA_ENTRIES),
    ] = {}
    """Texts and numbers for the template, which finds them under `data`."""
    user_reward_id: UUID | None = None
    """The user reward that a reward_earned mail is about."""
    milestone: Annotated[int, Field(strict=True, ge=1, le=INT4_MAX)] | None = None
    """The milestone that a milestone mail is about."""

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> "EmailJobPayload":
        for type_, name in (("reward_earned", "user_reward_id"), ("milestone", "milestone")):
            if self.type == type_ and getattr(self, name) is None:
                raise ValueError(f"{name} is missing: a {type_} mail needs it")
        return self


class PositionRecalcJobPayload(_Model):
    """Recalculate all positions of a campaign."""

    campaign_id: UUID
    points_per_referral: Annotated[int, Field(strict=True, ge=0, le=INT4_MAX)] = 0
    """Becomes the campaign's; 0 means to keep the campaign's."""


class RewardDeliveryJobPayload(_Model):
    """Deliver one user reward by its reward's method."""

    user_reward_id: UUID


Payload = EmailJobPayload | PositionRecalcJobPayload | RewardDeliveryJobPayload


class _Envelope(_Model):
    id: EventId
    """The identity of the job for ever: across redeliveries, retries, replays and redrives."""
    account_id: Annotated[str, Field(max_length=200), AfterValidator(_storable)] | None = None
    campaign_id: Annotated[str, Field(max_length=200), AfterValidator(_storable)] | None = None
    """For readers of the topic; the jobs go by the one in `data`."""
    timestamp: Timestamp
    """When the producer asked for the job; the record's own timestamp where it is left out."""

    @property
    def asked_at(self) -> datetime | None:
        """When the event itself says that it was asked for: the same whenever it is published again; None where it
        does not say."""
        is_dated = "timestamp" in self.model_fields_set
        return self.timestamp if is_dated and self.timestamp >= NO_TIME_BEFORE else None


class EmailEvent(_Envelope):
    type: Literal[
        "job.email.verification",
        "job.email.welcome",
        "job.email.position_update",
        "job.email.reward_earned",
        "job.email.milestone",
    ]
    data: EmailJobPayload

    @model_validator(mode="before")
    @classmethod
    def _payload_names_the_type(cls, value: Any) -> Any:
        """The payload's type may be left out, since the event's type says it; it must not say something else."""
        value = _without_nulls(value)
        if not isinstance(value, dict) or not isinstance(value.get("data"), dict):
            return value
        data = dict(_without_nulls(value["data"]))
        expected = str(value.get("type")).removeprefix(EMAIL_EVENT_PREFIX)
        if data.setdefault("type", expected) != expected:
            raise ValueError(f"data.type must be {expected!r}, as the event's type says")
        return {**value, "data": data}


class PositionEvent(_Envelope):
    type: Literal["job.position.recalculate"]
    data: PositionRecalcJobPayload


class RewardEvent(_Envelope):
    type: Literal["job.reward.deliver"]
    data: RewardDeliveryJobPayload


Event = EmailEvent | PositionEvent | RewardEvent
EVENT_ADAPTER: Final[TypeAdapter[Event]] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


def new_event(
    payload: Payload,
    *,
    event_id: str | None = None,
    account_id: str | None = None,
    timestamp: datetime | None = None,
) -> Event:
    """The event that asks for a job: a payload in its envelope.

    `event_id` is the job's identity for ever; a random UUID unless given. `account_id` is the campaign's id where the
    payload names a campaign, as existing producers send it, unless given. `timestamp` is now unless given. Raises
    InvalidEvent where the result would not follow the contract.
    """
    campaign_id = None if isinstance(payload, RewardDeliveryJobPayload) else str(payload.campaign_id)
    if isinstance(payload, EmailJobPayload):
        event_type = f"{EMAIL_EVENT_PREFIX}{payload.type}"
    elif isinstance(payload, PositionRecalcJobPayload):
        event_type = "job.position.recalculate"
    else:
        event_type = "job.reward.deliver"
    now = datetime.now(UTC)
    envelope = {
        "id": str(uuid4()) if event_id is None else event_id,
        "type": event_type,
        "account_id": campaign_id if account_id is None else account_id,
        "campaign_id": campaign_id,
        # Checked again, because a copy of a payload with other values has not been.
        "data": payload.model_dump(warnings=False),
        "timestamp": now if timestamp is None else timestamp,
    }
    return parse(envelope, recorded_at=now)


def events_of(given: Sequence[Payload | Event]) -> list[Event]:
    """Payloads in new envelopes, events as they are. Raises InvalidEvent that names the position of a wrong one."""
    events: list[Event] = []
    for position, item in enumerate(given):
        if not isinstance(item, Payload):
            events.append(item)
            continue
        try:
            events.append(new_event(item))
        except InvalidEvent as error:
            raise InvalidEvent(f"payload {position}: {error}") from None
    return events


def partition_key(event: Event) -> str:
    """The key to publish an event under: user, campaign or user reward."""
    if isinstance(event, EmailEvent):
        return str(event.data.user_id)
    if isinstance(event, PositionEvent):
        return str(event.data.campaign_id)
    return str(event.data.user_reward_id)


def as_json(event: Event) -> dict[str, Any]:
    """The event as it goes over the wire, without what is absent."""
    encoded: dict[str, Any] = event.model_dump(mode="json", exclude_none=True)
    if not encoded["data"].get("template_data", True):
        del encoded["data"]["template_data"]
    return encoded


def as_value(event: Event) -> bytes:
    """The event as the value of a Kafka record: UTF-8 JSON."""
    return json.dumps(as_json(event), ensure_ascii=False, separators=(",", ":")).encode()


def read_object(value: bytes | None) -> dict[str, Any]:
    """Decode a record's value as far as needed to see whose it is: a JSON object with a text `type`.

    Raises NotOurs with a reason that a person understands: too large, null, bad UTF-8, not JSON, no object, no type.
    """
    if value is None:
        raise NotOurs("the value is null; allowed is a JSON object")
    if len(value) > catalog.MAX_VALUE_BYTES:
        raise NotOurs(f"the value has {len(value)} bytes; allowed are at most {catalog.MAX_VALUE_BYTES}")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotOurs(f"the value is not UTF-8 (byte {error.start}); allowed is UTF-8 JSON") from None
    try:
        decoded = _DECODER.decode(text)
    except RecursionError:
        raise NotOurs("the value is not JSON: it is nested too deeply") from None
    except ValueError as error:
        raise NotOurs(f"the value is not JSON: {_without_input(error)}; allowed is a JSON object") from None
    if not isinstance(decoded, dict):
        raise NotOurs(f"the value is a JSON {_json_kind(decoded)}; allowed is a JSON object")
    if decoded.get("type") is None:
        raise NotOurs(f"the event's type is missing; allowed are {', '.join(catalog.JOB_TYPE_BY_EVENT_TYPE)}")
    if not isinstance(decoded["type"], str):
        raise NotOurs(f"the event's type is a JSON {_json_kind(decoded['type'])}; allowed is a text")
    return decoded


def owner(event_type: str) -> catalog.EventJobType | None:
    """The job type that owns events of this type, None for a heartbeat. Raises NotOurs when nobody does."""
    if event_type == catalog.HEARTBEAT_EVENT_TYPE:
        return None
    job_type = catalog.JOB_TYPE_BY_EVENT_TYPE.get(event_type)
    if job_type is None:
        shown = ascii(event_type[:60])
        raise NotOurs(
            f"the event's type {shown} is unknown; allowed are {', '.join(catalog.JOB_TYPE_BY_EVENT_TYPE)}"
        )
    return job_type


def parse(decoded: dict[str, Any], *, recorded_at: datetime) -> Event:
    """Check an object of a known type against the contract.

    `recorded_at` stands in for a timestamp that the producer left out. Raises InvalidEvent that names each wrong field
    and what is allowed, without repeating values: they may be a person's.
    """
    is_dated = decoded.get("timestamp") is not None
    if not is_dated:
        decoded = {**decoded, "timestamp": recorded_at}
    try:
        event = EVENT_ADAPTER.validate_python(decoded)
    except ValidationError as error:
        raise InvalidEvent("; ".join(_problems(error))) from None
    if not is_dated:
        # It was filled in, and nobody has set it.
        event.model_fields_set.discard("timestamp")
    return event


_NO_TEXT_OR_NUMBER: Final = "must be a text or a number"


def _problems(error: ValidationError) -> list[str]:
    """One line for each wrong field, at most ten, without what the producer sent."""
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        # The first element of a location is the discriminating event type.
        location, message = problem["loc"][1:], problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "string_unicode":
            message = "must not contain a lone surrogate"
        if location[:2] == ("data", "template_data") and len(location) > 3:
            # A value is tried as a text and as each kind of number; that it is none of them is one problem, not three.
            location = location[:3]
            if problem["type"] in ("string_type", "int_type", "float_type"):
                message = _NO_TEXT_OR_NUMBER
        # Keys that a producer chose are not repeated unless they are plain names.
        names = [str(part) for part in location]
        where = ".".join(name for name in names if re.fullmatch(r"[a-z_]{1,40}", name)) or "the event"
        if lines.get(where, _NO_TEXT_OR_NUMBER) == _NO_TEXT_OR_NUMBER:
            lines[where] = message
    return [f"{where}: {message}" for where, message in list(lines.items())[:10]]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


# Built once: json.loads would build one for each text.
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def _without_input(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (line {error.lineno}, column {error.colno})"
    return str(error) if "JSON number" in str(error) else "a number has too many digits"


def _json_kind(value: object) -> str:
    kinds = {list: "array", str: "text", bool: "boolean", int: "number", float: "number", dict: "object"}
    return kinds.get(type(value), "null")
