"""The commands that people type: the demo, and the local system itself."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest

from campaign_jobs.events import EmailJobPayload
from campaign_jobs.producer import JobProducer
from local.aws.mails import read_mails

PEOPLE = 120
CAMPAIGN = UUID("7c1f0f0e-5d0a-4d53-9a0e-2f3f7f3d8a01")
USERS = [
    UUID("7c1f0f0e-5d0a-4d53-9a0e-2f3f7f3d8a11"),
    UUID("7c1f0f0e-5d0a-4d53-9a0e-2f3f7f3d8a12"),
]
REPLACEABLE = {"KAFKA_BROKERS", "DATABASE_URL", "AWS_ENDPOINT_URL"}

Process = tuple[int, str]
"""A process id and its start time, which together are never used twice."""


def processes() -> dict[Process, int]:
    """All living processes with their parents, as Linux lists them."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(stat.parent.name), fields[19]] = int(fields[1])
    return found


class Command:
    """`python -m local …` as a process, with every process that was ever seen below it."""

    def __init__(self, repository: Path, output: Path, *arguments: str) -> None:
        path = os.pathsep.join([str(repository / "layers/campaign_jobs/python"), str(repository)])
        self.output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "local", *arguments],
                cwd=repository,
                env={name: value for name, value in os.environ.items() if name not in REPLACEABLE}
                | {"PYTHONPATH": path},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.seen: set[Process] = set()

    def look(self) -> None:
        parents = processes()
        below = {self.process.pid}
        while more := {pid for (pid, _), parent in parents.items() if parent in below} - below:
            below |= more
        self.seen |= {process for process in parents if process[0] in below - {self.process.pid}}

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended: {self.output.read_text()}"
            assert time.monotonic() < deadline, f"it takes too long: {self.output.read_text()}"
            self.look()
            time.sleep(0.2)

    def ends(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.output.read_text()}"
            self.look()
            time.sleep(0.2)
        return self.process.returncode

    def left_behind(self) -> set[Process]:
        return self.seen & processes().keys()


@contextmanager
def running(repository: Path, output: Path, *arguments: str) -> Iterator[Command]:
    command = Command(repository, output, *arguments)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.terminate()
            try:
                command.process.wait(60)
            except subprocess.TimeoutExpired:
                command.process.kill()
                command.process.wait()


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not below pytest's own directory, which is closed to the other user that PostgreSQL runs as under root.
    with tempfile.TemporaryDirectory(prefix="campaign-jobs-e2e-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def accepted(counts: dict[str, dict[str, int]]) -> int:
    return sum(by_status.get("accepted", 0) for by_status in counts.values())


@pytest.mark.timeout(300)
def test_the_demo_finds_every_total_right_and_leaves_nothing_behind(
    repository: Path, directory: Path
) -> None:
    summary_file, demo = directory / "summary.json", directory / "demo"
    arguments = ["demo", "--people", str(PEOPLE), "--summary", str(summary_file), "--directory", str(demo)]
    with running(repository, directory / "output", *arguments) as command:
        exit_code = command.ends(280)
    output = command.output.read_text(encoding="utf-8")

    assert exit_code == 0, output
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    assert len(summary["checks"]) > 45
    assert all(holds is True for holds in summary["checks"].values())
    script = [
        json.loads(line)
        for line in (repository / "local/demo/launch.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    wrong = [line for line in script if {"record", "hopeless"} & line.keys()]
    # A record that was handed on twice is a dead letter twice; each malformed one is checked to be one.
    places = {(letter["topic"], letter["partition"], letter["offset"]) for letter in summary["dead_letters"]}
    assert len(places) == len(wrong)
    assert sum(hour["new_signups"] for hour in summary["analytics"]) == PEOPLE
    mails = read_mails(demo / "mail")
    assert len(mails) == accepted(summary["emails"]) > PEOPLE
    assert (demo / "mail" / "index.html").exists()
    board = summary["leaderboard"]
    assert board["with_referrals"][0]["person"] == "farmer"
    assert board["after"][0]["person"] == "champion"
    assert [standing["original_position"] for standing in board["before"]] == list(range(1, 13))
    cases = {case["person"]: case for case in summary["fraud_cases"]}
    assert cases["farmer"]["checks"] == ["bot", "velocity"] and cases["farmer"]["status"] == "confirmed"
    assert not {"champion", "runner-up", *(f"household-{number}" for number in range(1, 5))} & cases.keys()
    assert {check for case in cases.values() for check in case["checks"]} == {
        "self_referral", "velocity", "fake_email", "bot", "duplicate_ip", "duplicate_device",
    }  # fmt: skip
    assert summary["rewards"]["manual"] == {"delivered": 1, "earned": 1}
    assert summary["events"]["job.position.recalculate"]["done"] > 0
    got: dict[str, list[str]] = {}
    for mail in mails:
        got.setdefault(mail.to[0], []).append(mail.tags["type"])
    assert got["mistyped-1@nowhere.example"] == ["verification"]
    assert got["annoyed@example.net"] == ["verification", "welcome"]
    assert got["minimalist-1@example.org"] == ["verification", "welcome", "reward_earned"]
    assert got["hesitant@example.com"] == [
        "verification", "position_update", "verification", "reward_earned",
    ]  # fmt: skip
    assert summary["reported"]["verification"]["bounced"] == 3
    assert summary["reported"]["welcome"]["complained"] == 1
    assert summary["suppressions"] == {
        "annoyed@example.net": "complaint",
        "bounced@example.org": "bounce",
        **{f"mistyped-{number}@nowhere.example": "bounce" for number in (1, 2, 3)},
    }
    assert summary["unsubscribed"] == ["hesitant", "minimalist-1", "minimalist-2", "quiet"]
    assert summary["rewards"]["email"]["failed"] == 1
    for title in (
        "Events by type", "Emails by type", "What SES reported", "Who gets no more mail", "leaderboard",
        "Fraud cases", "Dead letters", "Checks",
    ):  # fmt: skip
        assert title in output
    assert (
        max(len(line) for line in output.split("Checks ─")[0].splitlines() if "under way" not in line) <= 100
    )
    assert command.left_behind() == set()


@pytest.mark.timeout(120)
def test_an_interrupted_demo_stops_everything(repository: Path, directory: Path) -> None:
    with running(
        repository,
        directory / "output",
        "demo",
        "--people",
        str(PEOPLE),
        "--directory",
        str(directory / "demo"),
    ) as command:
        command.wait_for(lambda: "People sign up" in command.output.read_text(encoding="utf-8"), 60)
        command.process.send_signal(signal.SIGINT)
        exit_code = command.ends(60)

    assert exit_code == 130, command.output.read_text(encoding="utf-8")
    assert command.seen
    assert command.left_behind() == set()


@pytest.mark.timeout(60)
def test_the_demo_empties_no_directory_of_somebody_else(repository: Path, directory: Path) -> None:
    precious = directory / "theirs" / "precious.txt"
    precious.parent.mkdir()
    precious.touch()
    with running(repository, directory / "output", "demo", "--directory", str(precious.parent)) as command:
        exit_code = command.ends(50)

    assert exit_code == 1
    assert "holds something else" in command.output.read_text(encoding="utf-8")
    assert precious.exists()


@pytest.mark.timeout(300)
def test_the_local_system_goes_on_where_it_was_stopped(repository: Path, directory: Path) -> None:
    system = directory / "system"

    def sends(number: int) -> Command:
        with running(repository, directory / f"output-{number}", "--directory", str(system)) as command:
            endpoints_file = system / "endpoints.json"
            command.wait_for(endpoints_file.exists, 90)
            endpoints = json.loads(endpoints_file.read_text(encoding="utf-8"))
            with psycopg.connect(endpoints["database_url"]) as connection:
                connection.execute(
                    "INSERT INTO campaign_jobs.campaigns (id, name) VALUES (%s, 'Orbit') ON CONFLICT DO NOTHING",
                    (CAMPAIGN,),
                )
                connection.execute(
                    "INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position,"
                    " verification_token) VALUES (%s, %s, %s, %s, 'token')",
                    (USERS[number], CAMPAIGN, f"user-{number}@example.com", number + 1),
                )
            with JobProducer(brokers=endpoints["kafka"], topic=endpoints["topic"]) as producer:
                payload = EmailJobPayload(type="welcome", campaign_id=CAMPAIGN, user_id=USERS[number])
                producer.enqueue_email_job(payload, event_id=f"welcome-{number}")
            command.wait_for(lambda: len(read_mails(system / "mail")) > number, 60)
            # The first mail's link, of the first run and of the second one, whose port may be another.
            link = urlsplit(read_mails(system / "mail")[0].headers["List-Unsubscribe"].strip("<>"))
            url = f"{endpoints['unsubscribe_url'].rstrip('/')}{link.path}?{link.query}"
            with urllib.request.urlopen(url, timeout=30) as page:
                assert b"<button" in page.read()
            if number == 1:
                with urllib.request.urlopen(url, b"List-Unsubscribe=One-Click", timeout=30) as page:
                    assert page.status == 200
            with psycopg.connect(endpoints["database_url"]) as connection:
                rows = connection.execute("SELECT user_id FROM campaign_jobs.email_unsubscribes").fetchall()
                assert rows == ([(USERS[0],)] if number == 1 else [])
            command.process.terminate()
            assert command.ends(90) == 0, command.output.read_text(encoding="utf-8")
            assert not endpoints_file.exists()
        return command

    first, second = sends(0), sends(1)

    assert first.seen and first.left_behind() == set()
    assert second.left_behind() == set()
    assert [mail.to for mail in read_mails(system / "mail")] == [
        ["user-0@example.com"],
        ["user-1@example.com"],
    ]
    # Its database would keep a repeated event from being mailed again; that it did not even come shows the offsets.
    log = (system / "logs" / "campaign-jobs-local-email.log").read_text(encoding="utf-8")
    settled = [json.loads(line) for line in log.splitlines() if '"event settled"' in line]
    assert [entry["event_id"] for entry in settled] == ["welcome-0", "welcome-1"]
