"""The task as Huey's documentation sets it up.

https://huey.readthedocs.io/en/latest/guide.html
https://huey.readthedocs.io/en/latest/consumer.html (worker types)
"""

import os
import threading
from collections.abc import Iterable

import psycopg
from huey import RedisHuey

huey = RedisHuey("bench", url=os.environ["REDIS_URL"])
of_thread = threading.local()


@huey.task()
def record(event_id: str, campaign_id: str) -> None:
    if not hasattr(of_thread, "connection"):
        of_thread.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    of_thread.connection.execute(
        "INSERT INTO effects (event_id, campaign_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        [event_id, campaign_id],
    )


def send(events: Iterable[tuple[str, str]]) -> None:
    for event_id, campaign_id in events:
        record(event_id, campaign_id)
