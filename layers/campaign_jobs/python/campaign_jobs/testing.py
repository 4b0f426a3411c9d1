"""For the tests of services that publish events: a producer that keeps them instead.

producer = RecordingProducer()
sign_up(user, producer)
assert producer.only().data.user_id == user.id
"""

from collections.abc import Sequence
from concurrent.futures import Future
from datetime import UTC, datetime

from campaign_jobs import catalog, events
from campaign_jobs.errors import ProducerClosed, PublishError, ValueTooLarge
from campaign_jobs.events import Event
from campaign_jobs.producer import EventProducer, Message


class RecordingProducer(EventProducer):
    """Takes what JobProducer takes, with the same checks, and keeps it in order."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        """Keys and values, as they would be on the topic."""
        self.failure: PublishError | None = None
        """When set, it is raised in place of recording, for tests of what a service does then."""
        self._closed = False

    @property
    def events(self) -> list[Event]:
        """What was enqueued, in order. Raises InvalidEvent or NotOurs where a raw value breaks the contract."""
        return [_parsed(value) for _, value in self.messages]

    def only(self) -> Event:
        """The one event that was enqueued. Raises AssertionError when there is none or more than one."""
        recorded = self.events
        assert len(recorded) == 1, (
            f"{len(recorded)} events instead of one: {[event.type for event in recorded]}"
        )
        return recorded[0]

    def of_type(self, event_type: str) -> list[Event]:
        """The events of one type, such as `job.email.welcome`. Raises NotOurs when there is no such type."""
        events.owner(event_type)
        return [event for event in self.events if event.type == event_type]

    def clear(self) -> None:
        """Forget what was recorded."""
        self.messages.clear()

    def submit(self, messages: Sequence[Message]) -> "Future[None]":
        everything = range(len(messages))
        if self._closed:
            raise ProducerClosed("the producer was closed; build a new one", everything)
        future: Future[None] = Future()
        if self.failure is not None:
            future.set_exception(type(self.failure)(str(self.failure), everything))
            return future
        too_large = [
            position for position in everything if len(messages[position][1]) > catalog.MAX_VALUE_BYTES
        ]
        self.messages += [messages[position] for position in everything if position not in too_large]
        if too_large:
            sizes = ", ".join(str(len(messages[position][1])) for position in too_large)
            problem = f"values of {sizes} bytes; allowed are at most {catalog.MAX_VALUE_BYTES}"
            future.set_exception(ValueTooLarge(problem, too_large))
        else:
            future.set_result(None)
        return future

    def close(self) -> None:
        self._closed = True


def _parsed(value: bytes) -> Event:
    return events.parse(events.read_object(value), recorded_at=datetime.now(UTC))
