"""The task as Dramatiq's documentation sets it up: a message is acknowledged once the actor has returned.

https://dramatiq.io/guide.html
"""

import os
import threading
from collections.abc import Iterable

import dramatiq
import psycopg
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))
of_thread = threading.local()


@dramatiq.actor
def record(event_id: str, campaign_id: str) -> None:
    if not hasattr(of_thread, "connection"):
        of_thread.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    of_thread.connection.execute(
        "INSERT INTO effects (event_id, campaign_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        [event_id, campaign_id],
    )


def send(events: Iterable[tuple[str, str]]) -> None:
    for event_id, campaign_id in events:
        record.send(event_id, campaign_id)
