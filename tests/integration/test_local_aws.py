"""The SES and SQS stand-in, through the boto3 clients that the functions use."""

import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import moto.sqs.models
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ReadTimeoutError
from werkzeug.test import EnvironBuilder, run_wsgi_app

from campaign_jobs.catalog import EVENT_JOB_TYPES, QUEUE_JOB_TYPES
from local.aws import AccountError, AccountSettings, Answer, AwsStandIn, ScriptError, ScriptLine, prepare
from local.aws.account import read_settings
from local.aws.mails import Mail, MailDirectory, read_mails
from local.aws.queues import OneAtATime
from local.aws.script import read_script
from local.aws.wsgi import Environ, StartResponse

if TYPE_CHECKING:
    from mypy_boto3_sesv2 import SESV2Client
    from mypy_boto3_sqs import SQSClient

SENDER = "Launch <hello@mail.example.com>"


def client(stand_in: AwsStandIn, service: str, **config: Any) -> Any:
    return boto3.client(
        service,  # type: ignore[call-overload]
        endpoint_url=stand_in.endpoint_url,
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, max_pool_connections=20, **config),
    )


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsStandIn]:
    with AwsStandIn(tmp_path_factory.mktemp("aws") / "mails") as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def ses(stand_in: AwsStandIn) -> "SESV2Client":
    ses: SESV2Client = client(stand_in, "sesv2")
    prepare(ses, client(stand_in, "sqs"), ["mail.example.com"], [])
    return ses


@pytest.fixture(scope="module")
def sqs(stand_in: AwsStandIn) -> "SQSClient":
    sqs: SQSClient = client(stand_in, "sqs")
    return sqs


@pytest.fixture
def queue(sqs: "SQSClient") -> str:
    return sqs.create_queue(QueueName=f"test-{uuid.uuid4().hex}", Attributes={"VisibilityTimeout": "60"})[
        "QueueUrl"
    ]


def send(ses: "SESV2Client", to: str, sender: str = SENDER) -> str:
    return ses.send_email(
        FromEmailAddress=sender,
        ReplyToAddresses=["team@mail.example.com"],
        Destination={"ToAddresses": [to]},
        Content={
            "Simple": {
                "Subject": {"Data": "Willkommen, Jörg & <Söhne>", "Charset": "UTF-8"},
                "Body": {"Html": {"Data": "<p>Grüße 🎉</p>"}, "Text": {"Data": "Grüße 🎉\n"}},
                "Headers": [{"Name": "List-Unsubscribe-Post", "Value": "List-Unsubscribe=One-Click"}],
            }
        },
        EmailTags=[{"Name": "type", "Value": "welcome"}, {"Name": "event", "Value": "e-1"}],
    )["MessageId"]


def mails_to(stand_in: AwsStandIn, address: str) -> list[Mail]:
    return [mail for mail in read_mails(stand_in.mail_directory) if mail.to == [address]]


def test_an_accepted_mail_is_a_file_to_open(stand_in: AwsStandIn, ses: "SESV2Client") -> None:
    message_id = send(ses, "jo.erg+1@example.org")
    [mail] = mails_to(stand_in, "jo.erg+1@example.org")
    assert mail.message_id == message_id
    assert mail.sender == SENDER
    assert mail.reply_to == ["team@mail.example.com"]
    assert mail.subject == "Willkommen, Jörg & <Söhne>"
    assert mail.tags == {"type": "welcome", "event": "e-1"}
    assert mail.headers == {"List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
    assert mail.html_file == f"{mail.number:04d}-welcome-jo.erg+1@example.org.html"
    assert (stand_in.mail_directory / mail.html_file).read_text("utf-8-sig") == "<p>Grüße 🎉</p>"
    text = (stand_in.mail_directory / mail.text_file).read_text("utf-8-sig")
    head, body = text.split("\n\n", 1)
    assert body == "Grüße 🎉\n"
    assert "To: jo.erg+1@example.org" in head
    assert "List-Unsubscribe-Post: List-Unsubscribe=One-Click" in head
    assert f"Message-ID: {message_id}" in head


def test_a_sender_nobody_verified_is_rejected_and_no_mail_is_kept(
    stand_in: AwsStandIn, ses: "SESV2Client"
) -> None:
    with pytest.raises(ClientError) as failure:
        send(ses, "unverified@example.org", sender="hello@other.example.com")
    assert failure.value.response["Error"]["Code"] == "MessageRejected"
    assert mails_to(stand_in, "unverified@example.org") == []


@pytest.mark.parametrize(
    ("answer", "code", "status"),
    [
        (Answer.THROTTLE, "TooManyRequestsException", 429),
        (Answer.PAUSED, "SendingPausedException", 400),
        (Answer.REJECT, "MessageRejected", 400),
    ],
)
def test_a_script_makes_ses_refuse_as_often_as_it_says(
    stand_in: AwsStandIn, ses: "SESV2Client", answer: Answer, code: str, status: int
) -> None:
    address = f"{answer}@scripted.example.org"
    stand_in.play([ScriptLine(match=rf"^{answer}@scripted\.", answer=answer, times=2)])
    for _ in range(2):
        with pytest.raises(ClientError) as failure:
            send(ses, address)
        assert failure.value.response["Error"]["Code"] == code
        assert failure.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
        assert type(failure.value).__name__ == code, "botocore knows it as an error of this operation"
        send(ses, "somebody.else@example.org")
    assert mails_to(stand_in, address) == []
    send(ses, address)
    assert len(mails_to(stand_in, address)) == 1


def test_an_answer_can_be_lost_after_the_mail_was_accepted(stand_in: AwsStandIn, ses: "SESV2Client") -> None:
    stand_in.play([ScriptLine(match="late@", answer=Answer.TIMEOUT, seconds=600)])
    with pytest.raises(ReadTimeoutError):
        send(client(stand_in, "sesv2", read_timeout=0.5), "late@example.org")
    assert len(mails_to(stand_in, "late@example.org")) == 1
    stand_in.play([])


def test_the_account_tells_its_rate_and_whether_it_sends(stand_in: AwsStandIn, ses: "SESV2Client") -> None:
    assert ses.get_account()["SendQuota"]["MaxSendRate"] == 500
    stand_in.set_account(AccountSettings(max_send_rate=14, sending_enabled=False))
    account = ses.get_account()
    assert (account["SendQuota"]["MaxSendRate"], account["SendingEnabled"]) == (14, False)
    with pytest.raises(ClientError, match="SendingPausedException"):
        send(ses, "paused.account@example.org")
    stand_in.set_account(AccountSettings())
    send(ses, "paused.account@example.org")
    assert len(mails_to(stand_in, "paused.account@example.org")) == 1


def test_the_rate_is_enforced_when_told_to_and_each_second_counted(
    stand_in: AwsStandIn, ses: "SESV2Client"
) -> None:
    before = stand_in.seconds()
    # So slow that no token comes back while the test runs.
    stand_in.set_account(AccountSettings(max_send_rate=0.001, enforce_rate=True))
    send(ses, "first@rate.example.org")
    with pytest.raises(ClientError, match="TooManyRequestsException"):
        send(ses, "second@rate.example.org")
    stand_in.set_account(AccountSettings(max_send_rate=0.001))
    send(ses, "third@rate.example.org")
    after = stand_in.seconds()
    stand_in.set_account(AccountSettings())
    assert sum(second.accepted for second in after) - sum(second.accepted for second in before) == 2
    assert sum(second.throttled for second in after) - sum(second.throttled for second in before) == 1


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"rate": 1}', '{"max_send_rate": "1"}', '{"max_send_rate": -1}', '{"sending_enabled": 1}'],
)
def test_a_wrong_account_is_refused(text: str) -> None:
    with pytest.raises(AccountError):
        read_settings(text)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("{", "not JSON"),
        ("{}", "not a JSON list"),
        ("[1]", "line 1 is not an object"),
        ('[{"match": "(", "answer": "reject"}]', r"line 1: match '\(' is not a regular expression"),
        (
            '[{"match": "a", "answer": "explode"}]',
            "line 1: answer 'explode' is not one of throttle, paused, reject, timeout, bounce, complaint",
        ),
        ('[{"match": "a", "answer": "reject", "times": 0}]', "line 1: times 0 is not a whole number"),
        ('[{"match": "a", "answer": "timeout", "seconds": "1"}]', "line 1: seconds '1' is not a number"),
        ('[{"match": "a", "answer": "reject"}, {"anwser": "reject"}]', "line 2: unknown anwser"),
    ],
)
def test_a_wrong_script_is_an_error_that_names_the_line(script: str, complaint: str) -> None:
    with pytest.raises(ScriptError, match=complaint):
        read_script(script)


def test_a_wrong_script_for_a_running_stand_in_is_an_error_too(stand_in: AwsStandIn) -> None:
    with pytest.raises(ScriptError, match="regular expression"):
        stand_in.play([ScriptLine(match="(", answer=Answer.REJECT)])


def test_the_index_escapes_what_it_lists_and_numbers_go_on(tmp_path: Path) -> None:
    def request(to: str) -> dict[str, Any]:
        simple = {"Subject": {"Data": "<script>alert(1)</script>"}, "Body": {"Text": {"Data": "hello"}}}
        return {"Content": {"Simple": simple}, "Destination": {"ToAddresses": [to]}}

    first = MailDirectory(tmp_path)
    assert (
        first.add(request("../../etc/passwd"), "m-1").text_file == "0001-script-alert-1-script-etc-passwd.txt"
    )
    first.close()
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>" not in page

    second = MailDirectory(tmp_path)
    assert second.add(request("b@example.org"), "m-2").number == 2
    second.close()
    assert "2 mails" in (tmp_path / "index.html").read_text("utf-8")
    assert [mail.message_id for mail in read_mails(tmp_path)] == ["m-1", "m-2"]


def test_mails_that_came_together_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    mails = MailDirectory(tmp_path)
    for number in (1, 2, 3):
        simple = {"Subject": {"Data": f"number {number}"}, "Body": {"Text": {"Data": "hello"}}}
        destination = {"ToAddresses": ["a@example.org"]}
        mails.add({"Content": {"Simple": simple}, "Destination": destination}, f"m-{number}")
    mails.close()
    journal = tmp_path / "mails.jsonl"
    first, second, third = journal.read_text("utf-8").splitlines(keepends=True)
    # The second was faster than the first.
    journal.write_text(second + first + third, "utf-8")
    assert [mail.number for mail in read_mails(tmp_path)] == [1, 2, 3]


def test_every_queue_of_the_catalog_is_there_under_its_setting(ses: "SESV2Client", sqs: "SQSClient") -> None:
    urls = prepare(ses, sqs, ["mail.example.com"])
    assert prepare(ses, sqs, ["mail.example.com"]) == urls
    expected = {lane.retry_queue_setting for job_type in EVENT_JOB_TYPES for lane in job_type.lanes}
    expected |= {job_type.dead_letter_queue_setting for job_type in (*EVENT_JOB_TYPES, *QUEUE_JOB_TYPES)}
    expected |= {job_type.queue_setting for job_type in QUEUE_JOB_TYPES}
    assert urls.keys() == expected
    assert len(set(urls.values())) == len(urls)
    attributes = sqs.get_queue_attributes(
        QueueUrl=urls["RETRY_QUEUE_URL_EMAIL_BULK"], AttributeNames=["All"]
    )["Attributes"]
    assert attributes["MessageRetentionPeriod"] == "1209600"
    assert attributes["MaximumMessageSize"] == "1048576"
    assert attributes["VisibilityTimeout"] == "130"


def counts(sqs: "SQSClient", queue: str) -> tuple[int, int, int]:
    """Visible, hidden and delayed messages."""
    attributes = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
    names = ("", "NotVisible", "Delayed")
    visible, hidden, delayed = (int(attributes[f"ApproximateNumberOfMessages{name}"]) for name in names)  # type: ignore[literal-required]
    return visible, hidden, delayed


def test_delay_visibility_and_counts(sqs: "SQSClient", queue: str) -> None:
    sqs.send_message(QueueUrl=queue, MessageBody="later", DelaySeconds=1)
    sqs.send_message(QueueUrl=queue, MessageBody="much later", DelaySeconds=900)
    assert counts(sqs, queue) == (0, 0, 2)
    assert "Messages" not in sqs.receive_message(QueueUrl=queue)
    # A long poll gets the message when its delay is over.
    [message] = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=20, MessageSystemAttributeNames=["All"])[
        "Messages"
    ]
    assert message["Body"] == "later"
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"
    assert counts(sqs, queue) == (0, 1, 1)
    assert "Messages" not in sqs.receive_message(QueueUrl=queue), "it is hidden"
    sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0)
    [message] = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=20, MessageSystemAttributeNames=["All"])[
        "Messages"
    ]
    assert message["Attributes"]["ApproximateReceiveCount"] == "2"
    sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    assert counts(sqs, queue) == (0, 0, 1)
    with pytest.raises(ClientError, match="DelaySeconds must be"):
        sqs.send_message(QueueUrl=queue, MessageBody="x", DelaySeconds=901)


def test_a_message_takes_a_mebibyte_and_no_more(sqs: "SQSClient", queue: str) -> None:
    body = "x" * 1_048_576
    sqs.send_message(QueueUrl=queue, MessageBody=body)
    [message] = sqs.receive_message(QueueUrl=queue)["Messages"]
    assert message["Body"] == body
    with pytest.raises(ClientError, match="Message must be shorter"):
        sqs.send_message(QueueUrl=queue, MessageBody=body + "x")
    halves = [{"Id": str(number), "MessageBody": "x" * 524_289} for number in range(2)]
    with pytest.raises(ClientError) as failure:
        sqs.send_message_batch(QueueUrl=queue, Entries=halves)  # type: ignore[arg-type]
    assert failure.value.response["Error"]["Code"].endswith("BatchRequestTooLong")


class Queues:
    """What OneAtATime stands before: it notices requests that overlap, which moto's queues do not survive."""

    def __init__(self) -> None:
        self.inside = 0
        self.overlapped = False
        self.filled = False

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self.inside += 1
        self.overlapped |= self.inside > 1
        time.sleep(0.02)
        answer = b"{}"
        if environ["HTTP_X_AMZ_TARGET"] == "AmazonSQS.SendMessage":
            self.filled = True
        elif self.filled:
            answer = b'{"Messages": []}'
        self.inside -= 1
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]


def test_queue_requests_take_turns_and_a_long_poll_waits_outside_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moto.sqs.models.Queue", moto.sqs.models.Queue)  # restored, as OneAtATime replaces it
    queues = Queues()
    application = OneAtATime(queues)

    def ask(action: str, content: dict[str, Any]) -> bytes:
        builder = EnvironBuilder(method="POST", json=content, headers={"X-Amz-Target": f"AmazonSQS.{action}"})
        answer, _, _ = run_wsgi_app(application, builder.get_environ())
        return b"".join(answer)

    with ThreadPoolExecutor(8) as pool:
        polls = [pool.submit(ask, "ReceiveMessage", {"WaitTimeSeconds": 60}) for _ in range(4)]
        looks = [pool.submit(ask, "ReceiveMessage", {}) for _ in range(3)]
        assert [look.result() for look in looks] == [b"{}"] * 3
        assert not any(poll.done() for poll in polls)
        assert ask("SendMessage", {}) == b"{}"
        assert [poll.result() for poll in polls] == [b'{"Messages": []}'] * 4
    assert not queues.overlapped


def test_it_comes_back_on_the_same_port(tmp_path: Path) -> None:
    with AwsStandIn(tmp_path / "mails") as stand_in:
        address = stand_in.endpoint_url
        stand_in.kill()
        assert not stand_in.running
        stand_in.start()
        assert stand_in.endpoint_url == address
        assert client(stand_in, "sqs").list_queues()["ResponseMetadata"]["HTTPStatusCode"] == 200
