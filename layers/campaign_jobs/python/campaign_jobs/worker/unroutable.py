"""The owner of every record that no job type owns: a dead letter each, with a reason a person understands."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from campaign_jobs import events
from campaign_jobs.catalog import BATCH_STOPPED, HEARTBEAT_EVENT_TYPE, LANE_BY_EVENT_TYPE, UNROUTABLE, Lane
from campaign_jobs.database.connection import Database
from campaign_jobs.errors import BatchStopped, NotOurs
from campaign_jobs.observability import logger_of, publish_metrics
from campaign_jobs.settings import UnroutableSettings
from campaign_jobs.worker.delivery import ANSWERING_SECONDS, Deadline
from campaign_jobs.worker.isolation import Isolation
from campaign_jobs.worker.messages import Received, body_of
from campaign_jobs.worker.outcomes import Outcome, Rejected
from campaign_jobs.worker.pipeline import LambdaContext, lane_of
from campaign_jobs.worker.progress import publish_batch, publish_retry_age, store_heartbeats
from campaign_jobs.worker.queues import Outgoing, Queues, SqsQueues
from campaign_jobs.worker.settle import Settlement, Settler


class Unroutable:
    """Reads the whole topic, and leaves alone what a job type owns."""

    def __init__(
        self, settings: UnroutableSettings, database: Database, *, queues: Queues | None = None
    ) -> None:
        self._settings = settings
        self._queues = queues or SqsQueues()
        self._logger = logger_of(UNROUTABLE.name)
        self._settler = Settler(
            UNROUTABLE,
            queues=self._queues,
            dead_letter_queue_url=settings.dead_letter_queue_url(UNROUTABLE),
            first_delay=settings.retry_first_delay,
            logger=self._logger,
        )
        self._database = database
        self._isolation = Isolation(database, settings, self._settler, self._logger)

    def handle(self, event: dict[str, Any], context: LambdaContext) -> Mapping[str, int]:
        """Handle one invocation and return the counts.

        Raises BatchStopped when the batch must be delivered again: a dead letter was not kept, or the database is gone.
        """
        started = time.monotonic()
        self._logger.set_correlation_id(context.aws_request_id)
        now = datetime.now(UTC)
        counts: Counter[str] = Counter()
        lane: Lane | None = None
        try:
            lane = lane_of(UNROUTABLE, context.invoked_function_arn)
            deadline = Deadline.of_invocation(context.get_remaining_time_in_millis)
            with self._database.within(deadline.earlier(ANSWERING_SECONDS)):
                with self._isolation.records_of(event, lane, now=now, counts=counts) as received:
                    publish_retry_age(UNROUTABLE, lane, received, now)
                    handled, heartbeats = self._handle(received, now)
                    counts.update(handled)
                group = lane.consumer_group(self._settings.kafka_job_consumer_group)
                store_heartbeats(self._database, group, heartbeats, self._logger)
        except BatchStopped as error:
            self._logger.error("batch stopped", extra={"reason": str(error)})
            publish_metrics(UNROUTABLE.name, {BATCH_STOPPED.name: 1})
            if lane is None or not (
                renewed := self._settler.renew(event, self._settings.retry_queue_url(lane))
            ):
                raise
            return {"renewed": renewed}
        publish_batch(UNROUTABLE, counts, time.monotonic() - started)
        return counts

    def _handle(self, batch: Sequence[Received], now: datetime) -> tuple[Counter[str], list[Received]]:
        """The counts, and the heartbeats."""
        counts: Counter[str] = Counter()
        heartbeats: list[Received] = []
        settlements = []
        for received in batch:
            event_type = self._type_of(received)
            if isinstance(event_type, Rejected):
                settlements.append(self._settlement(received, event_type))
            elif event_type == HEARTBEAT_EVENT_TYPE and not received.from_retry_queue:
                heartbeats.append(received)
            elif received.has_other_readers:
                counts["ignored"] += 1
            else:
                counts[self._hand_on(received, event_type)] += 1
        counts.update(self._settler.settle(settlements, now=now))
        if heartbeats:
            counts["heartbeats"] = len(heartbeats)
        return counts, heartbeats

    def _hand_on(self, received: Received, event_type: str) -> str:
        """A redriven record that has an owner by now goes to that owner's retry queue. Returns the count's name."""
        lane = LANE_BY_EVENT_TYPE.get(event_type)
        if lane is None:
            return "ignored"
        self._queues.send([Outgoing(self._settings.retry_queue_url(lane), body_of(received))])
        self._logger.info("record handed to its owner", extra={"lane": lane.name})
        return "handed_on"

    def _type_of(self, received: Received) -> str | Rejected:
        """The type of an event that has an owner, or of a heartbeat; Rejected where it is nobody's."""
        if (why := received.why_dropped) is not None:
            return Rejected(why)
        try:
            event_type: str = events.read_object(received.value)["type"]
            events.owner(event_type)
        except NotOurs as error:
            return Rejected(str(error))
        return event_type

    def _settlement(self, received: Received, outcome: Outcome) -> Settlement:
        return Settlement(received, outcome, self._settings.retry_queue_url(UNROUTABLE.lanes[0]))
