"""Publishes a round's events with the producer that services use.

    python -m benchmarks.ours.send BROKERS TOPIC ROUND COUNT [--rate EVENTS_PER_SECOND]

With a rate, each on its own, and prints its id and when it was given to the producer, in seconds since 1970.
"""

import argparse
from itertools import islice
from uuid import UUID

from benchmarks.paced import events
from campaign_jobs.events import Event, PositionRecalcJobPayload, new_event
from campaign_jobs.producer import JobProducer

AT_ONCE = 10_000


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("brokers", "topic", "round"):
        parser.add_argument(name)
    parser.add_argument("count", type=int)
    parser.add_argument("--rate", type=float)
    arguments = parser.parse_args()
    wanted = (event(*ids) for ids in events(arguments.round, arguments.count, arguments.rate))
    with JobProducer(brokers=arguments.brokers, topic=arguments.topic) as producer:
        while portion := list(islice(wanted, AT_ONCE if arguments.rate is None else 1)):
            producer.enqueue_many(portion)


def event(event_id: str, campaign_id: str) -> Event:
    return new_event(PositionRecalcJobPayload(campaign_id=UUID(campaign_id)), event_id=event_id)


if __name__ == "__main__":
    main()
