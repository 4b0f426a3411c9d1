"""The task as Procrastinate's documentation sets it up: the queue is a table of the same PostgreSQL.

https://procrastinate.readthedocs.io/en/stable/quickstart.html
https://procrastinate.readthedocs.io/en/stable/howto/basics/worker.html (concurrency)
"""

import os
from collections.abc import Iterable

from procrastinate import App, PsycopgConnector
from psycopg_pool import AsyncConnectionPool

CONCURRENCY = 8

app = App(connector=PsycopgConnector(conninfo=os.environ["DATABASE_URL"], max_size=CONCURRENCY))
pool = AsyncConnectionPool(
    os.environ["DATABASE_URL"], kwargs={"autocommit": True}, max_size=CONCURRENCY, open=False
)


@app.task
async def record(event_id: str, campaign_id: str) -> None:
    await pool.open()  # Does nothing where it is open.
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO effects (event_id, campaign_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [event_id, campaign_id],
        )


def send(events: Iterable[tuple[str, str]]) -> None:
    with app.open():
        for event_id, campaign_id in events:
            record.defer(event_id=event_id, campaign_id=campaign_id)
