"""Connecting to Asynq's Redis by its URL: one server or a cluster, with TLS (`rediss://`) or without."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from campaign_jobs_cli.asynq.queues import Client, explained
from campaign_jobs_cli.errors import WrongInput

_TIMEOUTS: Final[dict[str, Any]] = {"socket_connect_timeout": 5, "socket_timeout": 15}


@contextmanager
def connected(url: str) -> Iterator[Client]:
    """A client for the URL, in the syntax of redis-py's `from_url`. Raises WrongInput and RedisTrouble."""
    from redis import Redis
    from redis.cluster import RedisCluster

    # Not the whole of it in messages: it may have a password.
    connecting = f"connecting to {urlsplit(url).hostname or 'the socket'} (--redis)"
    try:
        client = Redis.from_url(url, **_TIMEOUTS)
    except ValueError as error:
        allowed = "allowed are redis://host:port/db, rediss://… for TLS and unix://…"
        raise WrongInput(f"--redis: {error}; {allowed}") from error
    with client:
        with explained(connecting):
            is_cluster = client.info("cluster").get("cluster_enabled") == 1
        if not is_cluster:
            yield client
            return
    with explained(connecting):
        cluster = RedisCluster.from_url(url, **_TIMEOUTS)
    with cluster:
        yield cluster
