"""The task as Taskiq's documentation sets it up, on the Redis broker that acknowledges: streams.

https://taskiq-python.github.io/guide/getting-started.html
https://taskiq-python.github.io/guide/state-and-deps.html (the pool, opened when a worker starts)
https://github.com/taskiq-python/taskiq-redis (RedisStreamBroker)
"""

import asyncio
import os
from collections.abc import Iterable

import asyncpg
from taskiq import TaskiqEvents, TaskiqState
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(os.environ["REDIS_URL"])


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def open_pool(state: TaskiqState) -> None:
    state.pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=8, max_size=8)


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def close_pool(state: TaskiqState) -> None:
    await state.pool.close()


@broker.task
async def record(event_id: str, campaign_id: str) -> None:
    await broker.state.pool.execute(
        "INSERT INTO effects (event_id, campaign_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        event_id,
        campaign_id,
    )


def send(events: Iterable[tuple[str, str]]) -> None:
    asyncio.run(_send(events))


async def _send(events: Iterable[tuple[str, str]]) -> None:
    await broker.startup()
    for event_id, campaign_id in events:
        await record.kiq(event_id, campaign_id)
    await broker.shutdown()
