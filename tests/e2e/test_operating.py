"""What operators do, on the whole local system, by the command as a process."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from campaign_jobs import outbox
from campaign_jobs.events import PositionRecalcJobPayload
from local.aws.mails import read_mails
from local.aws.script import Answer, ScriptLine
from local.settings import LocalSettings
from local.system import LocalSystem
from tests.e2e.system.conftest import RELAY_OFTEN

CAMPAIGN = UUID("7c1f0f0e-5d0a-4d53-9a0e-2f3f7f3d8a01")
ADA, BEN = (
    UUID("7c1f0f0e-5d0a-4d53-9a0e-2f3f7f3d8a11"),
    UUID("7c1f0f0e-5d0a-4d53-9a0e-2f3f7f3d8a12"),
)


@pytest.fixture
def system() -> Iterator[LocalSystem]:
    # Not below pytest's own directory, which is closed to the other user that PostgreSQL runs as under root.
    with tempfile.TemporaryDirectory(prefix="campaign-jobs-e2e-") as name:
        Path(name).chmod(0o755)
        settings = LocalSettings.load({})
        with LocalSystem(
            Path(name), settings, durable=False, customary_ports=False, tuning=RELAY_OFTEN
        ) as system:
            with psycopg.connect(system.servers.database_url) as connection:
                connection.execute(
                    "INSERT INTO campaign_jobs.campaigns (id, name) VALUES (%s, 'Orbit')", (CAMPAIGN,)
                )
                for position, (user, address) in enumerate(
                    [(ADA, "ada@example.com"), (BEN, "ben@example.com")]
                ):
                    connection.execute(
                        "INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position,"
                        " verification_token) VALUES (%s, %s, %s, %s, 'token')",
                        (user, CAMPAIGN, address, position + 1),
                    )
                # Relay would ask for it by itself, a minute later.
                outbox.enqueue(connection, [PositionRecalcJobPayload(campaign_id=CAMPAIGN)])
            yield system


def wait_for(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 90
    while not look():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.2)


@pytest.mark.timeout(420)
def test_an_operators_day(system: LocalSystem, repository: Path, tmp_path: Path) -> None:
    def command(*words: object, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
        ran = subprocess.run(
            [
                sys.executable,
                "-m",
                "campaign_jobs_cli",
                *map(str, words),
                "--directory",
                str(system.directory),
            ],
            cwd=repository,
            env={
                **os.environ,
                "PYTHONPATH": "cli:layers/campaign_jobs/python",
                "XDG_CONFIG_HOME": str(tmp_path / "config"),
            },
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        assert ran.returncode == exit_code, ran.stderr + ran.stdout
        return ran

    def answer(*words: object) -> Any:
        return json.loads(command(*words, "--output", "json").stdout)

    def mails() -> Counter[tuple[str, str]]:
        return Counter((mail.to[0], mail.tags["type"]) for mail in read_mails(system.mail_directory))

    def tail(*words: object) -> list[dict[str, Any]]:
        ran = command("events", "tail", "--from", "beginning", *words, "--output", "json")
        return [json.loads(line) for line in ran.stdout.splitlines()]

    def lag() -> dict[str, Any]:
        return {row["lane"] or row["job_type"]: row for row in answer("lag")}

    # Paused: what is asked for waits on the topic, and lag says so.
    assert command("pause", "email", exit_code=3).stderr.count("Nobody can be asked")
    assert {row["state"] for row in answer("pause", "email", "--yes")} == {"Disabled"}
    welcome = ["enqueue", "email", "welcome", "--campaign", "Orbit", "--user", "ada@example.com"]
    assert answer(*welcome, "--id", "welcome-ada", "--yes")["id"] == "welcome-ada"
    command(
        "enqueue", "email", "verification", "--campaign", CAMPAIGN, "--user", ADA, "--id", "verify-ada", "-y"
    )
    lanes = lag()
    assert lanes["email"]["mappings"] == "Disabled" and lanes["email"]["events"] >= 2
    assert lanes["email"]["seconds_behind"] > 0
    assert lanes["reward"]["mappings"] == "Enabled"
    assert not mails()

    # Resumed, it leaves.
    assert {row["state"] for row in answer("resume", "email", "--yes")} == {"Enabled"}
    sent = Counter({("ada@example.com", "welcome"): 1, ("ada@example.com", "verification"): 1})
    wait_for(lambda: mails() == sent)
    wait_for(lambda: lag()["email"]["seconds_behind"] == 0)

    # A mail that SES refuses, and a record that is nobody's, are dead letters.
    assert system.servers.aws is not None
    system.servers.aws.play([ScriptLine("ben@example.com", Answer.REJECT)])
    command(
        "enqueue", "email", "welcome", "--campaign", "Orbit", "--user", BEN, "--id", "welcome-ben", "--yes"
    )
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(b"no event at all")
    command("enqueue", "raw", nonsense, "--unchecked", "--yes")
    wait_for(lambda: len(answer("dead-letters", "list")) == 2)
    letters = {letter["job_type"]: letter for letter in answer("dead-letters", "list")}
    assert letters["email"]["event_id"] == "welcome-ben"
    assert "rejected" in letters["email"]["reason"].casefold()
    (shown,) = answer("dead-letters", "show", letters["unroutable"]["id"])
    assert shown["value"] == "no event at all" and "not JSON" in shown["reason"]
    assert {record["reason"] for record in tail()} == {None, letters["unroutable"]["reason"]}
    assert len(tail("--type", "email")) == 3

    # The cause is mended: one goes back, the other one is thrown away.
    system.servers.aws.play([])
    redriven = answer("dead-letters", "redrive", "--job-type", "email", "--yes")
    assert redriven == {"redriven": 1, "by": {"email-retry": 1}, "planned": 1}
    sent["ben@example.com", "welcome"] += 1
    wait_for(lambda: mails() == sent)
    saved = tmp_path / "saved.jsonl"
    assert answer("dead-letters", "discard", "--all", "--save", saved, "--yes")["discarded"] == 1
    assert json.loads(json.loads(saved.read_text())["body"])["value"] == "no event at all"
    assert answer("dead-letters", "list") == []

    # Replayed, nothing is sent twice.
    system.wait_until_quiet(timeout_seconds=90)
    everything = answer("replay", "--from", "beginning", "--dry-run")
    assert (everything["mails"], everything["no_events"]) == (0, 1)
    plan = answer("replay", "--from", "beginning", "--type", "email", "--dry-run")
    assert (plan["events"], plan["mails"]) == (3, 0)
    assert {row["fate"] for row in plan["outcomes"]} == {"done already"}
    assert answer("replay", "--from", "beginning", "--yes")["published"] >= everything["events"]
    system.wait_until_quiet(timeout_seconds=90)
    assert len(tail("--type", "email")) == 6
    assert mails() == sent

    # Under new ids, what may happen once still happens once; a verification may be asked for again.
    again = answer("replay", "--from", "beginning", "--type", "email", "--again", "--yes")
    assert (again["events"], again["repeated"], again["mails"]) == (3, 3, 1)
    system.wait_until_quiet(timeout_seconds=90)
    sent["ada@example.com", "verification"] += 1
    assert mails() == sent
    assert answer("dead-letters", "list") == []
