"""How far everybody is behind, by heartbeats, offsets and queues of real parts."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from campaign_jobs.relay.heartbeats import heartbeat
from campaign_jobs_cli import kafka
from campaign_jobs_cli.errors import ExitCode
from campaign_jobs_cli.lag import topic as looking
from campaign_jobs_cli.targets import Target
from tests.cli.operating.conftest import Type

Publish = Callable[[Sequence[tuple[str | bytes | None, bytes]]], None]
KEY = "all of one partition"


def mail(type_: str) -> bytes:
    data = {"type": type_, "campaign_id": str(uuid.uuid4()), "user_id": str(uuid.uuid4()), "milestone": 1}
    return json.dumps({"id": str(uuid.uuid4()), "type": f"job.email.{type_}", "data": data}).encode()


def commit(target: Target, lane: str, offsets: dict[int, int]) -> None:
    wanted = ConsumerGroupTopicPartitions(
        f"{target.consumer_group}-{lane}",
        [TopicPartition(target.kafka.kafka_job_topic, *each) for each in offsets.items()],
    )
    client = kafka.admin(target)
    for future in client.alter_consumer_group_offsets([wanted]).values():
        future.result(30)


def by_lane(rows: list[dict[str, Any]]) -> dict[str | None, dict[str, Any]]:
    return {row["lane"]: row for row in rows}


def test_each_lane_waits_for_its_own_records_alone(type_: Type, publish: Publish, target: Target) -> None:
    publish([(KEY, mail("verification")), (KEY, mail("milestone")), (KEY, mail("milestone"))])
    ran = type_("lag", "--output", "json")
    assert ran.code == ExitCode.DONE, ran.err
    lanes = by_lane(ran.json)
    assert [row["job_type"] for row in ran.json] == [
        "email", "email", "position", "reward", "unroutable", "feedback",
    ]  # fmt: skip
    assert {row["events"] for row in ran.json[:5]} == {3}
    assert lanes["email"]["seconds_behind"] > 0
    assert lanes["email-bulk"]["seconds_behind"] > 0
    assert lanes["unroutable"]["seconds_behind"] > 0
    # Nothing on the topic is for them, whatever their offsets say.
    assert lanes["position"]["seconds_behind"] == lanes["reward"]["seconds_behind"] == 0
    assert lanes["email"]["heartbeat_age_seconds"] is None
    assert lanes["email"]["mappings"] == "Enabled"

    partitions = type_("lag", "--partitions", "--output", "json").json
    assert len(partitions) == 50
    (written,) = {row["partition"] for row in partitions if row["events"]}
    commit(target, "email", {written: 1})
    commit(target, "email-bulk", {written: 3})
    lanes = by_lane(type_("lag", "--output", "json").json)
    assert (lanes["email"]["events"], lanes["email"]["seconds_behind"]) == (2, 0)
    assert (lanes["email-bulk"]["events"], lanes["email-bulk"]["seconds_behind"]) == (0, 0)
    assert lanes["unroutable"]["events"] == 3


def test_what_is_no_json_and_heartbeats_pass_every_filter(type_: Type, publish: Publish) -> None:
    publish([(KEY, b"no event")])
    assert all(
        row["seconds_behind"] > 0 for row in type_("lag", "--output", "json").json if row["lane"] is not None
    )
    assert "no event" not in type_("lag").out


def test_a_lane_that_only_waits_for_a_heartbeat_is_behind(type_: Type, publish: Publish) -> None:
    publish([(KEY, mail("milestone")), (KEY, heartbeat(0, datetime.now(UTC)))])
    assert by_lane(type_("lag", "--output", "json").json)["reward"]["seconds_behind"] > 0


def test_what_is_not_found_within_the_bound_is_not_known(
    type_: Type, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "MAX_RECORDS", 2)
    publish([(KEY, mail("milestone"))] * 3 + [(KEY, mail("verification"))])
    lanes = by_lane(type_("lag", "--output", "json").json)
    assert lanes["email"]["seconds_behind"] is None
    assert lanes["email-bulk"]["seconds_behind"] > 0


def test_the_partition_that_is_behind_most_counts(
    type_: Type, target: Target, connection: psycopg.Connection[Any]
) -> None:
    connection.execute(
        "INSERT INTO campaign_jobs.heartbeats (consumer_group, topic, partition, published_at)"
        " VALUES (%(group)s, %(topic)s, 0, now()), (%(group)s, %(topic)s, 1, now() - interval '1 hour'),"
        " (%(group)s, 'another', 1, now() - interval '1 day')",
        {"group": f"{target.consumer_group}-email", "topic": target.kafka.kafka_job_topic},
    )
    age = by_lane(type_("lag", "--output", "json").json)["email"]["heartbeat_age_seconds"]
    assert 3_600 <= age < 4_600
    rows = [row for row in type_("lag", "--partitions", "--output", "json").json if row["lane"] == "email"]
    assert [row["heartbeat_age_seconds"] is None for row in rows] == [False, False, *[True] * 8]
    assert "60 min" in type_("lag").out


def test_a_partition_whose_leader_moves_is_asked_for_again(
    type_: Type, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish([(KEY, mail("milestone"))])
    list_offsets, refused = AdminClient.list_offsets, 0

    def moving(client: AdminClient, asked: Mapping[TopicPartition, Any], **named: Any) -> Any:
        nonlocal refused
        if refused == 2:
            return list_offsets(client, asked, **named)
        refused += 1
        answer: Future[Any] = Future()
        answer.set_exception(KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)))
        return dict.fromkeys(asked, answer)

    monkeypatch.setattr(AdminClient, "list_offsets", moving)
    assert by_lane(type_("lag", "--output", "json").json)["email"]["events"] == 1
    assert refused == 2


def test_retries_are_counted_and_the_oldest_has_its_age(type_: Type, target: Target) -> None:
    sqs, url = target.client("sqs"), target.queue_url("reward-retry")
    sqs.send_message(QueueUrl=url, MessageBody="{}")
    sqs.send_message(QueueUrl=url, MessageBody="{}", DelaySeconds=600)
    sqs.send_message(QueueUrl=url, MessageBody="{}")
    sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=1, VisibilityTimeout=600)
    sqs.send_message(QueueUrl=target.queue_url("feedback"), MessageBody="{}")
    rows = type_("lag", "--output", "json").json
    reward = by_lane(rows)["reward"]
    assert (reward["retries"], reward["later"], reward["under_way"]) == (1, 1, 1)
    assert reward["oldest_retry_seconds"] > 0
    email = by_lane(rows)["email"]
    assert (email["retries"], email["oldest_retry_seconds"]) == (0, None)
    feedback = rows[-1]
    assert (feedback["job_type"], feedback["retries"], feedback["events"]) == ("feedback", 1, None)
    assert feedback["oldest_retry_seconds"] > 0


def test_a_message_that_was_received_three_times_is_not_the_oldest(type_: Type, target: Target) -> None:
    sqs, url = target.client("sqs"), target.queue_url("reward-retry")
    sqs.send_message(QueueUrl=url, MessageBody="{}")
    for _ in range(3):
        (message,) = sqs.receive_message(QueueUrl=url, VisibilityTimeout=600)["Messages"]
        handle = message["ReceiptHandle"]
        sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=0)
    assert by_lane(type_("lag", "--output", "json").json)["reward"]["oldest_retry_seconds"] == 0


def test_watch_looks_again_until_it_is_interrupted(
    type_: Type, monkeypatch: pytest.MonkeyPatch, publish: Publish
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt
        publish([(KEY, mail("welcome"))])

    monkeypatch.setattr("campaign_jobs_cli.lag.command.time.sleep", wait)
    ran = type_("lag", "--watch", "--every", 3, "--output", "json")
    assert ran.code == ExitCode.DONE
    assert waits == [3, 3]
    assert [by_lane(line["lag"])["email"]["events"] for line in ran.lines] == [0, 1]

    waits.clear()
    shown = type_("lag", "--watch")
    assert shown.code == ExitCode.DONE
    assert "email-bulk" in shown.out
