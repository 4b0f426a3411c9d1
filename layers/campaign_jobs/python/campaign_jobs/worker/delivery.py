"""One handing-over of an event to a job, from Kafka or from a retry queue."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, NamedTuple, TypeVar

from campaign_jobs.events import EmailEvent, Event, PositionEvent, RewardEvent

AnyEvent = TypeVar("AnyEvent", EmailEvent, PositionEvent, RewardEvent, Event, covariant=True)


# Tuples, because each event of a batch makes one, and a frozen dataclass takes three times as long to make.
class Coordinates(NamedTuple):
    """Where in Kafka a record is: its identity whatever its value."""

    topic: str
    partition: int
    offset: int


class Delivery(NamedTuple, Generic[AnyEvent]):
    event: AnyEvent
    coordinates: Coordinates
    attempts_spent: int
    """Failed attempts so far; 0 when it comes from Kafka or has been redriven."""
    first_received_at: datetime
    """When we first had it, for patience with rows that are not there yet. Anew when it is redriven."""


ANSWERING_SECONDS: Final = 2.0
"""What is kept back of every invocation for ending it, once whoever it waited for has been given up."""


@dataclass(frozen=True)
class Deadline:
    """When this invocation must have ended."""

    _at: float

    @classmethod
    def of_invocation(cls, remaining_milliseconds: Callable[[], int]) -> "Deadline":
        return cls(time.monotonic() + remaining_milliseconds() / 1000)

    def earlier(self, seconds: float) -> "Deadline":
        """The same, with `seconds` kept back for what comes afterwards."""
        return Deadline(self._at - seconds)

    def remaining_seconds(self) -> float:
        return max(0.0, self._at - time.monotonic())
