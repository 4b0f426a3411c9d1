"""Every invocation of an event job's function: decode, process, settle."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol

from campaign_jobs import events
from campaign_jobs.catalog import BATCH_STOPPED, HEARTBEAT_EVENT_TYPE, EventJobType, Lane
from campaign_jobs.database.batches import Refusal
from campaign_jobs.database.connection import Database
from campaign_jobs.errors import BatchStopped, InvalidEvent, InvocationTooShort, NotOurs, UnknownLane
from campaign_jobs.observability import log_unexpected, logger_of, publish_metrics
from campaign_jobs.settings import EventJobSettings
from campaign_jobs.worker.delivery import ANSWERING_SECONDS, Deadline, Delivery
from campaign_jobs.worker.isolation import Isolation
from campaign_jobs.worker.messages import Received
from campaign_jobs.worker.outcomes import Later, Outcome, Rejected, Retry, Skipped
from campaign_jobs.worker.progress import publish_batch, publish_retry_age, store_heartbeats
from campaign_jobs.worker.queues import SEND_SECONDS, Queues, SqsQueues
from campaign_jobs.worker.settle import Settlement, Settler, spent

GIVING_UP_SECONDS: Final = 8.0
"""The longest that a job writes down what it gives up: a wait for a lock, and the search for the rows it is about."""
SETTLING_SECONDS: Final = GIVING_UP_SECONDS + SEND_SECONDS + 1.0
"""What is kept back of an invocation for settling a full batch: a job must have ended by then."""
GIVING_UP_WAIT: Final = timedelta(minutes=1)


class EventJob(Protocol):
    """One job type's work on a batch."""

    @property
    def least_seconds(self) -> float:
        """With less than this left of an invocation, besides SETTLING_SECONDS, it starts nothing any more."""
        ...

    def process(self, deliveries: Sequence[Delivery[Any]], deadline: Deadline) -> Sequence[Outcome]:
        """Do the work and return one outcome for each delivery, in order.

        Deliveries have distinct event ids, the highest priority first. Raises BatchStopped when nothing can go on.
        """
        ...

    def give_up(
        self, given_up: Sequence[tuple[Delivery[Any], str]]
    ) -> Sequence[tuple[Delivery[Any], Refusal]]:
        """Write down that these will become dead letters, each with the reason.

        Returns those that could not be written down. Where that may pass, they come again and are no dead letters yet.
        """
        ...


class LambdaContext(Protocol):
    """What is used of Lambda's context object."""

    aws_request_id: str
    invoked_function_arn: str

    def get_remaining_time_in_millis(self) -> int: ...


def lane_of(job_type: EventJobType, invoked_function_arn: str) -> Lane:
    """The lane whose alias was invoked; the only lane where there is one.

    Neither the event of the Kafka mapping nor a record in it says which mapping it is from. The last part of
    arn:aws:lambda:<region>:<account>:function:<name>:<alias> does (Lambda Developer Guide, "context object").

    Raises UnknownLane where several are possible and the alias names none of them.
    """
    if len(job_type.lanes) == 1:
        return job_type.lanes[0]
    alias = "".join(invoked_function_arn.split(":")[7:8])
    for lane in job_type.lanes:
        if lane.name == alias:
            return lane
    names = ", ".join(lane.name for lane in job_type.lanes)
    raise UnknownLane(f"the function was invoked by the alias {alias or '(none)'}; allowed are {names}")


class _Known(NamedTuple):
    """A record that is a valid event of this job type."""

    received: Received
    delivery: Delivery[Any]


class Pipeline:
    """Hands the events of Lambda's event-source mappings, Kafka and SQS, to a job."""

    def __init__(
        self,
        job_type: EventJobType,
        job: EventJob,
        settings: EventJobSettings,
        database: Database,
        *,
        queues: Queues | None = None,
    ) -> None:
        self._job_type = job_type
        self._job = job
        self._settings = settings
        self._retry_queue_urls = {
            event_type: settings.retry_queue_url(lane)
            for lane in job_type.lanes
            for event_type in lane.event_types
        }
        self._logger = logger_of(job_type.name)
        self._settler = Settler(
            job_type,
            queues=queues or SqsQueues(),
            dead_letter_queue_url=settings.dead_letter_queue_url(job_type),
            first_delay=settings.retry_first_delay,
            logger=self._logger,
        )
        self._database = database
        self._isolation = Isolation(database, settings, self._settler, self._logger)

    def handle(self, event: dict[str, Any], context: LambdaContext) -> Mapping[str, int]:
        """Handle one invocation and return the counts of outcomes.

        Raises BatchStopped when the batch must be delivered again as it is.
        """
        started = time.monotonic()
        self._logger.set_correlation_id(context.aws_request_id)
        deadline = Deadline.of_invocation(context.get_remaining_time_in_millis)
        now = datetime.now(UTC)
        lane: Lane | None = None
        try:
            lane = lane_of(self._job_type, context.invoked_function_arn)
            counts: Counter[str] = Counter()
            working = deadline.earlier(SETTLING_SECONDS)
            self._refuse_what_is_too_short(working)
            with self._database.within(deadline.earlier(ANSWERING_SECONDS)):
                with self._isolation.records_of(event, lane, now=now, counts=counts) as received:
                    publish_retry_age(self._job_type, lane, received, now)
                    handled, heartbeats = self._handle(received, lane, working, now)
                    counts.update(handled)
                group = lane.consumer_group(self._settings.kafka_job_consumer_group)
                store_heartbeats(self._database, group, heartbeats, self._logger)
        except BatchStopped as error:
            self._logger.error("batch stopped", extra={"reason": str(error)})
            publish_metrics(self._job_type.name, {BATCH_STOPPED.name: 1})
            if lane is None or not (
                renewed := self._settler.renew(event, self._settings.retry_queue_url(lane))
            ):
                raise
            return {"renewed": renewed}
        publish_batch(self._job_type, counts, time.monotonic() - started)
        return counts

    def _refuse_what_is_too_short(self, working: Deadline) -> None:
        """Whoever lowers a function's time-out learns of it by failed batches, not by a queue that goes in circles."""
        if working.remaining_seconds() < self._job.least_seconds:
            least = SETTLING_SECONDS + self._job.least_seconds
            raise InvocationTooShort(
                f"the time-out leaves {working.remaining_seconds() + SETTLING_SECONDS:.1f} s to an invocation of"
                f" {self._job_type.name}; allowed are {least:g} s or more"
            )

    def _handle(
        self, batch_received: Sequence[Received], lane: Lane, deadline: Deadline, now: datetime
    ) -> tuple[Counter[str], list[Received]]:
        """The counts of outcomes, and the heartbeats."""
        counts: Counter[str] = Counter()
        retry_queue_url = self._settings.retry_queue_url(lane)
        heartbeats: list[Received] = []
        known: dict[str, _Known] = {}
        settlements: list[Settlement] = []
        for received in batch_received:
            item = self._classify_whatever_it_is(received, retry_queue_url, now)
            if item is None:
                counts["ignored"] += 1
            elif isinstance(item, Received):
                heartbeats.append(item)
            elif isinstance(item, Settlement):
                settlements.append(item)
            elif item.delivery.event.id in known:
                settlements.append(self._settlement(item, Skipped("the same event is in the batch already")))
            else:
                known[item.delivery.event.id] = item
        batch = sorted(known.values(), key=_priority)
        outcomes = self._process([item.delivery for item in batch], deadline)
        final = [
            spent(outcome, item.received, self._job_type)
            for item, outcome in zip(batch, outcomes, strict=True)
        ]
        given_up = [
            (item.delivery, outcome.reason)
            for item, outcome in zip(batch, final, strict=True)
            if isinstance(outcome, Rejected)
        ]
        postponed: dict[str, Outcome] = {}
        if given_up:
            with self._database.within(deadline.earlier(-GIVING_UP_SECONDS)):
                postponed = self._give_up(given_up)
        settlements += [
            self._settlement(item, postponed.get(item.delivery.event.id, outcome))
            for item, outcome in zip(batch, final, strict=True)
        ]
        counts.update(self._settler.settle(settlements, now=datetime.now(UTC)))
        if heartbeats:
            counts["heartbeats"] = len(heartbeats)
        return counts, heartbeats

    def _classify_whatever_it_is(
        self, received: Received, retry_queue_url: str, now: datetime
    ) -> _Known | Settlement | Received | None:
        try:
            return self._classify(received, retry_queue_url, now)
        except Exception as error:  # noqa: BLE001  It is logged.
            # A value that breaks our reading of it must not block the partition; it spends its attempts.
            log_unexpected(
                self._logger, "unexpected error in reading", error, event_id=str(received.coordinates)
            )
            outcome = spent(Retry(f"unexpected {type(error).__name__}"), received, self._job_type)
            return Settlement(received, outcome, retry_queue_url)

    def _classify(
        self, received: Received, retry_queue_url: str, now: datetime
    ) -> _Known | Settlement | Received | None:
        """A valid event of ours, a settlement at once, a heartbeat as it came, or None for what somebody else owns.

        What is not known to belong to another lane goes to `retry_queue_url`.
        """
        if (why := received.why_dropped) is not None:
            if received.has_other_readers:
                return None
            return Settlement(received, Rejected(why), retry_queue_url)
        try:
            decoded = events.read_object(received.value)
            event_type: str = decoded["type"]
            if event_type == HEARTBEAT_EVENT_TYPE:
                # One from the retry queue was handed on with its neighbors, and says nothing of the partition.
                return None if received.from_retry_queue else received
            if event_type not in self._retry_queue_urls:
                # Read by others as well, it has another owner; in our own retry queue nobody else would see it.
                if received.has_other_readers:
                    return None
                owner = events.owner(event_type)
                reason = f"{event_type} belongs to the job type {owner.name if owner else 'none'}: redrive it there"
                return Settlement(received, Rejected(reason), retry_queue_url)
            retry_queue_url = self._retry_queue_urls[event_type]
            event = events.parse(decoded, recorded_at=received.recorded_at)
        except NotOurs as error:
            if received.has_other_readers:
                return None
            return Settlement(received, Rejected(str(error)), retry_queue_url)
        except InvalidEvent as error:
            return Settlement(received, Rejected(str(error)), retry_queue_url, event_type=event_type)
        delivery: Delivery[Any] = Delivery(
            event, received.coordinates, received.attempts_spent, received.first_received_at
        )
        known = _Known(received, delivery)
        if received.not_before is not None and received.not_before > now:
            return self._settlement(known, Later("not its time yet", received.not_before - now))
        return known

    def _process(self, deliveries: Sequence[Delivery[Any]], deadline: Deadline) -> Sequence[Outcome]:
        if not deliveries:
            return []
        try:
            return self._job.process(deliveries, deadline)
        except BatchStopped:
            raise
        except Exception as error:  # noqa: BLE001  It is logged.
            # An error nobody foresaw must not block the partition. What a batch has done is in the database, so that
            # its halves can be processed again, until the events that cause it stand alone and spend an attempt.
            if len(deliveries) == 1:
                log_unexpected(self._logger, "unexpected error", error, event_id=deliveries[0].event.id)
                return [Retry(f"unexpected {type(error).__name__}")]
        middle = len(deliveries) // 2
        return [*self._process(deliveries[:middle], deadline), *self._process(deliveries[middle:], deadline)]

    def _give_up(self, given_up: Sequence[tuple[Delivery[Any], str]]) -> dict[str, Outcome]:
        """Have dead letters written down. Returns, by event id, the outcomes of those that are none yet."""
        try:
            refused = self._job.give_up(given_up)
        except BatchStopped:
            raise
        except Exception as error:  # noqa: BLE001  It is logged.
            if len(given_up) == 1:
                # The dead letter is kept all the same; without it the partition would stand still.
                event_id = given_up[0][0].event.id
                log_unexpected(self._logger, "unexpected error in giving up", error, event_id=event_id)
                return {}
            middle = len(given_up) // 2
            return self._give_up(given_up[:middle]) | self._give_up(given_up[middle:])
        postponed: dict[str, Outcome] = {}
        for delivery, refusal in refused:
            if refusal.passing:
                reason = f"giving it up could not be written down: {refusal}"
                postponed[delivery.event.id] = Later(reason, GIVING_UP_WAIT)
            else:
                self._logger.warning(
                    "given up without being written down",
                    extra={"event_id": delivery.event.id, "reason": refusal.reason},
                )
        return postponed

    def _settlement(self, item: _Known, outcome: Outcome) -> Settlement:
        event = item.delivery.event
        return Settlement(item.received, outcome, self._retry_queue_urls[event.type], event.id, event.type)


def _priority(item: _Known) -> int:
    data = item.delivery.event.data
    return -data.priority if isinstance(data, events.EmailJobPayload) else 0
