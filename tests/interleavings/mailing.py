"""Email jobs whose calls to SES are boundaries too."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.rate import SendRate
from campaign_jobs.email.ses import Accepted, Mail, SendResult
from campaign_jobs.events import EmailEvent
from campaign_jobs.worker.delivery import Delivery
from campaign_jobs.worker.outcomes import Later, Outcome
from tests.integration.email_campaign import DEFAULT_SENDER, UNSUBSCRIBE_LINKS
from tests.integration.reward_campaign import deadline
from tests.interleavings.stepping import Schedule, Side

LOADS = "SELECT wanted.event_id, clock_timestamp() AS now"
CLAIMS = "WITH expired AS ( SELECT message.event_id"


@dataclass
class SteppedSender:
    """Accepts every mail; being asked and answering are boundaries of the side that sends."""

    side: Side
    sent: list[Mail]

    def send(self, mail: Mail) -> SendResult:
        self.side.reaches("SES is asked")
        self.sent.append(mail)
        self.side.reaches("SES answers")
        return Accepted(f"message-{uuid.uuid4()}")

    def max_send_rate(self) -> float:
        return 1_000_000


def email_job(side: Side, sent: list[Mail], sender: SteppedSender | None = None) -> EmailJob:
    """A job that adds what SES accepts to `sent`; one mail at a time, so that only one of the side's threads moves.

    Its grants are no boundaries: each is one statement on a row that no other work touches.
    """
    sender = sender or SteppedSender(side, sent)
    rate = SendRate(side.unstepped_database, sender, share=1)
    return EmailJob(
        side.database,
        sender,
        rate=rate,
        pool_size=1,
        default_sender=DEFAULT_SENDER,
        unsubscribe_links=UNSUBSCRIBE_LINKS,
    )


def settled(
    job: EmailJob, deliveries: Sequence[Delivery[EmailEvent]], outcomes: Sequence[Outcome]
) -> list[Outcome]:
    """The outcomes after all that was postponed has come again, alone, as from the retry queue."""
    return [
        job.process([delivery], deadline())[0] if isinstance(outcome, Later) else outcome
        for delivery, outcome in zip(deliveries, outcomes, strict=True)
    ]


def came_before_the_claim(schedule: Schedule, other: Side, sending: Side) -> bool:
    """Whether the other side committed before the mail was decided about for the last time, under its claim."""
    came_first = schedule.is_before(other, "COMMIT", sending, LOADS, last=True)
    assert came_first or not schedule.is_before(other, "COMMIT", sending, CLAIMS)
    return came_first
