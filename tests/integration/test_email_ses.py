"""The email job through boto3 and HTTP to what stands in for SES: what each of its answers means."""

import socket
import threading
from collections import Counter
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email import ses as ses_module
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.rendering import RenderedEmail
from campaign_jobs.email.ses import Accepted, Failed, Mail, Refused, SesSender, Throttled, Unknown, Unreached
from campaign_jobs.email.tags import message_tag
from campaign_jobs.errors import CampaignJobsError, RateUnknown, SendingStopped
from campaign_jobs.worker.outcomes import Done, Outcome, Rejected, Retry
from local.aws import AccountSettings, Answer, AwsStandIn, ScriptLine
from local.aws.mails import Mail as KeptMail
from local.aws.mails import read_mails
from tests.conftest import SENDER_DOMAIN
from tests.integration.email_campaign import DEFAULT_SENDER, UNSUBSCRIBE_LINKS, MailCampaign
from tests.integration.reward_campaign import deadline


class Context:
    aws_request_id = "8f0c…"
    invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:campaign-jobs-test-email:email"

    def get_remaining_time_in_millis(self) -> int:
        return 100_000


@pytest.fixture
def campaign(connection: Connection) -> MailCampaign:
    return MailCampaign(connection)


@pytest.fixture
def job(database: Database, aws: AwsStandIn) -> EmailJob:
    sender = SesSender(pool_size=5, configuration_set=None)
    return EmailJob(
        database, sender, pool_size=5, default_sender=DEFAULT_SENDER, unsubscribe_links=UNSUBSCRIBE_LINKS
    )


@pytest.fixture
def _quickly_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ses_module, "READ_SECONDS", 1)


def kept(aws: AwsStandIn, campaign: MailCampaign) -> list[KeptMail]:
    return [mail for mail in read_mails(aws.mail_directory) if mail.tags.get("campaign") == str(campaign.id)]


def script(campaign: MailCampaign, user: Any, answer: Answer, **details: Any) -> ScriptLine:
    return ScriptLine(f"^{campaign.address(user)}$", answer, **details)


def process(job: EmailJob, *deliveries: Any) -> list[Outcome]:
    return list(job.process(deliveries, deadline(100)))


def test_a_mail_arrives_as_it_was_written(job: EmailJob, campaign: MailCampaign, aws: AwsStandIn) -> None:
    campaign.set(name='Größe "9", Ltd.', from_name="Müller & Söhne", reply_to="help@example.org")
    campaign.add_template(
        subject="Grüße 🎉", html="<p>Hallo {{ user_first_name }}</p>", text="Hallo {{ user_first_name }}"
    )
    delivery = campaign.asks("welcome", campaign.add_user(first_name="<Jörg>"))
    assert process(job, delivery) == [Done()]
    (mail,) = kept(aws, campaign)
    assert mail.sender == f"=?utf-8?b?TcO8bGxlciAmIFPDtmhuZQ==?= <{DEFAULT_SENDER}>"
    assert mail.to == [campaign.address(delivery.event.data.user_id)]
    assert mail.reply_to == ["help@example.org"]
    assert mail.subject == "Grüße 🎉"
    assert mail.tags == {
        "type": "welcome",
        "campaign": str(campaign.id),
        "message": message_tag(delivery.event.id),
    }
    assert mail.html_file is not None
    assert "<p>Hallo &lt;Jörg&gt;</p>" in (aws.mail_directory / mail.html_file).read_text(
        encoding="utf-8-sig"
    )
    assert "Hallo <Jörg>" in (aws.mail_directory / mail.text_file).read_text(encoding="utf-8-sig")
    assert campaign.mail(delivery, "ses_message_id") == (mail.message_id,)


def test_the_answers_of_ses_side_by_side(job: EmailJob, campaign: MailCampaign, aws: AwsStandIn) -> None:
    users = [campaign.add_user() for _ in range(12)]
    deliveries = [campaign.asks("verification", user) for user in users]
    aws.play(
        [script(campaign, users[3], Answer.THROTTLE, times=1), script(campaign, users[7], Answer.REJECT)]
    )
    outcomes = process(job, *deliveries)
    assert outcomes[7] == Rejected("SES refused the mail: MessageRejected")
    assert outcomes.count(Done()) == 11
    # The SDK has sent nothing a second time of its own.
    assert Counter(mail.to[0] for mail in kept(aws, campaign)) == {
        campaign.address(user): 1 for user in users if user != users[7]
    }


def test_a_paused_account_stops_the_batch_and_then_everything_goes_once(
    job: EmailJob, campaign: MailCampaign, aws: AwsStandIn
) -> None:
    users = [campaign.add_user() for _ in range(12)]
    deliveries = [campaign.asks("verification", user) for user in users]
    aws.play([script(campaign, users[6], Answer.PAUSED)])
    with pytest.raises(SendingStopped, match="SendingPausedException"):
        process(job, *deliveries)
    assert campaign.statuses() == {"accepted": 9, "released": 3}
    aws.play([])
    assert process(job, *deliveries) == [Done()] * 12
    assert len(kept(aws, campaign)) == 12


def test_an_account_that_may_not_send_is_asked_nothing_more(
    job: EmailJob, campaign: MailCampaign, aws: AwsStandIn
) -> None:
    delivery = campaign.asks("verification", campaign.add_user())
    for account, reason in (
        (AccountSettings(sending_enabled=False), "sending is not enabled"),
        (AccountSettings(max_send_rate=0), "its MaxSendRate is 0"),
    ):
        aws.set_account(account)
        with pytest.raises(SendingStopped, match=reason):
            process(job, delivery)
    assert campaign.statuses() == {}
    aws.set_account(AccountSettings())
    assert process(job, delivery) == [Done()]
    assert len(kept(aws, campaign)) == 1


def test_mail_above_the_enforced_rate_waits_and_all_of_it_goes(
    database: Database, campaign: MailCampaign, aws: AwsStandIn
) -> None:
    """Somebody else uses the same account, so that SES throttles although we keep to our share."""
    aws.set_account(AccountSettings(max_send_rate=4, enforce_rate=True))
    # All are sent at once, and the rate would need seconds for them, however slow the machine.
    sender = SesSender(pool_size=16, configuration_set=None)
    job = EmailJob(
        database,
        sender,
        pool_size=16,
        default_sender=DEFAULT_SENDER,
        unsubscribe_links=UNSUBSCRIBE_LINKS,
    )
    deliveries = [campaign.asks("verification", campaign.add_user()) for _ in range(16)]
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.send_tokens (name, rate, looked_up_at) VALUES ('ses', 500, now())"
    )
    before = sum(second.throttled for second in aws.seconds())
    assert process(job, *deliveries) == [Done()] * 16
    assert sum(second.throttled for second in aws.seconds()) > before
    assert Counter(mail.to[0] for mail in kept(aws, campaign)) == {
        campaign.address(delivery.event.data.user_id): 1 for delivery in deliveries
    }


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    ("account", "error"),
    [
        ({"SendingEnabled": True, "EnforcementStatus": "SHUTDOWN"}, SendingStopped),
        ({"SendingEnabled": True, "EnforcementStatus": "HEALTHY"}, SendingStopped),
        (None, RateUnknown),
    ],
)
def test_what_get_account_may_answer_else(
    account: dict[str, Any] | None, error: type[CampaignJobsError]
) -> None:
    sender = SesSender(pool_size=1, configuration_set=None)
    with Stubber(sender._client) as stubber:
        if account is None:
            stubber.add_client_error("get_account", "TooManyRequestsException", "…", 429)
        else:
            stubber.add_response("get_account", account)
        with pytest.raises(error):
            sender.max_send_rate()


@pytest.mark.usefixtures("_quickly_impatient")
def test_an_answer_that_comes_too_late_is_as_a_crash(
    job: EmailJob, campaign: MailCampaign, aws: AwsStandIn
) -> None:
    slow, quick = (
        campaign.asks("welcome", user := campaign.add_user()),
        campaign.asks("welcome", campaign.add_user()),
    )
    aws.play([script(campaign, user, Answer.TIMEOUT, times=1, seconds=3)])
    outcomes = process(job, slow, quick)
    assert outcomes[1] == Done()
    assert isinstance(outcomes[0], Retry)
    assert outcomes[0].reason == "no answer from SES: ReadTimeoutError"
    assert campaign.mail(slow, "status") == ("claimed",)
    assert len(kept(aws, campaign)) == 2, "SES had taken it, and the SDK must not have repeated it"
    campaign.let_claims_expire()
    assert process(job, slow) == [Done()]
    assert len(kept(aws, campaign)) == 3


def test_a_sender_address_that_ses_cannot_take_is_that_campaigns_trouble(
    job: EmailJob, campaign: MailCampaign, aws: AwsStandIn
) -> None:
    other = MailCampaign(campaign.connection)
    other.people = 100
    campaign.set(from_email="grüße@mail.example.com")
    wrong, fine = campaign.asks("welcome", campaign.add_user()), other.asks("welcome", other.add_user())
    assert process(job, wrong, fine) == [
        Rejected("the sender's address is not ASCII, which SES does not take"),
        Done(),
    ]
    campaign.set(from_email="hello@unknown.example.org")
    assert process(job, wrong) == [Rejected("SES refused the mail: MessageRejected")]
    assert len(kept(aws, other)) == 1


def test_mails_that_can_be_unsubscribed_from_say_how_and_no_others_do(
    job: EmailJob, campaign: MailCampaign, aws: AwsStandIn
) -> None:
    """RFC 8058, section 3.1, as SES receives it; and the link that a person sees, in both parts."""
    user = campaign.add_user()
    campaign.rank(user, 1)
    campaign.change_user(user, original_position=500)
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    deliveries = [
        campaign.asks("verification", user),
        campaign.asks("reward_earned", user, user_reward_id=str(user_reward)),
        campaign.asks("welcome", user),
        campaign.asks("position_update", user),
        campaign.asks("milestone", user, milestone=5),
    ]
    assert process(job, *deliveries) == [Done()] * 5
    url = UNSUBSCRIBE_LINKS.url(user)
    headers = {"List-Unsubscribe": f"<{url}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
    mails = {mail.tags["type"]: mail for mail in kept(aws, campaign)}
    for type_, mail in mails.items():
        wanted = type_ in ("welcome", "position_update", "milestone")
        assert mail.headers == (headers if wanted else {})
        assert mail.html_file is not None
        html = (aws.mail_directory / mail.html_file).read_text(encoding="utf-8-sig")
        assert (f'<a href="{url}"' in html) is wanted
        text = (aws.mail_directory / mail.text_file).read_text(encoding="utf-8-sig")
        assert (f"Unsubscribe: {url}" in text.split("\n\n", 1)[1]) is wanted
    assert len(mails) == 5


# The answers that the stand-in does not give.


def mail(*, foreign_sender: bool = False) -> Mail:
    return Mail(
        sender_name=None,
        sender=DEFAULT_SENDER,
        foreign_sender=foreign_sender,
        reply_to=None,
        recipient="person@example.org",
        content=RenderedEmail("Hello", "<p>Hello</p>", "Hello"),
        tags={"type": "welcome"},
        headers={},
    )


def answered(code: str, status: int, *, foreign_sender: bool = False, message: str = "…") -> Any:
    sender = SesSender(pool_size=1, configuration_set="campaign-jobs")
    with Stubber(sender._client) as stubber:
        stubber.add_client_error("send_email", code, message, status)
        return sender.send(mail(foreign_sender=foreign_sender))


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    ("code", "status", "meaning"),
    [
        ("TooManyRequestsException", 429, Throttled()),
        ("LimitExceededException", 400, Throttled()),
        ("BadRequestException", 400, Refused("SES refused the mail: BadRequestException")),
        ("SomethingNew", 400, Refused("SES refused the mail: SomethingNew")),
        ("", 413, Refused("SES refused the mail: 413")),
        ("InternalFailure", 500, Failed("SES failed: InternalFailure")),
        ("ServiceUnavailable", 503, Failed("SES failed: ServiceUnavailable")),
    ],
)
def test_what_an_error_of_ses_means_for_the_job(code: str, status: int, meaning: Any) -> None:
    assert answered(code, status) == meaning


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    "code",
    [
        "SendingPausedException",
        "AccountSuspendedException",
        "MailFromDomainNotVerifiedException",
        "AccessDeniedException",
        "ExpiredTokenException",
        "NotFoundException",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "OptInRequired",
        "RequestExpired",
    ],
)
def test_the_accounts_troubles_stop_everything_and_a_campaigns_own_domain_only_its_mail(code: str) -> None:
    with pytest.raises(SendingStopped, match=code):
        answered(code, 400)
    if code in ("MailFromDomainNotVerifiedException", "AccessDeniedException"):
        refused = Refused(f"SES does not let us send from the campaign's from_email: {code}")
        assert answered(code, 403, foreign_sender=True) == refused
    else:
        with pytest.raises(SendingStopped, match=code):
            answered(code, 400, foreign_sender=True)


NOT_VERIFIED = (
    "Email address is not verified. The following identities failed the check in region EU-CENTRAL-1: "
)


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    "identities",
    [
        DEFAULT_SENDER,
        f"=?utf-8?b?TcO8bGxlcg==?= <{DEFAULT_SENDER.upper()}>",
        f"person@example.org, Launch <{DEFAULT_SENDER}>, {DEFAULT_SENDER}",
        f"{DEFAULT_SENDER}...",
        SENDER_DOMAIN,
    ],
)
def test_a_sender_of_ours_that_is_not_verified_stops_everything(identities: str) -> None:
    with pytest.raises(SendingStopped, match="our sender is not verified"):
        answered("MessageRejected", 400, message=NOT_VERIFIED + identities)
    # A campaign's own is its own trouble.
    refused = Refused("SES refused the mail: MessageRejected")
    assert answered("MessageRejected", 400, message=NOT_VERIFIED + identities, foreign_sender=True) == refused


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    "message",
    [
        # In the sandbox.
        NOT_VERIFIED + "person@example.org",
        NOT_VERIFIED + f"not-{DEFAULT_SENDER}, {DEFAULT_SENDER}.example.org",
        "Message contains a virus.",
    ],
)
def test_a_mail_that_is_rejected_for_itself_stops_nothing(message: str) -> None:
    assert answered("MessageRejected", 400, message=message) == Refused(
        "SES refused the mail: MessageRejected"
    )


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("status", [401, 403])
def test_who_is_not_let_in_for_a_reason_of_tomorrow_stops_everything_but_a_campaigns_own_sender(
    status: int,
) -> None:
    with pytest.raises(SendingStopped, match="SomethingNew"):
        answered("SomethingNew", status)
    refused = Refused("SES does not let us send from the campaign's from_email: SomethingNew")
    assert answered("SomethingNew", status, foreign_sender=True) == refused


def test_a_domain_that_is_no_longer_verified_stops_the_batch_and_then_everything_goes_once(
    job: EmailJob, campaign: MailCampaign, aws: AwsStandIn
) -> None:
    deliveries = [campaign.asks("verification", campaign.add_user()) for _ in range(7)]
    client = boto3.client("sesv2")
    client.delete_email_identity(EmailIdentity=SENDER_DOMAIN)
    try:
        with pytest.raises(SendingStopped, match="our sender is not verified"):
            process(job, *deliveries)
    finally:
        client.create_email_identity(EmailIdentity=SENDER_DOMAIN)
    assert campaign.statuses() == {"released": 7}
    assert process(job, *deliveries) == [Done()] * 7
    assert len(kept(aws, campaign)) == 7


def test_where_nobody_listens_nothing_was_sent(aws: AwsStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    sender = SesSender(pool_size=1, configuration_set=None)
    assert sender.send(mail()) == Unreached("SES was not reached: EndpointConnectionError")


def test_a_connection_that_breaks_on_the_way_leaves_it_open_whether_it_was_sent(
    aws: AwsStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        requests: list[bytes] = []

        def hang_up() -> None:
            connection, _ = server.accept()
            requests.append(connection.recv(65536))
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        answer = SesSender(pool_size=1, configuration_set=None).send(mail())
        thread.join()
    assert answer == Unknown("no answer from SES: ConnectionClosedError")
    assert len(requests) == 1


def test_without_credentials_the_queue_waits(aws: AwsStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(SendingStopped, match="NoCredentialsError"):
        SesSender(pool_size=1, configuration_set=None).send(mail())


@pytest.mark.usefixtures("aws")
def test_a_pool_of_threads_builds_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    client, together = boto3.client, threading.Barrier(8)

    def counted(*arguments: Any, **named: Any) -> Any:
        built.append(client(*arguments, **named))
        return built[-1]

    monkeypatch.setattr(boto3, "client", counted)
    sender = SesSender(pool_size=8, configuration_set=None)
    answers: list[Any] = []

    def send() -> None:
        together.wait(20)
        answers.append(sender.send(mail()))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert all(isinstance(answer, Accepted) for answer in answers)
