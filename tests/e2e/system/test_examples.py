"""The examples for services, as they stand, against the whole system: what they ask for is done."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from local.aws.mails import read_mails
from local.processes import HOST, ChildProcess, answers, pick_port
from local.system import LocalSystem

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def campaign(system: LocalSystem) -> Iterator[tuple[UUID, psycopg.Connection[Any]]]:
    campaign_id = uuid4()
    with psycopg.connect(system.servers.database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO campaign_jobs.campaigns (id, name) VALUES (%s, 'Lumen Notebook')", [campaign_id]
        )
        yield campaign_id, connection


def add_user(campaign: tuple[UUID, psycopg.Connection[Any]], email: str) -> UUID:
    campaign_id, connection = campaign
    user_id = uuid4()
    connection.execute(
        "INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position, verification_token)"
        " SELECT %(user)s, %(campaign)s, %(email)s, count(*) + 1, 's3cret' FROM campaign_jobs.waitlist_users"
        " WHERE campaign_id = %(campaign)s",
        {"user": user_id, "campaign": campaign_id, "email": email},
    )
    return user_id


def variables(system: LocalSystem) -> dict[str, str]:
    return {
        **os.environ,
        "KAFKA_BROKERS": system.servers.kafka_brokers,
        "KAFKA_JOB_TOPIC": system.settings.kafka_job_topic,
        "DATABASE_URL": system.servers.database_url,
    }


def run(system: LocalSystem, *command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=variables(system), capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.2)


def got_mail(system: LocalSystem, address: str) -> bool:
    return address in {to for mail in read_mails(system.mail_directory) for to in mail.to}


def test_a_service_in_go(
    system: LocalSystem, campaign: tuple[UUID, psycopg.Connection[Any]], repository: Path, tmp_path: Path
) -> None:
    if (go := shutil.which("go")) is None:
        pytest.skip("Go is not installed")
    example = repository / "examples/go"
    assert run(system, go, "vet", ".", cwd=example) == ""
    run(system, go, "build", "-o", tmp_path / "publish", ".", cwd=example)
    user = add_user(campaign, "go@example.org")
    printed = run(
        system, tmp_path / "publish", "-campaign", str(campaign[0]), "-user", str(user), cwd=tmp_path
    )
    assert [line.split()[1] for line in printed.splitlines()] == [
        "job.email.verification",
        "job.position.recalculate",
    ]
    refused = subprocess.run(
        [tmp_path / "publish", "-campaign", str(campaign[0]), "-user", str(user)],
        env={"KAFKA_BROKERS": "127.0.0.1:1", "KAFKA_AUTH": "iam", "AWS_CONFIG_FILE": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert refused.returncode == 1
    assert "AWS_REGION is missing" in refused.stderr
    wait_until(lambda: got_mail(system, "go@example.org"), "the mail of the Go example is sent")
    position = "SELECT position FROM campaign_jobs.user_positions WHERE user_id = %s"
    wait_until(lambda: campaign[1].execute(position, [user]).fetchone() == (1,), "the position is written")


def test_kcat(system: LocalSystem, campaign: tuple[UUID, psycopg.Connection[Any]], repository: Path) -> None:
    if shutil.which("kcat") is None:
        pytest.skip("kcat is not installed")
    user, event_id = add_user(campaign, "kcat@example.org"), str(uuid4())
    example = repository / "examples/kcat"
    command = ("sh", "publish.sh", str(campaign[0]), str(user), event_id)
    assert run(system, *command, cwd=example).strip() == event_id
    wait_until(lambda: got_mail(system, "kcat@example.org"), "the mail of the kcat example is sent")
    run(system, *command, cwd=example)
    wait_until(
        lambda: all(mapping.caught_up() for mapping in system.kafka_mappings), "the repeated event is settled"
    )
    mails = [mail for mail in read_mails(system.mail_directory) if "kcat@example.org" in mail.to]
    assert len(mails) == 1


@pytest.fixture
def service(system: LocalSystem, repository: Path, tmp_path: Path) -> Iterator[tuple[str, ChildProcess]]:
    port = pick_port()
    process = ChildProcess(
        "FastAPI example",
        [sys.executable, "-m", "uvicorn", "waitlist:app", "--host", HOST, "--port", str(port)],
        log_file=tmp_path / "service.log",
        environment={
            **variables(system),
            "PYTHONPATH": f"{repository / 'layers/campaign_jobs/python'}{os.pathsep}{repository / 'examples/fastapi'}",
        },
    )
    with process:
        process.wait_until(lambda: answers(port), timeout_seconds=60)
        yield f"http://{HOST}:{port}", process


def post(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_service_with_fastapi(
    system: LocalSystem,
    campaign: tuple[UUID, psycopg.Connection[Any]],
    service: tuple[str, ChildProcess],
) -> None:
    campaign_id, connection = campaign
    url = f"{service[0]}/campaigns/{campaign_id}/signups"
    accepted = post(url, {"email": "fastapi@example.org", "first_name": "Ada"})
    assert accepted[0] == 202
    # Once more, nobody learns that the address is there, and nothing is asked for again.
    assert post(url, {"email": "fastapi@example.org"}) == accepted
    assert post(url, {"email": "not an address"})[0] == 422
    for name in ("a\x00b", "a" * 101):
        assert post(url, {"email": "other@example.org", "first_name": name})[0] == 422
    assert post(f"{service[0]}/campaigns/{uuid4()}/signups", {"email": "other@example.org"})[0] == 404
    wait_until(lambda: got_mail(system, "fastapi@example.org"), "the mail of the FastAPI example is sent")
    users = connection.execute(
        "SELECT email, original_position FROM campaign_jobs.waitlist_users WHERE campaign_id = %s",
        [campaign_id],
    ).fetchall()
    assert users == [("fastapi@example.org", 1)]
    events = connection.execute(
        "SELECT count(*) FROM campaign_jobs.outbox"
        " WHERE event ->> 'type' = 'job.email.verification' AND event ->> 'campaign_id' = %s",
        [str(campaign_id)],
    ).fetchone()
    assert events == (1,)


FAILS_TO_COMMIT = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not committed'; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON campaign_jobs.waitlist_users DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.email = 'refused@example.org') EXECUTE FUNCTION public.refuse();
"""


def test_a_signup_in_fastapi_and_its_event_are_committed_together_or_not_at_all(
    system: LocalSystem,
    campaign: tuple[UUID, psycopg.Connection[Any]],
    service: tuple[str, ChildProcess],
) -> None:
    campaign_id, connection = campaign
    base_url, process = service
    url = f"{base_url}/campaigns/{campaign_id}/signups"
    connection.execute(FAILS_TO_COMMIT)
    try:
        assert post(url, {"email": "refused@example.org"})[0] == 500
    finally:
        connection.execute("DROP FUNCTION public.refuse CASCADE")
    events = "SELECT count(*) FROM campaign_jobs.outbox WHERE event ->> 'campaign_id' = %s"
    users = "SELECT count(*) FROM campaign_jobs.waitlist_users WHERE campaign_id = %s"
    assert connection.execute(users, [campaign_id]).fetchone() == (0,)
    assert connection.execute(events, [str(campaign_id)]).fetchone() == (0,)
    assert post(url, {"email": "killed@example.org"})[0] == 202
    process.kill()
    wait_until(lambda: got_mail(system, "killed@example.org"), "the mail of the killed service is sent")
