"""An operator brings people into the local system: imported, verified by mail, ranked, counted, explained."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from campaign_jobs import outbox
from campaign_jobs.events import PositionRecalcJobPayload
from local.system import LocalSystem


@pytest.fixture
def campaign_jobs(system: LocalSystem, repository: Path) -> Callable[..., Any]:
    """The command as a process of its own, and its JSON."""

    def run(*arguments: object) -> Any:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "campaign_jobs_cli", "--directory", system.directory),
                *("--output", "json", *map(str, arguments)),
            ],
            env=os.environ
            | {"PYTHONPATH": f"{repository / 'cli'}{os.pathsep}{repository / 'layers/campaign_jobs/python'}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.timeout(300)
def test_people_are_imported_mailed_ranked_and_counted(
    system: LocalSystem, campaign_jobs: Callable[..., Any], tmp_path: Path
) -> None:
    campaign = uuid4()
    with psycopg.connect(system.servers.database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO campaign_jobs.campaigns (id, name, public_base_url)"
            " VALUES (%s, 'Launch', 'https://launch.example.com')",
            (campaign,),
        )
    file = tmp_path / "people.csv"
    file.write_text(
        "email,referral_code,referred_by,verified_at,created_at\n"
        "ada@example.org,ADA,,2026-01-01T10:00:00Z,2026-01-01T09:00:00Z\n"
        "bob@example.org,BOB,,2026-01-02T10:00:00Z,2026-01-02T09:00:00Z\n"
        "carol@example.org,,BOB,2026-01-03T10:00:00Z,2026-01-03T09:00:00Z\n"
        "dan@example.org,,BOB,,2026-01-04T09:00:00Z\n"
    )
    imported = campaign_jobs("import", file, "--campaign", campaign, "--verification", "--yes")
    assert imported["written"] == {"people": 4, "referrals": 2, "verification_mails": 1, "welcome_mails": 0}
    with psycopg.connect(system.servers.database_url) as connection:
        # Relay would ask for it by itself, a minute later.
        outbox.enqueue(connection, [PositionRecalcJobPayload(campaign_id=campaign)])
    system.wait_until_quiet(timeout_seconds=120)

    (dan,) = campaign_jobs("explain", "dan@example.org")["people"]
    (mail,) = [mail for mail in dan["mails"] if mail["type"] == "verification"]
    assert (mail["status"], mail["delivery"]) == ("accepted", "delivered")
    event = campaign_jobs("explain", mail["event_id"])
    assert event["outcome"] == "sent: SES has taken the mail; SES reports: delivered"
    assert event["outbox"]["published_at"] is not None

    (bob,) = campaign_jobs("explain", "bob@example.org", "--campaign", campaign)["people"]
    position = bob["position"]
    assert (position["original_position"], position["referrals_counted"], position["score"]) == (2, 1, 1)
    assert position["referrals_not_counted"] == {"the referred person is not verified yet": 1}
    assert (position["position"], position["state"]) == (1, "up to date"), (
        "level with Ada, and with a referral"
    )

    counted = campaign_jobs(
        "analytics", "backfill", "--from", "2026-01-01T09:00:00Z", "--to", "2026-01-05T00:00:00Z", "--yes"
    )
    assert (counted["invocations"], counted["hours"], counted["records"]) == (1, 7, 4 + 3 + 2)
    days = campaign_jobs("analytics", "export", "--campaign", campaign, "--by", "day", "--to", "2026-01-05")
    assert [(day["new_signups"], day["email_verifications"], day["referrals"]) for day in days] == [
        (1, 1, 0),
        (1, 1, 0),
        (1, 1, 1),
        (1, 0, 1),
    ]
    sent = campaign_jobs(
        "templates", "send-test", "welcome", "me@example.com", "--user", "bob@example.org", "--yes"
    )
    assert sent["ses_message_id"]
