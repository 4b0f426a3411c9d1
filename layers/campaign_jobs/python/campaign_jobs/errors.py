"""The errors of this package: one small tree, so that a caller can catch as widely as it wants to."""


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


class QueueUnavailable(BatchStopped):
    """SQS does not take a message that must be kept."""


class SendingStopped(BatchStopped):
    """SES has stopped sending for the whole account (paused, suspended, or its domain is no longer verified)."""


class TemplateError(CampaignJobsError):
    """An email template cannot be rendered; the message names the template, the line and the cause."""


class UnsafeTarget(CampaignJobsError):
    """A webhook's URL leads where outgoing requests must not go."""


class PublishError(CampaignJobsError):
    """An event was not acknowledged by Kafka; the message says what to do."""
