"""Asking for a job from the command line is what a service does."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from campaign_jobs.events import EVENT_ADAPTER, EmailEvent, partition_key
from campaign_jobs_cli.errors import ExitCode
from campaign_jobs_cli.targets import Target
from tests.cli.operating.conftest import Type
from tests.integration.email_campaign import MailCampaign

CAMPAIGN = "7c1f0f0e-5d0a-4d53-9a0e-2f3f7f3d8a01"
USER = "7c1f0f0e-5d0a-4d53-9a0e-2f3f7f3d8a11"
REWARD = "7c1f0f0e-5d0a-4d53-9a0e-2f3f7f3d8a21"
EVENT = {
    "id": "as-it-is",
    "type": "job.position.recalculate",
    "data": {"campaign_id": CAMPAIGN},
    "extra": "is kept",
}


def on_topic(type_: Type) -> list[dict[str, Any]]:
    ran = type_("events", "tail", "--from", "beginning", "--output", "json")
    assert ran.code == ExitCode.DONE
    return ran.lines


@pytest.mark.parametrize(
    ("words", "event_type", "data"),
    [
        (
            [
                "email",
                "welcome",
                "--campaign",
                CAMPAIGN,
                "--user",
                USER,
                "--data",
                "name=Ada",
                "--priority",
                3,
            ],
            "job.email.welcome",
            {"priority": 3, "template_data": {"name": "Ada"}},
        ),
        (
            ["email", "milestone", "--campaign", CAMPAIGN, "--user", USER, "--milestone", 10],
            "job.email.milestone",
            {"milestone": 10},
        ),
        (
            ["position", "--campaign", CAMPAIGN, "--points", 4],
            "job.position.recalculate",
            {"points_per_referral": 4},
        ),
        (["reward", "--user-reward", REWARD], "job.reward.deliver", {"user_reward_id": REWARD}),
    ],
)
def test_each_kind_is_published_as_its_contract_has_it(
    type_: Type, words: list[object], event_type: str, data: dict[str, Any]
) -> None:
    ran = type_("enqueue", *words, "--id", "chosen", "--yes", "--output", "json")
    assert ran.code == ExitCode.DONE, ran.err
    assert (ran.json["id"], ran.json["type"]) == ("chosen", event_type)

    (record,) = on_topic(type_)
    assert data.items() <= record["event"]["data"].items()
    event = EVENT_ADAPTER.validate_python(record["event"])
    assert (event.id, event.type) == ("chosen", event_type)
    assert record["key"] == partition_key(event) == ran.json["key"]


def test_without_an_id_it_gets_one(type_: Type) -> None:
    ran = type_("enqueue", "reward", "--user-reward", REWARD, "-y", "--output", "json")
    assert str(UUID(ran.json["id"])) == ran.json["id"] == on_topic(type_)[0]["event"]["id"]


def test_nothing_is_published_that_nobody_wanted(type_: Type) -> None:
    ran = type_("enqueue", "reward", "--user-reward", REWARD)
    assert ran.code == ExitCode.DECLINED
    assert "job.reward.deliver" in ran.out and "--yes" in ran.err
    assert on_topic(type_) == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["email", "farewell", "--campaign", CAMPAIGN, "--user", USER], "verification"),
        (["email", "milestone", "--campaign", CAMPAIGN, "--user", USER], "milestone is missing"),
        (["email", "welcome", "--campaign", CAMPAIGN, "--user", USER, "--data", "name"], "NAME=TEXT"),
        (["position", "--campaign", CAMPAIGN, "--points", -1], "greater than or equal to 0"),
        (["reward", "--user-reward", REWARD, "--id", "a\nb"], "control characters"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_published(
    type_: Type, words: list[object], problem: str
) -> None:
    ran = type_("enqueue", *words, "--yes")
    assert ran.code == ExitCode.WRONG_USAGE
    assert problem in ran.err
    assert on_topic(type_) == []


def test_campaign_and_user_may_be_named(type_: Type, connection: psycopg.Connection[Any]) -> None:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    words = ["enqueue", "email", "welcome", "--campaign", "launch", "--user", campaign.address(user), "--yes"]
    assert type_(*words).code == ExitCode.DONE
    data = on_topic(type_)[0]["event"]["data"]
    assert (data["campaign_id"], data["user_id"]) == (str(campaign.id), str(user))

    missing = type_("enqueue", "position", "--campaign", "landing", "--yes")
    assert missing.code == ExitCode.FAILED and "there is no campaign 'landing'" in missing.err
    assert len(on_topic(type_)) == 1


def test_the_outbox_keeps_it_for_relay_and_keeps_it_once(
    type_: Type, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    words = [
        "enqueue",
        "email",
        "welcome",
        "--campaign",
        CAMPAIGN,
        "--user",
        USER,
        "--id",
        "kept",
        "--outbox",
    ]
    first, second = (type_(*words, "--yes", "--output", "json") for _ in range(2))
    assert (first.json["written"], second.json["written"]) == (True, False)
    rows = connection.execute("SELECT event_id, event, published_at FROM campaign_jobs.outbox").fetchall()
    assert [(row[0], row[2]) for row in rows] == [("kept", None)]
    assert isinstance(EVENT_ADAPTER.validate_python(rows[0][1]), EmailEvent)
    assert on_topic(type_) == []


def test_a_raw_event_is_published_byte_by_byte(type_: Type, tmp_path: Path, target: Target) -> None:
    file = tmp_path / "event.json"
    file.write_text(json.dumps(EVENT, indent=3) + "\n")
    ran = type_("enqueue", "raw", file, "--yes", "--output", "json")
    assert (ran.json["id"], ran.json["key"]) == ("as-it-is", CAMPAIGN)
    assert ran.json["bytes"] == file.stat().st_size
    (record,) = on_topic(type_)
    assert record["event"] == EVENT


def test_a_raw_event_that_breaks_the_contract_needs_to_be_unchecked(type_: Type, tmp_path: Path) -> None:
    file = tmp_path / "event.json"
    file.write_bytes(b'{"type": "job.farewell"}')
    refused = type_("enqueue", "raw", file, "--yes")
    assert refused.code == ExitCode.WRONG_USAGE
    assert "'job.farewell' is unknown" in refused.err
    assert on_topic(type_) == []

    assert type_("enqueue", "raw", file, "--unchecked", "--key", "k", "--yes").code == ExitCode.DONE
    (record,) = on_topic(type_)
    assert (record["key"], record["event"]) == ("k", None)
    assert "'job.farewell' is unknown" in record["reason"]


def test_a_raw_event_may_come_from_standard_input(
    type_: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "event.json"
    file.write_text(json.dumps(EVENT))
    with file.open() as opened:
        monkeypatch.setattr("sys.stdin", opened)
        assert type_("enqueue", "raw", "--yes").code == ExitCode.DONE
    assert on_topic(type_)[0]["event"] == EVENT
