"""What is on the topic, as `events tail` shows it."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from confluent_kafka import Message

from campaign_jobs.relay.heartbeats import heartbeat
from campaign_jobs.settings import KafkaSettings
from campaign_jobs_cli import kafka, records
from campaign_jobs_cli.errors import ExitCode, Unreachable
from campaign_jobs_cli.records import Range
from campaign_jobs_cli.targets import Target
from campaign_jobs_cli.times import Edge
from tests.cli.operating.conftest import Type
from tests.integration.email_campaign import MailCampaign

Publish = Callable[[Sequence[tuple[str | bytes | None, bytes]]], None]


def of(type_: str, data: dict[str, Any], event_id: str) -> bytes:
    return json.dumps(
        {"id": event_id, "type": type_, "data": data, "timestamp": "2026-01-01T00:00:00Z"}
    ).encode()


def mail(campaign: UUID, user: UUID, event_id: str, type_: str = "welcome") -> bytes:
    data = {"type": type_, "campaign_id": str(campaign), "user_id": str(user)}
    return of(f"job.email.{type_}", data, event_id)


def ids(ran: Any) -> set[str]:
    return {line["event"]["id"] for line in ran.lines}


def test_what_is_no_event_is_shown_with_the_reason_of_its_dead_letter(type_: Type, publish: Publish) -> None:
    publish([(None, b"\xff"), (None, b"[1]"), (None, b'{"type": "job.reward.deliver", "id": "x"}')])
    publish([(None, heartbeat(0, datetime.now(UTC)))])
    ran = type_("events", "tail", "--from", "beginning", "--output", "json")
    assert {line["reason"] for line in ran.lines} == {
        "the value is not UTF-8 (byte 0); allowed is UTF-8 JSON",
        "the value is a JSON array; allowed is a JSON object",
        "data: Field required",
    }
    with_heartbeats = type_("events", "tail", "--from", "beginning", "--heartbeats", "--output", "json")
    assert len(with_heartbeats.lines) == 4

    table = type_("events", "tail", "--from", "beginning")
    assert "no event" in table.out and "not UTF-8" in table.out and "invalid" in table.out


def test_the_time_that_a_reader_takes_is_not_kafkas_silence(
    publish: Publish, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    class Clock:
        monotonic = staticmethod(lambda: clock[0])

    class Hesitating:
        """Kafka's client, which has nothing at hand each time after it had something."""

        hesitates = False

        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def consume(self, _: int, timeout: float) -> list[Message]:
            found = [] if self.hesitates else client.consume(1, timeout)
            self.hesitates = bool(found)
            return found

    monkeypatch.setattr(records, "time", Clock)
    publish([("k", b"{}"), ("k", b"{}")])
    found = 0
    with kafka.consumer(target) as client:
        ranges = records.ranges(target, client, Edge.BEGINNING, Edge.END)
        for batch in records.read(target, Hesitating(), ranges):  # type: ignore[arg-type]
            found += len(batch)
            clock[0] += 100  # What publishing takes that keeps to a pace.
    assert found == 2


def test_who_follows_is_told_that_kafka_is_gone(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()

    class Clock:
        monotonic = staticmethod(lambda: float(next(seconds)))

    monkeypatch.setattr(records, "time", Clock)
    monkeypatch.setattr(kafka, "TIMEOUT_SECONDS", 1)
    gone = dataclasses.replace(target, kafka=KafkaSettings(kafka_brokers="127.0.0.1:1"))
    with kafka.consumer(gone) as client, pytest.raises(Unreachable, match="does not answer"):
        for batch in records.read(gone, client, [Range(0, 0, None)]):
            assert batch == []
            assert next(seconds) < 1_000, "it waits for ever"


def test_filters_by_type_campaign_and_user(
    type_: Type, publish: Publish, connection: psycopg.Connection[Any]
) -> None:
    campaign, other = MailCampaign(connection), MailCampaign(connection)
    user, neighbor = campaign.add_user(), campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("manual"), user)
    publish(
        [
            ("k", mail(campaign.id, user, "mine")),
            ("k", mail(campaign.id, neighbor, "neighbor", "verification")),
            ("k", mail(other.id, other.add_user(), "other")),
            ("k", of("job.position.recalculate", {"campaign_id": str(campaign.id)}, "position")),
            ("k", of("job.reward.deliver", {"user_reward_id": str(user_reward)}, "reward")),
            ("k", of("job.reward.deliver", {"user_reward_id": str(uuid4())}, "nobodys")),
            ("k", b"no event"),
        ]
    )

    def found(*words: object) -> set[str]:
        ran = type_("events", "tail", "--from", "beginning", "--output", "json", *words)
        assert ran.code == ExitCode.DONE, ran.err
        return ids(ran)

    assert found("--campaign", campaign.id) == {"mine", "neighbor", "position", "reward"}
    assert found("--user", user) == {"mine", "reward"}
    assert found("--type", "email") == {"mine", "neighbor", "other"}
    assert found("--type", "welcome", "--type", "job.reward.deliver") == {
        "mine",
        "other",
        "reward",
        "nobodys",
    }
    assert found("--campaign", campaign.id, "--type", "verification") == {"neighbor"}
    wrong = type_("events", "tail", "--type", "farewell")
    assert wrong.code == ExitCode.WRONG_USAGE and "job.email.milestone" in wrong.err


def test_from_and_limit(type_: Type, publish: Publish) -> None:
    publish([("k", mail(uuid4(), uuid4(), f"event-{number}")) for number in range(5)])
    everything = type_("events", "tail", "--from", "1h", "--output", "json").lines
    assert [line["event"]["id"] for line in everything] == [f"event-{number}" for number in range(5)]
    third = everything[2]["place"]
    later = type_("events", "tail", "--from", third, "--output", "json")
    assert [line["event"]["id"] for line in later.lines] == ["event-2", "event-3", "event-4"]
    two = type_("events", "tail", "--from", "beginning", "--limit", 2, "--output", "json")
    assert [line["event"]["id"] for line in two.lines] == ["event-0", "event-1"]
    assert type_("events", "tail", "--from", "end", "--output", "json").lines == []
    beyond = type_("events", "tail", "--from", "10:0")
    assert beyond.code == ExitCode.WRONG_USAGE and "its last is 9" in beyond.err


def test_follow_shows_what_comes_until_it_is_interrupted(
    publish: Publish, target: Target, repository: Path, tmp_path: Path, database_url: str
) -> None:
    endpoints = {
        "kafka": target.kafka.kafka_brokers,
        "topic": target.kafka.kafka_job_topic,
        "consumer_group": target.consumer_group,
        "database_url": database_url,
        "region": target.region,
        "default_sender": target.default_sender,
        "is_stand_in": True,
    }
    (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))
    words = [
        "events",
        "tail",
        "--follow",
        "--from",
        "beginning",
        "--directory",
        str(tmp_path),
        "--output",
        "json",
    ]
    publish([("k", mail(uuid4(), uuid4(), "before"))])
    process = subprocess.Popen(
        [sys.executable, "-m", "campaign_jobs_cli", *words],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": "cli:layers/campaign_jobs/python"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"]["id"] == "before"
        publish([("k", mail(uuid4(), uuid4(), "after"))])
        assert json.loads(process.stdout.readline())["event"]["id"] == "after"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == ExitCode.DONE
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("key", [None, b"\xff\x00", b"text"])
def test_any_key_can_be_shown(type_: Type, publish: Publish, key: bytes | None) -> None:
    publish([(key, mail(uuid4(), uuid4(), "event"))])
    (line,) = type_("events", "tail", "--from", "beginning", "--output", "json").lines
    assert line["key"] == (None if key is None else key.decode("utf-8", "backslashreplace"))
