"""Every job type with what both worlds need to know of it: the CDK stack and the local system read the same table.

Pure data. It imports nothing but the standard library, so that reading it costs a cold start nothing.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

TOPIC_PARTITIONS: Final = 10
MAX_VALUE_BYTES: Final = 262_144
"""The longest record value we take. Kafka's own limit is for the compressed batch, so it cannot stand in for this."""

QUEUE_RETENTION_DAYS: Final = 14
RETRY_MAX_RECEIVES: Final = 1_000
"""The most that SQS takes. Attempts are counted inside the message; this catches what escapes that count."""

HEARTBEAT_EVENT_TYPE: Final = "campaign-jobs.heartbeat"

DEFAULT_TOPIC: Final = "job-events"
DEFAULT_CONSUMER_GROUP: Final = "job-workers"


@dataclass(frozen=True)
class Metric:
    """A metric of ours that alarms stand on. All have two dimensions: `service`, a job type, and FUNCTION_DIMENSION."""

    name: str
    dimension: str | None = None
    """One more, where there are several of it."""

    def dimensions(self, which: str) -> dict[str, str]:
        """What tells one of several apart from the others."""
        return {} if self.dimension is None else {self.dimension: which}


METRICS_NAMESPACE: Final = "campaign-jobs"
FUNCTION_DIMENSION: Final = "function_name"
"""The function's name carries the environment's, of which an account may have several."""

HEARTBEAT_AGE: Final = Metric("heartbeat_age", "consumer_group")
"""By relay: seconds since the last heartbeat was published that a consumer group has got through."""
OUTBOX_AGE: Final = Metric("outbox_age")
"""By relay: seconds that the oldest event has waited in the outbox."""
WATERMARK_AGE: Final = Metric("watermark_age", "job_type")
"""By relay: seconds that a watermark is behind where its rule's present schedule should have brought it."""
RETRY_AGE: Final = Metric("retry_age", "lane")
"""By each function: seconds since a record from a retry queue was first received."""
BATCH_STOPPED: Final = Metric("batch_stopped")
"""By each function that takes batches: how many it has failed, so that their source keeps them."""


@dataclass(frozen=True)
class Lane:
    """One event-source mapping of a job type, with a consumer group and a retry queue of its own."""

    name: str
    """Also the name of the function's alias that its mappings invoke: only by that is an invocation's lane known."""
    event_types: tuple[str, ...]
    """The event types its filter passes; empty means no filter at all."""
    batch_size: int
    batching_window_seconds: int
    bulk: bool = False
    """It leaves a reserve of the send rate to the other lanes."""

    @cached_property
    def retry_queue_setting(self) -> str:
        return f"RETRY_QUEUE_URL_{_setting_suffix(self.name)}"

    def consumer_group(self, prefix: str) -> str:
        return f"{prefix}-{self.name}"

    def filter_pattern(self) -> dict[str, object] | None:
        """The mapping's filter in Lambda's syntax, or None where every record is wanted."""
        if not self.event_types:
            return None
        return {"value": {"type": [*self.event_types, HEARTBEAT_EVENT_TYPE]}}


@dataclass(frozen=True)
class EventJobType:
    """A job type that Kafka events start: one function, one dead-letter queue, one or more lanes."""

    name: str
    lanes: tuple[Lane, ...]
    timeout_seconds: int
    memory_mb: int
    max_attempts: int
    """Attempts before an event that keeps failing becomes a dead letter."""

    @cached_property
    def event_types(self) -> tuple[str, ...]:
        return tuple(event_type for lane in self.lanes for event_type in lane.event_types)

    @property
    def dead_letter_queue_setting(self) -> str:
        return f"DEAD_LETTER_QUEUE_URL_{_setting_suffix(self.name)}"


@dataclass(frozen=True)
class ScheduledJobType:
    """A job type that an EventBridge rule starts."""

    name: str
    interval_setting: str
    default_interval: str
    """Go duration syntax, whole minutes."""
    max_tick_age_seconds: int
    """How old a tick may get before it is set aside, whatever interval the rule has by now: as long as a run and its
    retries take, at least."""
    timeout_seconds: int
    memory_mb: int

    @property
    def rule_name_setting(self) -> str:
        """Where relay finds the name of the job's rule."""
        return f"{_setting_suffix(self.name)}_RULE_NAME"


@dataclass(frozen=True)
class QueueJobType:
    """A function that a queue of its own feeds, several messages at a time; those it reports as failed come again."""

    name: str
    batch_size: int
    batching_window_seconds: int
    timeout_seconds: int
    memory_mb: int
    visibility_timeout_seconds: int
    """Six times the function's timeout and the window at least, as Lambda advises for batches."""
    max_receives: int
    """Receives before SQS moves a message to the dead-letter queue."""

    @property
    def queue_setting(self) -> str:
        """Where the local system keeps the queue's URL. The function reads neither: its mapping does."""
        return f"QUEUE_URL_{_setting_suffix(self.name)}"

    @property
    def dead_letter_queue_setting(self) -> str:
        return f"DEAD_LETTER_QUEUE_URL_{_setting_suffix(self.name)}"


@dataclass(frozen=True)
class WebFunction:
    """A function that people and machines call over HTTP, at a function URL."""

    name: str
    timeout_seconds: int
    memory_mb: int


EMAIL: Final = EventJobType(
    name="email",
    lanes=(
        Lane(
            name="email",
            event_types=("job.email.verification", "job.email.welcome", "job.email.reward_earned"),
            batch_size=100,
            batching_window_seconds=0,
        ),
        # A lane of its own, so that a verification never waits behind a hundred thousand position updates.
        Lane(
            name="email-bulk",
            event_types=("job.email.position_update", "job.email.milestone"),
            batch_size=500,
            batching_window_seconds=1,
            bulk=True,
        ),
    ),
    timeout_seconds=120,
    memory_mb=512,
    # With the usual backoff they span more than two hours, and so outlast most of what SES may have.
    max_attempts=14,
)

POSITION: Final = EventJobType(
    name="position",
    # The window debounces a steady flow of requests into one run.
    lanes=(
        Lane(
            name="position",
            event_types=("job.position.recalculate",),
            batch_size=1_000,
            batching_window_seconds=5,
        ),
    ),
    timeout_seconds=300,
    memory_mb=512,
    max_attempts=8,
)

REWARD: Final = EventJobType(
    name="reward",
    lanes=(
        Lane(name="reward", event_types=("job.reward.deliver",), batch_size=100, batching_window_seconds=0),
    ),
    timeout_seconds=120,
    memory_mb=512,
    # Standard Webhooks' schedule: the first try and nine more, spread over about three days.
    max_attempts=10,
)

UNROUTABLE: Final = EventJobType(
    name="unroutable",
    lanes=(Lane(name="unroutable", event_types=(), batch_size=1_000, batching_window_seconds=5),),
    timeout_seconds=60,
    memory_mb=256,
    max_attempts=8,
)

ANALYTICS: Final = ScheduledJobType(
    name="analytics",
    interval_setting="ANALYTICS_INTERVAL",
    default_interval="1h",
    max_tick_age_seconds=3_600,
    timeout_seconds=300,
    memory_mb=512,
)

FRAUD: Final = ScheduledJobType(
    name="fraud",
    interval_setting="FRAUD_DETECTION_INTERVAL",
    default_interval="15m",
    max_tick_age_seconds=3_600,
    timeout_seconds=600,
    memory_mb=1_024,
)

RELAY: Final = ScheduledJobType(
    name="relay",
    # Not tuned by anyone: the relay keeps looking between two ticks.
    interval_setting="",
    default_interval="1m",
    # Lambda's least. The next tick is there before a retry would be.
    max_tick_age_seconds=60,
    timeout_seconds=90,
    memory_mb=256,
)

FEEDBACK: Final = QueueJobType(
    name="feedback",
    batch_size=100,
    batching_window_seconds=5,
    timeout_seconds=30,
    memory_mb=256,
    # Together, messages outlast a database that is away for an hour; those that nobody can read take as long to be
    # set aside, and disturb nobody meanwhile.
    visibility_timeout_seconds=300,
    max_receives=12,
)

UNSUBSCRIBE: Final = WebFunction(name="unsubscribe", timeout_seconds=30, memory_mb=256)


@dataclass(frozen=True)
class DeploymentFunction:
    """A function that a deployment calls, and nobody else."""

    name: str
    timeout_seconds: int
    memory_mb: int


# Lambda's longest: an index on a large table takes its time.
MIGRATIONS: Final = DeploymentFunction(name="migrations", timeout_seconds=900, memory_mb=256)

EVENT_JOB_TYPES: Final = (EMAIL, POSITION, REWARD, UNROUTABLE)
SCHEDULED_JOB_TYPES: Final = (ANALYTICS, FRAUD, RELAY)
QUEUE_JOB_TYPES: Final = (FEEDBACK,)
WEB_FUNCTIONS: Final = (UNSUBSCRIBE,)
JOB_TYPES_WITH_WATERMARK: Final = (ANALYTICS, FRAUD)
"""Their rules are tuned; each run goes on where the one before has left its watermark."""

JOB_TYPE_BY_LANE: Final = {lane: job_type for job_type in EVENT_JOB_TYPES for lane in job_type.lanes}
"""All lanes, in the order of their job types."""

LANE_BY_EVENT_TYPE: Final = {
    event_type: lane
    for job_type in EVENT_JOB_TYPES
    for lane in job_type.lanes
    for event_type in lane.event_types
}
JOB_TYPE_BY_EVENT_TYPE: Final = {
    event_type: job_type for job_type in EVENT_JOB_TYPES for event_type in job_type.event_types
}


def _setting_suffix(name: str) -> str:
    return name.upper().replace("-", "_")
