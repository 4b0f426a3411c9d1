"""What a replay publishes, and how it goes on after an interruption."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import pytest

from campaign_jobs.catalog import MAX_VALUE_BYTES
from campaign_jobs.errors import BrokersUnreachable
from campaign_jobs.events import read_object
from campaign_jobs.producer import JobProducer, Message
from campaign_jobs.relay.heartbeats import heartbeat
from campaign_jobs_cli.errors import ExitCode
from campaign_jobs_cli.replay import state as states
from campaign_jobs_cli.targets import Target
from tests.cli.operating.conftest import Type
from tests.cli.operating.replaying import Publish, accepted, ids, mail, outcomes, plan, topic, value
from tests.integration.email_campaign import MailCampaign

Found = TypeVar("Found")


def test_the_same_bytes_and_keys_are_published_and_nothing_of_the_replay_itself(
    type_: Type, publish: Publish, campaign: MailCampaign, target: Target
) -> None:
    user = campaign.add_user()
    odd = (
        b'{"type":"job.email.welcome", "id":"odd\\u00e9", "data":'
        + json.dumps({"campaign_id": str(campaign.id), "user_id": str(user), "more": [1.50, None]}).encode()
        + b" }\n"
    )
    publish(
        [(b"\xff\x00", odd), ("k", mail(campaign, user, "plain")), ("k", heartbeat(0, datetime.now(UTC)))]
    )
    ran = type_("replay", "--from", "beginning", "--yes", "--output", "json")
    assert ran.code == ExitCode.DONE, ran.err
    assert (ran.json["events"], ran.json["published"]) == (2, 2)
    assert Counter((record.key, record.value) for record in topic(target) if record.key == b"\xff\x00") == {
        (b"\xff\x00", odd): 2
    }
    assert ids(target)["plain"] == 2
    assert len(topic(target)) == 5
    assert states.load(Path(ran.json["state_file"])).left() == []


def test_an_event_without_a_timestamp_stays_as_old_as_it_is(
    type_: Type, publish: Publish, campaign: MailCampaign, target: Target
) -> None:
    def points(event_id: str, points: int, **more: str) -> bytes:
        data = {"campaign_id": str(campaign.id), "points_per_referral": points}
        return json.dumps({"id": event_id, "type": "job.position.recalculate", "data": data, **more}).encode()

    publish([("k", points("undated", 2)), ("k", points("dated", 3, timestamp="2026-01-01T00:00:00Z"))])
    assert type_("replay", "--from", "beginning", "--yes").code == ExitCode.DONE
    assert ids(target) == {"undated": 2, "dated": 2}
    # The jobs go by the record's time where the event has none, and the latest request decides the points.
    times = {record.at for record in topic(target) if read_object(record.value)["id"] == "undated"}
    assert len(times) == 1


def test_only_what_is_selected_and_within_the_range_is_published(
    type_: Type, publish: Publish, campaign: MailCampaign, target: Target
) -> None:
    user, neighbor = campaign.add_user(), campaign.add_user()
    publish([("k", mail(campaign, user, "early"))])
    places = {read_object(record.value)["id"]: record.place for record in topic(target)}
    publish([("k", mail(campaign, neighbor, "neighbor")), ("k", mail(campaign, user, "late"))])
    places |= {read_object(record.value)["id"]: record.place for record in topic(target)}
    words = ["--from", places["early"], "--to", places["late"], "--user", user]
    ran = type_("replay", *words, "--yes", "--output", "json")
    assert (ran.json["records"], ran.json["published"]) == (2, 1)
    assert ids(target) == {"early": 2, "neighbor": 1, "late": 1}

    by_time = type_("replay", "--from", "1h", "--to", "now", "--type", "welcome", "--yes", "--output", "json")
    assert by_time.json["published"] == 3
    nothing = type_("replay", "--from", datetime.now(UTC) + timedelta(hours=1), "--yes")
    assert nothing.code == ExitCode.DONE and "nothing to replay" in nothing.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "--from"),
        (["--from", "yesterday"], "no point of the topic"),
        (["--from", "1h", "--type", "farewell"], "no such event type"),
        (["--from", "1h", "--resume", "nothing.json"], "leave out --from"),
        (["--resume", "nothing.json"], "No such file"),
        (["--from", "1h", "--rate", "0"], "0.1"),
        (["--from", "1h", "--rate", "inf"], "1000000"),
        (["--from", "1h", "--to", "2h"], "after --from"),
    ],
)
def test_wrong_usage(type_: Type, words: list[str], problem: str) -> None:
    ran = type_("replay", *words, "--yes")
    assert ran.code == ExitCode.WRONG_USAGE
    assert problem in ran.err


def test_again_issues_ids_that_follow_from_the_old_ones(
    type_: Type, publish: Publish, campaign: MailCampaign, target: Target
) -> None:
    user = campaign.add_user()
    accepted(campaign, user, "welcome")
    accepted(campaign, user, "verify", "verification")
    publish([("k", mail(campaign, user, "welcome"))])
    publish([("k", mail(campaign, user, "verify", "verification", more="kept"))])
    assert Counter(row["fate"] for row in plan(type_).json["outcomes"]) == {"done already": 2}
    ran = type_("replay", "--from", "beginning", "--again", "--yes", "--output", "json")
    assert ran.code == ExitCode.DONE, ran.err
    assert outcomes(ran) == {
        ("email.welcome", "would be skipped"): ("it has been sent for another event", 1, 0),
        ("email.verification", "would run"): ("its mail goes out", 1, 1),
    }
    assert "Once" in ran.err or "once" in ran.err
    new = ids(target) - Counter(["welcome", "verify"])
    replay_id = UUID(ran.json["replay_id"])
    assert new == {str(uuid.uuid5(replay_id, old)): 1 for old in ("welcome", "verify")}
    again = next(
        read_object(record.value)
        for record in topic(target)
        if read_object(record.value)["id"] == str(uuid.uuid5(replay_id, "verify"))
    )
    assert again["data"]["more"] == "kept"


def test_an_event_that_a_new_id_makes_too_long_is_left_out(
    type_: Type, publish: Publish, campaign: MailCampaign, target: Target
) -> None:
    long = value("job.position.recalculate", {"campaign_id": str(campaign.id)}, "1", more="")
    long = value(
        "job.position.recalculate",
        {"campaign_id": str(campaign.id)},
        "1",
        more="x" * (MAX_VALUE_BYTES - len(long)),
    )
    publish([("k", long)])
    assert plan(type_).json["events"] == 1
    ran = type_("replay", "--from", "beginning", "--again", "--yes", "--output", "json")
    assert (ran.json["events"], ran.json["published"]) == (0, 0)
    assert ran.json["outcomes"][0]["fate"] == "would fail"
    assert len(topic(target)) == 1


def test_the_pace_is_a_share_of_the_topics(
    type_: Type, publish: Publish, campaign: MailCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish([("k", mail(campaign, campaign.add_user(), "event"))])
    assert plan(type_).json["rate"] == 10
    assert plan(type_, "--rate", 2.5).json["rate"] == 2.5
    monkeypatch.setattr("campaign_jobs_cli.replay.plan.live_rate", lambda *_: 100.0)
    assert plan(type_).json["rate"] == 50
    assert plan(type_, "--share", 0.25).json["rate"] == 25


def test_it_keeps_to_its_pace(
    type_: Type, publish: Publish, campaign: MailCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish([("k", mail(campaign, campaign.add_user(), f"event-{number}")) for number in range(12)])
    clock, steps = [0.0], []

    def sleep(seconds: float) -> None:
        steps.append(seconds)
        clock[0] += seconds

    class Clock:
        monotonic = staticmethod(lambda: clock[0])

    Clock.sleep = staticmethod(sleep)  # type: ignore[attr-defined]
    monkeypatch.setattr("campaign_jobs_cli.replay.publishing.time", Clock)
    assert type_("replay", "--from", "beginning", "--rate", 4, "--yes").code == ExitCode.DONE
    # Three steps of four, a second each.
    assert [seconds for seconds in steps if seconds] == [1.0, 1.0, 1.0]


def test_what_was_not_acknowledged_is_published_again(
    type_: Type, publish: Publish, campaign: MailCampaign, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = campaign.add_user()
    publish([("k", mail(campaign, user, f"event-{number}")) for number in range(30)])
    real, calls = JobProducer.republish, []

    def fails_once(producer: JobProducer, messages: Sequence[Message], milliseconds: Sequence[int]) -> None:
        calls.append(len(messages))
        real(producer, messages, milliseconds)
        if len(calls) == 2:
            raise BrokersUnreachable("no broker answers", range(len(messages)))

    monkeypatch.setattr(JobProducer, "republish", fails_once)
    ran = type_("replay", "--from", "beginning", "--rate", 10, "--yes")
    assert ran.code == ExitCode.FAILED
    assert "no broker answers" in ran.err and "10 of 30 events published" in ran.err
    file = next(word for word in ran.err.split() if word.endswith(".json"))
    declined = type_("replay", "--resume", file)
    assert declined.code == ExitCode.DECLINED
    resumed = type_("replay", "--resume", file, "--yes", "--output", "json")
    assert (resumed.json["published"], resumed.json["records_left"]) == (30, 0)
    assert sum(ids(target).values()) == 30 + 30 + 10
    assert set(ids(target).values()) == {2, 3}
    over = type_("replay", "--resume", file)
    assert over.code == ExitCode.DONE and "Nothing is left" in over.err
    assert sum(ids(target).values()) == 70


def test_a_state_is_not_used_where_it_does_not_belong(
    type_: Type, tmp_path: Path, publish: Publish, campaign: MailCampaign
) -> None:
    publish([("k", mail(campaign, campaign.add_user(), "event"))])
    ran = type_("replay", "--from", "beginning", "--yes", "--output", "json")
    content = json.loads(Path(ran.json["state_file"]).read_text())
    for changes, problem in (
        ({"environment": "prod"}, "--env prod"),
        ({"format": 2}, "format 2"),
        ({"ranges": None}, "no state of a replay"),
    ):
        other = tmp_path / "other.json"
        other.write_text(json.dumps({**content, **changes}))
        refused = type_("replay", "--resume", other, "--yes")
        assert refused.code == ExitCode.WRONG_USAGE and problem in refused.err


@contextmanager
def running(
    target: Target, repository: Path, directory: Path, database_url: str, *words: object
) -> Iterator[subprocess.Popen[str]]:
    """The command as a process of its own, on the same parts."""
    endpoints = {
        "kafka": target.kafka.kafka_brokers,
        "topic": target.kafka.kafka_job_topic,
        "consumer_group": target.consumer_group,
        "database_url": database_url,
        "region": target.region,
        "default_sender": target.default_sender,
        "is_stand_in": True,
    }
    (directory / "endpoints.json").write_text(json.dumps(endpoints))
    process = subprocess.Popen(
        [sys.executable, "-m", "campaign_jobs_cli", *map(str, words), "--directory", str(directory)],
        cwd=repository,
        env={
            **os.environ,
            "PYTHONPATH": "cli:layers/campaign_jobs/python",
            "XDG_CONFIG_HOME": str(directory / "config"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("again", [False, True])
def test_a_replay_that_is_ended_goes_on(
    publish: Publish,
    campaign: MailCampaign,
    target: Target,
    repository: Path,
    tmp_path: Path,
    database_url: str,
    number: signal.Signals,
    again: bool,
) -> None:
    old = [f"event-{each}" for each in range(60)]
    user = campaign.add_user()
    publish([(str(each), mail(campaign, user, event)) for each, event in enumerate(old)])
    rest = [target, repository, tmp_path, database_url]
    words = ["replay", "--from", "beginning", "--rate", 20, "--yes", *(["--again"] if again else [])]
    with running(*rest, *words) as process:  # type: ignore[arg-type]
        file = wait_for(lambda: next((tmp_path / "config/campaign-jobs/replays").glob("*.json"), None))
        wait_for(lambda: json.loads(file.read_text())["published"] >= 20)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else ExitCode.INTERRUPTED)
        assert str(file) in err.replace("\n", "")
    state = json.loads(file.read_text())
    assert 20 <= state["published"] < 60
    with running(*rest, "replay", "--resume", file, "--yes") as process:  # type: ignore[arg-type]
        _, err = process.communicate(timeout=60)
        assert process.returncode == ExitCode.DONE, err

    replay_id = UUID(state["replay_id"])
    expected = {str(uuid.uuid5(replay_id, event)) for event in old} if again else set(old)
    found = ids(target)
    assert found.keys() == expected | set(old)
    # Each was published once more, and those of one step at the most twice.
    times = Counter(found[event] - (0 if again else 1) for event in expected)
    assert set(times) <= {1, 2}
    assert times[2] <= 20
    assert json.loads(file.read_text())["published"] == 60


def wait_for(look: Callable[[], Found | None]) -> Found:
    deadline = time.monotonic() + 60
    while True:
        try:
            if found := look():
                return found
        except (OSError, ValueError):
            pass  # Not there yet.
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)
