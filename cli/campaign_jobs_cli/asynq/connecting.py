"""Connecting to Asynq's Redis by its URL: one server or a cluster, with TLS (`rediss://`) or without."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from redis import Redis
from redis.cluster import RedisCluster

from campaign_jobs_cli.asynq.errors import RedisTrouble
from campaign_jobs_cli.asynq.queues import REDIS_ERRORS, Client
from campaign_jobs_cli.errors import WrongInput

_CONNECT_SECONDS: Final = 5
_ANSWER_SECONDS: Final = 15


@contextmanager
def connected(url: str) -> Iterator[Client]:
    """A client for the URL, in the syntax of redis-py's `from_url`. Raises WrongInput and RedisTrouble."""
    # Not the whole of it in messages: it may have a password.
    where = urlsplit(url).hostname
    try:
        client = Redis.from_url(url, socket_connect_timeout=_CONNECT_SECONDS, socket_timeout=_ANSWER_SECONDS)
    except ValueError as error:
        raise WrongInput(
            f"--redis: {error}; allowed are redis://host:port/db, rediss://… for TLS and unix://…"
        ) from error
    with client:
        try:
            is_cluster = client.info("cluster").get("cluster_enabled") == 1
        except REDIS_ERRORS as error:
            raise RedisTrouble(f"Asynq's Redis at {where} does not answer: {error}. Check --redis") from error
        if not is_cluster:
            yield client
            return
    try:
        cluster = RedisCluster.from_url(
            url, socket_connect_timeout=_CONNECT_SECONDS, socket_timeout=_ANSWER_SECONDS
        )
    except REDIS_ERRORS as error:
        raise RedisTrouble(f"the Redis cluster at {where} does not answer: {error}. Check --redis") from error
    with cluster:
        yield cluster
