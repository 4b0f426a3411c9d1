"""The events of one round, for every side the same; standard library alone, because peers' environments import it."""

import random
import time
from collections.abc import Iterator
from uuid import UUID, uuid5

CAMPAIGNS = 1_000
"""Many, so that what is partitioned by campaign spreads over all partitions."""


def events(round_: str, count: int, rate: float | None = None) -> Iterator[tuple[str, str]]:
    """Ids of events and of their campaigns.

    With a rate per second they come one by one, at random moments, and when each was asked for is printed beside its
    id, in seconds since 1970.
    """
    chance = random.Random(0)
    due = time.time()
    for number in range(count):
        event_id = str(uuid5(UUID(int=0), f"{round_} {number}"))
        if rate is not None:
            due += chance.expovariate(rate)
            time.sleep(max(0.0, due - time.time()))
            print(event_id, f"{time.time():.6f}")
        yield event_id, str(UUID(int=number % CAMPAIGNS))
