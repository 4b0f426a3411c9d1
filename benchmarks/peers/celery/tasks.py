"""The task as Celery's documentation sets it up, with its settings for work that must not be lost.

https://docs.celeryq.dev/en/stable/getting-started/first-steps-with-celery.html
https://docs.celeryq.dev/en/stable/userguide/tasks.html (acks_late, reject_on_worker_lost)
"""

import os
import threading
from collections.abc import Iterable

import psycopg
from celery import Celery

app = Celery("tasks", broker=os.environ["REDIS_URL"])
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, task_ignore_result=True)
of_thread = threading.local()


@app.task
def record(event_id: str, campaign_id: str) -> None:
    if not hasattr(of_thread, "connection"):
        of_thread.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    of_thread.connection.execute(
        "INSERT INTO effects (event_id, campaign_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        [event_id, campaign_id],
    )


def send(events: Iterable[tuple[str, str]]) -> None:
    for event_id, campaign_id in events:
        record.delay(event_id, campaign_id)
