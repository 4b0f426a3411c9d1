"""One handler of each kind below AWS's own runtime: the interface emulator that AWS publishes, and its Python client.

They find third-party code in the layer that a deployment builds, and nowhere else.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

import boto3
import pytest

from campaign_jobs.database.connection import Connection
from campaign_jobs.email.unsubscribing.keys import KeyRing
from campaign_jobs.email.unsubscribing.links import UnsubscribeLinks
from campaign_jobs.events import EmailJobPayload, as_value, new_event
from infra import build_dependencies
from local.aws import AwsStandIn, catalog_queues, prepare
from local.aws.feedback import events_of
from local.aws.mails import read_mails
from local.function_urls import request_event
from local.processes import HOST, ChildProcess, answers, pick_port
from local.servers import REGION
from tests.e2e.deployment import ARCHITECTURE
from tests.integration.email_campaign import UNSUBSCRIBE_KEY, UNSUBSCRIBE_SETTINGS, MailCampaign

INTERPRETER = os.environ.get("CAMPAIGN_JOBS_E2E_PYTHON")
pytestmark = [
    pytest.mark.skipif(INTERPRETER is None, reason="needs what `make e2e` installs"),
    pytest.mark.timeout(180),
]
INVOCATIONS = "/2015-03-31/functions/function/invocations"

Invoke = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def layers(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Where Lambda would unpack the two layers."""
    built = build_dependencies.build(tmp_path_factory.mktemp("layer"), ARCHITECTURE)
    third_party, ours = tmp_path_factory.mktemp("dependencies"), tmp_path_factory.mktemp("package")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(third_party)
    shutil.copytree(repository / "layers/campaign_jobs/python/campaign_jobs", ours / "python/campaign_jobs")
    return [ours / "python", third_party / "python"]


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsStandIn]:
    with AwsStandIn(tmp_path_factory.mktemp("aws") / "mail") as aws:
        yield aws


@pytest.fixture
def settings(aws: AwsStandIn, database_url: str) -> dict[str, str]:
    clients = [
        boto3.client(
            service,  # type: ignore[call-overload]
            endpoint_url=aws.endpoint_url,
            region_name=REGION,
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )
        for service in ("sesv2", "sqs")
    ]
    queues = prepare(*clients, ["hello@example.com"], catalog_queues())
    return {
        **queues,
        **UNSUBSCRIBE_SETTINGS,
        "DATABASE_URL": database_url,
        "DEFAULT_SENDER": "hello@example.com",
        "AWS_ENDPOINT_URL": aws.endpoint_url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
    }


@pytest.fixture
def running(
    repository: Path, layers: list[Path], settings: dict[str, str], tmp_path: Path
) -> Callable[..., Any]:
    assert INTERPRETER is not None
    interpreter = Path(INTERPRETER)
    (emulator,) = interpreter.parent.parent.glob(
        f"lib/python*/site-packages/samcli/local/rapid/aws-lambda-rie-{ARCHITECTURE}"
    )

    @contextmanager
    def running(function: str, *, alias: str = "") -> Iterator[Invoke]:
        ports = pick_port(), pick_port()
        environment = {
            **settings,
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "en_US.UTF-8",
            "PYTHONPATH": os.pathsep.join(map(str, layers)),
            "LAMBDA_TASK_ROOT": str(repository / "functions" / function),
            # The emulator ends the function's ARN in it, and knows no aliases.
            "AWS_LAMBDA_FUNCTION_NAME": f"{function}:{alias}" if alias else function,
            "AWS_LAMBDA_FUNCTION_TIMEOUT": "120",
        }
        process = ChildProcess(
            f"the runtime of {function}",
            [
                *("env", "-i", f"--chdir={repository / 'functions' / function}"),
                *(f"{name}={value}" for name, value in environment.items()),
                emulator,
                *("--runtime-interface-emulator-address", f"{HOST}:{ports[0]}"),
                *("--runtime-api-address", f"{HOST}:{ports[1]}"),
                *(interpreter, "-m", "awslambdaric", "handler.handler"),
            ],
            log_file=tmp_path / f"{function}.log",
        )
        with process:
            process.wait_until(lambda: answers(ports[0]), timeout_seconds=30)

            def invoke(event: dict[str, Any]) -> Any:
                request = urllib.request.Request(
                    f"http://{HOST}:{ports[0]}{INVOCATIONS}", data=json.dumps(event).encode()
                )
                with urllib.request.urlopen(request, timeout=120) as answer:
                    result = json.load(answer)
                # It answers 200 with the error, too.
                assert not (isinstance(result, dict) and "errorType" in result), process.log_file.read_text()
                return result

            yield invoke

    return running


def test_the_interpreter_itself_has_nothing_of_the_layer(repository: Path) -> None:
    code = "from importlib.metadata import distributions; print(*(each.name for each in distributions()))"
    done = subprocess.run([str(INTERPRETER), "-c", code], capture_output=True, text=True, check=True)
    installed = {name.lower().replace("_", "-") for name in done.stdout.split()}
    lock = (repository / "layers/dependencies/requirements.txt").read_text(encoding="utf-8")
    of_the_layer = set(re.findall(r"^([a-z0-9-]+)", lock, re.MULTILINE))
    assert "psycopg" in of_the_layer and "boto3" in installed
    # Which boto3 needs, so that Lambda's runtime has it too.
    assert of_the_layer & installed == {"jmespath"}


def test_an_event_job_sends_a_mail(
    running: Callable[..., Any], connection: Connection, aws: AwsStandIn
) -> None:
    campaign = MailCampaign(connection)
    user = campaign.add_user(email="event-job@example.org")
    event = new_event(EmailJobPayload(type="welcome", campaign_id=campaign.id, user_id=user))
    record = {
        "topic": "job-events",
        "partition": 0,
        "offset": 0,
        "timestamp": int(datetime.now(UTC).timestamp() * 1000),
        "timestampType": "CREATE_TIME",
        "key": None,
        "value": base64.b64encode(as_value(event)).decode(),
        "headers": [],
    }
    with running("email", alias="email") as invoke:
        counts = invoke({"eventSource": "aws:kafka", "records": {"job-events-0": [record]}})

    assert counts == {"processed": 1}
    assert ["event-job@example.org"] in [mail.to for mail in read_mails(aws.mail_directory)]


def test_a_scheduled_job_counts(
    running: Callable[..., Any], connection: Connection, repository: Path
) -> None:
    campaign = MailCampaign(connection)
    campaign.add_user(created_at=datetime(2026, 3, 1, 12, 30, tzinfo=UTC))
    event = json.loads((repository / "tests/events/scheduled.json").read_text(encoding="utf-8"))
    with running("analytics") as invoke:
        invoke(event)

    rows = connection.execute("SELECT bucket, new_signups FROM campaign_jobs.campaign_metrics").fetchall()
    assert rows == [(datetime(2026, 3, 1, 12, tzinfo=UTC), 1)]


def test_a_queue_s_function_records_a_delivery(running: Callable[..., Any], connection: Connection) -> None:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    row = connection.execute(
        "INSERT INTO campaign_jobs.email_messages"
        " (event_id, type, campaign_id, user_id, status, accepted_at, ses_message_id)"
        " VALUES ('event', 'welcome', %s, %s, 'accepted', now(), 'message') RETURNING tag",
        (campaign.id, user),
    ).fetchone()
    assert row is not None
    request = {
        "Destination": {"ToAddresses": ["person@example.org"]},
        "EmailTags": [{"Name": "message", "Value": row[0]}],
    }
    records = [
        {"messageId": str(number), "body": json.dumps(event)}
        for number, event in enumerate(events_of(request, "message", REGION))
    ]
    with running("feedback") as invoke:
        assert invoke({"Records": records}) == {"batchItemFailures": []}

    status = connection.execute("SELECT delivery_status FROM campaign_jobs.email_messages").fetchone()
    assert status == ("delivered",)


def test_a_function_url_s_function_unsubscribes(running: Callable[..., Any], connection: Connection) -> None:
    user = MailCampaign(connection).add_user()
    links = UnsubscribeLinks("https://mail.example.com", KeyRing(lambda: (UNSUBSCRIBE_KEY,)))
    target = links.url(user).removeprefix("https://mail.example.com")
    headers = Message()
    headers["Content-Type"] = "application/x-www-form-urlencoded"
    event = request_event("POST", target, headers, b"List-Unsubscribe=One-Click", source_ip=HOST)
    with running("unsubscribe") as invoke:
        assert invoke(event)["statusCode"] == 200

    rows = connection.execute("SELECT user_id FROM campaign_jobs.email_unsubscribes").fetchall()
    assert rows == [(user,)]
