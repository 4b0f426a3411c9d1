"""Events of a campaign, and what the topic holds, for the tests of replays."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from campaign_jobs.events import read_object
from campaign_jobs_cli import kafka, records
from campaign_jobs_cli.errors import ExitCode
from campaign_jobs_cli.records import Record
from campaign_jobs_cli.targets import Target
from campaign_jobs_cli.times import Edge
from tests.cli.operating.conftest import Ran, Type
from tests.integration.email_campaign import MailCampaign

Found = TypeVar("Found")
Publish = Callable[[Sequence[tuple[str | bytes | None, bytes]]], None]


def value(type_: str, data: dict[str, Any], event_id: str, **more: Any) -> bytes:
    event = {"id": event_id, "type": type_, "data": data, "timestamp": "2026-01-01T00:00:00Z", **more}
    return json.dumps(event).encode()


def mail(campaign: MailCampaign, user: UUID, event_id: str, type_: str = "welcome", **data: Any) -> bytes:
    payload = {"type": type_, "campaign_id": str(campaign.id), "user_id": str(user), **data}
    return value(f"job.email.{type_}", payload, event_id)


def deliver(user_reward: UUID, event_id: str) -> bytes:
    return value("job.reward.deliver", {"user_reward_id": str(user_reward)}, event_id)


def accepted(campaign: MailCampaign, user: UUID, event_id: str, type_: str = "welcome") -> None:
    """What the email job has written down about a mail that SES took."""
    once = f"{type_}:{user}" if type_ == "welcome" else None
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.email_messages"
        " (event_id, type, campaign_id, user_id, once_key, status, ses_message_id, accepted_at)"
        " VALUES (%s, %s, %s, %s, %s, 'accepted', 'ses', now())",
        (event_id, type_, campaign.id, user, once),
    )


def topic(target: Target) -> list[Record]:
    with kafka.consumer(target) as client:
        ranges = records.ranges(target, client, Edge.BEGINNING, Edge.END)
        return [record for batch in records.read(target, client, ranges) for record in batch]


def ids(target: Target) -> Counter[str]:
    return Counter(read_object(record.value)["id"] for record in topic(target))


def outcomes(ran: Ran) -> dict[tuple[str, str], tuple[str, int, int]]:
    """Event type without its prefix and fate → outcome, events, mails."""
    return {
        (row["type"].removeprefix("job."), row["fate"]): (row["outcome"], row["events"], row["mails"])
        for row in ran.json["outcomes"]
    }


def plan(type_: Type, *words: object) -> Ran:
    ran = type_("replay", "--from", "beginning", "--dry-run", "--output", "json", *words)
    assert ran.code == ExitCode.DONE, ran.err
    return ran
