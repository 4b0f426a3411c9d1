"""The real CDK app, deployed by the real command line to an AWS emulator: `make e2e`.

What the emulator does and what it only writes down: docs/emulator.md.
"""

import json
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from campaign_jobs.catalog import DEFAULT_TOPIC
from campaign_jobs.events import EmailJobPayload, PositionRecalcJobPayload, RewardDeliveryJobPayload
from campaign_jobs.producer import JobProducer
from local.demo.receiver import WebhookReceiver
from local.demo.services import endpoint_secret
from local.emulator.account import EmulatedAccount
from local.emulator.resource_types import unknown
from tests.e2e.deployment import STACK, Deployment, eventually
from tests.integration.email_campaign import MailCampaign

INTERPRETER = os.environ.get("CAMPAIGN_JOBS_E2E_PYTHON")
pytestmark = pytest.mark.skipif(INTERPRETER is None, reason="needs what `make e2e` installs")

CHANGED_SUBJECT = "Welcome, changed"


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not below pytest's own directory, which is closed to the other user that PostgreSQL runs as under root.
    with tempfile.TemporaryDirectory(prefix="campaign-jobs-e2e-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def receiver(directory: Path) -> Iterator[WebhookReceiver]:
    certificates = directory / "receiver"
    certificates.mkdir()
    with WebhookReceiver(certificates) as receiver:
        yield receiver


@pytest.fixture
def account(directory: Path, receiver: WebhookReceiver) -> Iterator[EmulatedAccount]:
    assert INTERPRETER is not None
    variables = {
        "WEBHOOK_TEST_TARGETS": receiver.target,
        "WEBHOOK_TEST_CA_FILE": str(receiver.ca_file),
    }
    with EmulatedAccount(directory, Path(INTERPRETER), variables=variables) as account:
        yield account


@pytest.mark.timeout(1200)
def test_the_stack_is_deployed_works_is_changed_and_goes(
    repository: Path, directory: Path, account: EmulatedAccount, receiver: WebhookReceiver
) -> None:
    deployment = Deployment(repository, directory, account)
    deployment.bootstrap()
    # Another environment's stack holds the account's identity.
    account.client("sesv2").create_email_identity(EmailIdentity="example.com")
    before = deployment.holdings()

    deployment.deploy()
    assert unknown(deployment.resource_types()) == set(), "to be added to local/emulator/resource_types.toml"
    for kind, held in deployment.holdings().items():
        assert held > before[kind], f"the look at {kind} sees nothing of the stack"

    with deployment.database() as connection, JobProducer(brokers=deployment.brokers()) as producer:
        story = Story(deployment, MailCampaign(connection), producer)
        story.every_type_of_event_does_its_work(receiver)
        story.an_operator_finds_and_switches_what_is_there()
        story.what_cannot_be_read_becomes_a_dead_letter()
        story.an_unsubscribe_link_works()
        story.what_ses_reports_is_recorded()
        assert "deployed" not in deployment.invoke("analytics", {})

        subject = (
            deployment.app / "layers/campaign_jobs/python/campaign_jobs/email/templates/welcome/subject.txt"
        )
        subject.write_text(CHANGED_SUBJECT, encoding="utf-8")
        handler = deployment.app / "functions/analytics/handler.py"
        code = handler.read_text(encoding="utf-8").replace(
            "return as_json(report)", 'return as_json(report) | {"deployed": "again"}'
        )
        handler.write_text(code, encoding="utf-8")
        deployment.deploy()
        assert deployment.invoke("analytics", {})["deployed"] == "again"
        story.a_new_version_of_the_package_sends_the_next_mail()
        # By now a minute has passed, and the rule has started the relay.
        story.the_schedule_publishes_what_waits_in_the_outbox()
        assert set(Counter(story.sent()).values()) == {1}

    deployment.destroy()
    after = deployment.holdings()
    # The CDK's own function has no log group in the template: AWS keeps the one that Lambda creates for it, too.
    by_the_cdk = f"/aws/lambda/{STACK}-CustomVpcRestrictDefaultSG"
    left = {kind: {name for name in held if by_the_cdk not in name} for kind, held in after.items()}
    assert left == before


class Story:
    """What services do to a deployed stack, and what they see of it."""

    def __init__(self, deployment: Deployment, campaign: MailCampaign, producer: JobProducer) -> None:
        self.deployment = deployment
        self.campaign = campaign
        self.producer = producer
        self.users: dict[str, uuid.UUID] = {}
        for name in ("first", "second", "referrer", "friend", "newcomer", "rewarded", "later"):
            verified = name != "newcomer"
            self.users[name] = campaign.add_user(
                email=f"{name}@example.org",
                verified_at=datetime.now(UTC) if verified else None,
                status="verified" if verified else "pending",
            )
        self.emailed_reward = campaign.earn(campaign.add_reward("email"), self.users["rewarded"])

    def sent(self) -> list[tuple[str, str]]:
        """Receiver and subject of each mail."""
        return [(to, mail["Subject"]) for mail in self.deployment.mails() for to in mail["To"]]

    def every_type_of_event_does_its_work(self, receiver: WebhookReceiver) -> None:
        campaign, users, connection = self.campaign, self.users, self.campaign.connection
        connection.execute(
            "INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, status, verified_at)"
            " VALUES (%s, %s, %s, %s, 'verified', now())",
            (uuid.uuid4(), campaign.id, users["referrer"], users["friend"]),
        )
        endpoint = campaign.add_endpoint(receiver.urls["flaky"])
        connection.execute(
            "UPDATE campaign_jobs.webhook_endpoints SET secret = %s WHERE id = %s",
            (endpoint_secret("flaky"), endpoint),
        )
        sent_reward = campaign.earn(campaign.add_reward("webhook", endpoint), users["first"])
        told_reward = campaign.earn(campaign.add_reward("email"), users["second"])

        self.producer.enqueue_many(
            [
                PositionRecalcJobPayload(campaign_id=campaign.id, points_per_referral=10),
                RewardDeliveryJobPayload(user_reward_id=sent_reward),
                RewardDeliveryJobPayload(user_reward_id=self.emailed_reward),
                self.mail("verification", "newcomer"),
                self.mail("welcome", "first"),
                self.mail("milestone", "referrer", milestone=1),
                self.mail("reward_earned", "second", user_reward_id=told_reward),
            ]
        )

        def mails_are_sent() -> bool:
            return {to for to, _ in self.sent()} >= {
                f"{name}@example.org" for name in ("newcomer", "first", "referrer", "second")
            }

        def positions_are_written() -> list[tuple[Any, ...]]:
            return connection.execute(
                "SELECT user_id FROM campaign_jobs.user_positions WHERE campaign_id = %s ORDER BY position",
                (campaign.id,),
            ).fetchall()

        def the_webhook_is_delivered_at_its_second_try() -> bool:
            answers = [(received.status, received.is_signed) for received in receiver.received]
            row = connection.execute(
                "SELECT status, attempts FROM campaign_jobs.user_rewards WHERE id = %s", (sent_reward,)
            ).fetchone()
            return answers == [(500, True), (200, True)] and row == ("delivered", 2)

        eventually(mails_are_sent)
        assert eventually(positions_are_written)[:3] == [
            (users[name],) for name in ("referrer", "first", "second")
        ]
        eventually(the_webhook_is_delivered_at_its_second_try)
        self.producer.enqueue_email_job(self.mail("position_update", "referrer"))

    def an_operator_finds_and_switches_what_is_there(self) -> None:
        """By the command line, which knows the environment's name and nothing else."""
        found = {finding["part"]: finding for finding in self.said("doctor")}
        assert found["schema"]["health"] == found["Kafka"]["health"] == "fine", found
        assert found["mappings of email"]["found"] == "all 4 enabled"
        assert {lane["lane"]: lane["mappings"] for lane in self.said("lag")}["reward"] == "Enabled"
        explained = self.said("explain", str(self.users["referrer"]))["people"][0]
        assert explained["position"]["position"] == 1
        for switch, state in (("pause", "Disabled"), ("resume", "Enabled")):
            self.said(switch, "position", "--yes")
            mappings = self.deployment.account.client("lambda").list_event_source_mappings(
                FunctionName=f"{STACK}-position:position"
            )["EventSourceMappings"]
            assert {mapping["State"] for mapping in mappings} == {state}

    def said(self, *words: str) -> Any:
        """What a command says in JSON. A doctor's red line is no failure here."""
        done = self.deployment.operate(*words, "--output", "json")
        assert done.returncode == 0 or words == ("doctor",), done.stdout + done.stderr
        return json.loads(done.stdout)

    def what_cannot_be_read_becomes_a_dead_letter(self) -> None:
        foreign = Producer({"bootstrap.servers": self.deployment.brokers(), "log_level": 0})
        for event in (
            {"id": "nobody", "type": "job.email.welcome", "data": {"campaign_id": str(self.campaign.id)}},
            {"id": "unheard-of", "type": "job.unheard.of", "data": {}},
        ):
            foreign.produce(DEFAULT_TOPIC, json.dumps(event))
        assert foreign.flush(30) == 0

        def dead_letter_of_email() -> list[dict[str, Any]]:
            return self.deployment.messages("email-dead-letters")

        def dead_letter_of_unroutable() -> list[dict[str, Any]]:
            return self.deployment.messages("unroutable-dead-letters")

        (dead,) = eventually(dead_letter_of_email)
        assert dead["dead_letter"]["job_type"] == "email" and "nobody" in dead["value"]
        (dead,) = eventually(dead_letter_of_unroutable)
        assert dead["dead_letter"]["job_type"] == "unroutable" and "unheard-of" in dead["value"]

    def an_unsubscribe_link_works(self) -> None:
        (mail,) = (mail for mail in self.deployment.mails() if mail["To"] == ["first@example.org"])
        (link,) = (
            line.removeprefix("Unsubscribe: ")
            for line in mail["BodyText"].splitlines()
            if line.startswith("Unsubscribe: ")
        )
        status, page = self.deployment.request(link)
        assert status == 200 and "<button" in page
        assert self._unsubscribed() == []
        assert self.deployment.request(link, b"List-Unsubscribe=One-Click")[0] == 200
        assert self._unsubscribed() == [(self.users["first"],)]

    def _unsubscribed(self) -> list[tuple[Any, ...]]:
        return self.campaign.connection.execute(
            "SELECT user_id FROM campaign_jobs.email_unsubscribes"
        ).fetchall()

    def what_ses_reports_is_recorded(self) -> None:
        def every_delivery_is_recorded() -> bool:
            rows = self.campaign.connection.execute(
                "SELECT delivery_status FROM campaign_jobs.email_messages WHERE status = 'accepted'"
            ).fetchall()
            return set(rows) == {("delivered",)}

        eventually(every_delivery_is_recorded)

    def a_new_version_of_the_package_sends_the_next_mail(self) -> None:
        self.producer.enqueue_email_job(self.mail("welcome", "later"))

        def the_changed_mail_is_sent() -> bool:
            return ("later@example.org", CHANGED_SUBJECT) in self.sent()

        eventually(the_changed_mail_is_sent)

    def the_schedule_publishes_what_waits_in_the_outbox(self) -> None:
        def the_reward_s_mail_is_sent() -> bool:
            return "rewarded@example.org" in {to for to, _ in self.sent()}

        eventually(the_reward_s_mail_is_sent)

    def mail(self, type_: Any, user: str, **more: Any) -> EmailJobPayload:
        return EmailJobPayload(type=type_, campaign_id=self.campaign.id, user_id=self.users[user], **more)
