"""The errors of this package: one small tree, so that a caller can catch as widely as it wants to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from campaign_jobs.events import Event


class CampaignJobsError(Exception):
    """Something went wrong in campaign-jobs."""


class SettingsError(CampaignJobsError):
    """Settings are missing or wrong; `problems` holds one line for each, naming setting, value and what is allowed."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class InvalidEvent(CampaignJobsError):
    """A record's value does not follow the event contract; the message says what was wrong and what is allowed."""


class NotOurs(CampaignJobsError):
    """A record's value has no owner among the job types; `unroutable` dead-letters it with this message."""


class BatchStopped(CampaignJobsError):
    """Nothing of the batch can go on now, so the function fails it and Kafka (or SQS) keeps it; nothing is spent."""


class DatabaseUnavailable(BatchStopped):
    """PostgreSQL does not answer."""


class OutOfTime(DatabaseUnavailable):
    """PostgreSQL has not answered within what was left of the invocation."""


class QueueUnavailable(BatchStopped):
    """SQS does not take a message that must be kept."""


class SendingStopped(BatchStopped):
    """SES does not send for us: it is out of reach, has stopped the account, or refuses our sender or credentials."""


class UnknownLane(BatchStopped):
    """An invocation does not say for which of its function's lanes it is; it must be by a lane's alias."""


class InvocationTooShort(BatchStopped):
    """The function's time-out leaves its job no time to work, so everything would be handed on for ever."""


class RateExhausted(SendingStopped):
    """The account's send rate leaves no room for the rest of the batch before the invocation's deadline."""


class RateUnknown(CampaignJobsError):
    """SES did not tell the account's send rate."""


class KeysUnavailable(BatchStopped):
    """The keys that sign unsubscribe links cannot be read."""


class TemplateError(CampaignJobsError):
    """An email template cannot be rendered; the message names the template, the line and the cause."""


class UnsafeTarget(CampaignJobsError):
    """A webhook's URL leads where outgoing requests must not go."""


class PublishError(CampaignJobsError):
    """Kafka has not acknowledged everything; the message says what to do.

    `unacknowledged` holds the positions, in what was given, of those that were not acknowledged; all others were.
    `events` holds the same as events, where events or payloads were given: handed to `enqueue_many` they are sent again
    under the ids that they have, so that one that had arrived after all is done only once.
    """

    def __init__(self, message: str, unacknowledged: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.unacknowledged = tuple(unacknowledged)
        self.events: tuple[Event, ...] = ()


class BrokersUnreachable(PublishError):
    """No broker answers, or none acknowledged in time."""


class UnknownTopic(PublishError):
    """The topic does not exist."""


class NotAuthorized(PublishError):
    """The brokers refuse who we are, or what we may do."""


class ValueTooLarge(PublishError):
    """A value is longer than the contract, or the topic, allows."""


class ProducerClosed(PublishError):
    """The producer was closed before."""
