"""From SES to PostgreSQL as in production: events in a queue, its mapping, the function in a process of its own."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest

from campaign_jobs.catalog import FEEDBACK
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email import ses as ses_module
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.ses import SesSender
from campaign_jobs.email.tags import message_tag
from campaign_jobs.worker.outcomes import Done, Retry, Skipped
from local.aws import Answer, AwsStandIn, FeedbackError, FeedbackSettings, ScriptLine, catalog_queues, prepare
from local.aws.mails import read_mails
from local.functions import REPOSITORY, Function, FunctionConfiguration
from local.mappings.sqs import SqsMapping
from tests.integration.email_campaign import DEFAULT_SENDER, UNSUBSCRIBE_LINKS, MailCampaign
from tests.integration.reward_campaign import deadline
from tests.ses_events import ses_event

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

REGION = "eu-central-1"


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsStandIn]:
    with AwsStandIn(tmp_path / "mails") as stand_in:
        monkeypatch.setenv("AWS_ENDPOINT_URL", stand_in.endpoint_url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield stand_in


@pytest.fixture
def sqs(aws: AwsStandIn) -> "SQSClient":
    return boto3.client("sqs", endpoint_url=aws.endpoint_url)


@pytest.fixture
def queues(aws: AwsStandIn, sqs: "SQSClient") -> dict[str, str]:
    """Those of the catalog, but a message that fails comes again soon, and not often."""
    hurried = [
        replace(queue, visibility_timeout_seconds=10, max_receives=2) if queue.dead_letter_queue else queue
        for queue in catalog_queues()
    ]
    ses = boto3.client("sesv2", endpoint_url=aws.endpoint_url)
    return prepare(ses, sqs, [DEFAULT_SENDER.rpartition("@")[2]], hurried)


@pytest.fixture
def queue_url(aws: AwsStandIn, queues: dict[str, str]) -> str:
    """SES's events go there."""
    url = queues[FEEDBACK.queue_setting]
    aws.report(FeedbackSettings(url, REGION, delay_seconds=0.2))
    return url


@pytest.fixture
def mapping(queue_url: str, sqs: "SQSClient", database_url: str, tmp_path: Path) -> Iterator[SqsMapping]:
    configuration = FunctionConfiguration(
        name="campaign-jobs-test-feedback",
        handler=REPOSITORY / "functions" / "feedback" / "handler.py",
        environment={"DATABASE_URL": database_url},
        timeout_seconds=60,
        memory_mb=FEEDBACK.memory_mb,
        log_dir=tmp_path / "logs",
    )
    with (
        Function(configuration, max_concurrency=2) as function,
        SqsMapping(
            sqs=sqs,
            queue_url=queue_url,
            function=function,
            batch_size=FEEDBACK.batch_size,
            batching_window_seconds=1,
            report_batch_item_failures=True,
        ) as mapping,
    ):
        yield mapping


@pytest.fixture
def campaign(connection: Connection) -> MailCampaign:
    return MailCampaign(connection)


@pytest.fixture
def job(database: Database, aws: AwsStandIn) -> EmailJob:
    sender = SesSender(pool_size=5, configuration_set=None)
    return EmailJob(
        database, sender, pool_size=5, default_sender=DEFAULT_SENDER, unsubscribe_links=UNSUBSCRIBE_LINKS
    )


def wait_for(happened: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < limit, "it did not happen within a minute"
        time.sleep(0.1)


def wait_until_told(aws: AwsStandIn, mapping: SqsMapping) -> None:
    wait_for(lambda: aws.pending_reports() == 0 and mapping.idle())


def recorded(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM campaign_jobs.email_events").fetchone()
    assert row is not None
    return int(row[0])


def test_what_becomes_of_mails_to_the_mailbox_simulator(
    aws: AwsStandIn, mapping: SqsMapping, job: EmailJob, campaign: MailCampaign, connection: Connection
) -> None:
    expected = {
        "success@simulator.amazonses.com": "delivered",
        "bounce+one@simulator.amazonses.com": "bounced",
        "Complaint@simulator.amazonses.com": "complained",
        "suppressionlist@simulator.amazonses.com": "bounced",
        "ooto@simulator.amazonses.com": "delivered",
        "somebody@example.org": "delivered",
    }
    users = {address: campaign.add_user(email=address) for address in expected}
    mails = {address: campaign.asks("welcome", user) for address, user in users.items()}
    assert list(job.process(list(mails.values()), deadline(100))) == [Done()] * 6
    # Send; what followed for each; and what followed the delivery of two.
    wait_for(lambda: recorded(connection) == 6 + 6 + 2)
    assert {address: campaign.mail(mail, "delivery_status") for address, mail in mails.items()} == {
        address: (status,) for address, status in expected.items()
    }
    suppressed = connection.execute("SELECT address, reason FROM campaign_jobs.email_suppressions")
    assert dict(suppressed.fetchall()) == {
        "bounce+one@simulator.amazonses.com": "bounce",
        "complaint@simulator.amazonses.com": "complaint",
        "suppressionlist@simulator.amazonses.com": "bounce",
    }
    again = campaign.asks("verification", users["Complaint@simulator.amazonses.com"])
    assert list(job.process([again], deadline(100))) == [Skipped("the address is suppressed: complaint")]


def test_a_script_makes_any_address_bounce_or_its_reader_complain_as_often_as_it_says(
    aws: AwsStandIn, mapping: SqsMapping, job: EmailJob, campaign: MailCampaign, connection: Connection
) -> None:
    users = {name: campaign.add_user(email=f"{name}@example.org") for name in ("dead", "annoyed", "fine")}
    aws.play(
        [
            ScriptLine(r"^dead@example\.org$", Answer.BOUNCE),
            ScriptLine(r"^annoyed@example\.org$", Answer.COMPLAINT, times=1),
        ]
    )
    mails = {name: campaign.asks("welcome", user) for name, user in users.items()}
    assert list(job.process(list(mails.values()), deadline(100))) == [Done()] * 3
    # Send; a bounce and two deliveries; and what followed one of these.
    wait_for(lambda: recorded(connection) == 3 + 3 + 1)
    assert {name: campaign.mail(mail, "delivery_status") for name, mail in mails.items()} == {
        "dead": ("bounced",),
        "annoyed": ("complained",),
        "fine": ("delivered",),
    }
    suppressed = connection.execute("SELECT address, reason FROM campaign_jobs.email_suppressions")
    assert dict(suppressed.fetchall()) == {"dead@example.org": "bounce", "annoyed@example.org": "complaint"}
    # Somebody lifts both: the address is as dead as before, and the reader has complained once.
    connection.execute("DELETE FROM campaign_jobs.email_suppressions")
    again = {name: campaign.asks("verification", users[name]) for name in ("dead", "annoyed")}
    assert list(job.process(list(again.values()), deadline(100))) == [Done()] * 2
    wait_until_told(aws, mapping)
    assert {name: campaign.mail(mail, "delivery_status") for name, mail in again.items()} == {
        "dead": ("bounced",),
        "annoyed": ("delivered",),
    }


def test_events_that_come_twice_and_out_of_order(
    aws: AwsStandIn,
    queue_url: str,
    mapping: SqsMapping,
    job: EmailJob,
    campaign: MailCampaign,
    connection: Connection,
) -> None:
    aws.report(FeedbackSettings(queue_url, REGION, delay_seconds=1, repeated=1, seed=7))
    mails = [campaign.asks("welcome", campaign.add_user()) for _ in range(20)]
    assert list(job.process(mails, deadline(100))) == [Done()] * 20
    wait_until_told(aws, mapping)
    assert recorded(connection) == 40
    assert {campaign.mail(mail, "delivery_status") for mail in mails} == {("delivered",)}
    # All copies came: Send and Delivery, twice each.
    assert mapping.counters.delivered >= 80


def test_events_that_never_come_are_waited_for_by_nobody(
    aws: AwsStandIn, queue_url: str, mapping: SqsMapping, job: EmailJob, campaign: MailCampaign
) -> None:
    aws.report(FeedbackSettings(queue_url, REGION, lost=1))
    mail = campaign.asks("welcome", campaign.add_user())
    assert list(job.process([mail], deadline(100))) == [Done()]
    wait_until_told(aws, mapping)
    assert campaign.mail(mail, "status, delivery_status") == ("accepted", None)


def test_no_answer_in_time_but_an_event(
    aws: AwsStandIn,
    mapping: SqsMapping,
    job: EmailJob,
    campaign: MailCampaign,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ses_module, "READ_SECONDS", 1)
    reward = campaign.earn(campaign.add_reward("email"), user := campaign.add_user())
    mail = campaign.asks("reward_earned", user, user_reward_id=str(reward))
    aws.play([ScriptLine(f"^{campaign.address(user)}$", Answer.TIMEOUT, times=1, seconds=30)])
    (outcome,) = job.process([mail], deadline(100))
    assert isinstance(outcome, Retry)
    wait_for(lambda: campaign.mail(mail, "delivery_status") == ("delivered",))
    assert campaign.mail(mail, "status") == ("claimed",)
    campaign.let_claims_expire()
    assert list(job.process([mail], deadline(100))) == [Done()]
    (kept,) = read_mails(aws.mail_directory)
    assert campaign.mail(mail, "status, ses_message_id") == ("accepted", kept.message_id)
    assert campaign.row(reward) == ("delivered",)


def test_an_unreadable_message_becomes_a_dead_letter_and_its_neighbors_are_done(
    aws: AwsStandIn,
    queues: dict[str, str],
    queue_url: str,
    sqs: "SQSClient",
    mapping: SqsMapping,
    job: EmailJob,
    campaign: MailCampaign,
    connection: Connection,
) -> None:
    aws.report(FeedbackSettings(queue_url, REGION, lost=1))
    mails = [campaign.asks("welcome", campaign.add_user()) for _ in range(2)]
    assert list(job.process(mails, deadline(100))) == [Done()] * 2
    bodies = [json.dumps(ses_event("delivered", message_tag(mail.event.id))) for mail in mails]
    sqs.send_message_batch(
        QueueUrl=queue_url,
        Entries=[
            {"Id": str(number), "MessageBody": body}
            for number, body in enumerate([bodies[0], "not an event", bodies[1]])
        ],
    )
    dead_letters = queues[FEEDBACK.dead_letter_queue_setting]
    found: list[str] = []

    def is_dead() -> bool:
        answer = sqs.receive_message(QueueUrl=dead_letters, MaxNumberOfMessages=10)
        found.extend(message["Body"] for message in answer.get("Messages", []))
        return bool(found)

    wait_for(is_dead)
    assert found == ["not an event"]
    assert recorded(connection) == 2
    wait_for(mapping.idle)


@pytest.mark.parametrize("wrong", [{"lost": 2}, {"repeated": -1}, {"delay_seconds": -1}])
def test_wrong_settings_of_the_events_are_refused(aws: AwsStandIn, wrong: dict[str, float]) -> None:
    with pytest.raises(FeedbackError, match="from 0 to 1"):
        aws.report(FeedbackSettings("http://127.0.0.1/queue", REGION, **wrong))  # type: ignore[arg-type]
