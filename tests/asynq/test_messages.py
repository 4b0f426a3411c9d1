"""Asynq's messages, read by hand: whatever the bytes are, a message or an error that says so."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_jobs_cli.asynq.errors import UnreadableMessage
from campaign_jobs_cli.asynq.messages import TaskMessage, completed, read_server, read_task
from campaign_jobs_cli.asynq.queues import AsynqRedis
from tests.asynq.old_world import OldWorld
from tests.asynq.test_moving import wait_until


def test_what_the_go_library_writes(old: OldWorld, client: Any) -> None:
    text = "é" * 200
    old.enqueue(
        {
            "type": "a:type",
            "payload": text,
            "queue": "high",
            "id": "an id",
            "max_retry": 300,
            "unique_seconds": 60,
            "retention_seconds": 86_400,
            "group": "a group",
            "in_seconds": 60,
        },
        {"type": "b", "payload": None, "queue": "high", "id": "small", "max_retry": -1},
    )
    first, second = (read_task(client.hget(f"asynq:{{high}}:t:{task}", "msg")) for task in ("an id", "small"))
    [lock] = client.keys("asynq:{high}:unique:*")
    assert first == TaskMessage(
        type="a:type",
        payload=text.encode(),
        id="an id",
        queue="high",
        retry=300,
        unique_key=lock.decode(),
        retention=86_400,
        group_key="a group",
    )
    # Asynq takes a negative number of retries for none.
    assert second == TaskMessage(type="b", id="small", queue="high")


def test_what_a_server_reports(old: OldWorld, client: Any) -> None:
    with old.working("done", "high", "low") as worker:
        wait_until(lambda: AsynqRedis(client).servers())
        [server] = AsynqRedis(client).servers()
        assert (server.pid, server.status, server.queues) == (worker.process.pid, "active", ("high", "low"))
        assert server.active_workers == 0 and server.host


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    for read in (read_task, read_server):
        with suppress(UnreadableMessage):
            read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05ab",
        b"\x0a\x01\xff",
        b"\x28" + b"\xff" * 10,
        b"\x28" + b"\xff" * 9,
        b"\x0b",
        b"\x08\x01",
        b"\x2a\x01a",
    ],
    ids=["no length", "cut off", "no UTF-8", "no end", "cut off number", "a group", "no text", "no number"],
)
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(UnreadableMessage):
        read_task(data)


@given(st.integers(0, 2**63 - 1))
def test_numbers_and_unknown_fields(number: int) -> None:
    # Fields 20 and 21 are of a later Asynq, eight bytes and four; 13, the completion, is one that nobody here reads.
    data = b"\x0a\x01t\xa1\x01abcdefgh\xad\x014444"
    assert read_task(completed(data, number)) == TaskMessage(type="t")
    varint = completed(b"", number)[1:]
    assert read_task(b"\x60" + varint).retention == number


def test_negative_numbers() -> None:
    assert read_task(b"\x28" + b"\xff" * 9 + b"\x01").retry == -1
