"""The page on adding a job type, done: in a copy of the repository, with the blocks that it shows."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest

from local.aws import AwsStandIn

PAGE = Path("docs/adding-a-job-type.md")
BLOCK = re.compile(
    r"<!-- (?P<file>\S+), (?P<how>new|(before|instead of): ?(?P<anchor>.+?)) -->\n```python\n(?P<code>.*?)```",
    re.DOTALL,
)
COPIED = ("app.py", "cdk.json", "package.json", "functions", "infra", "layers", "local")
EVENT = {"id": "first", "type": "job.digest.compile", "timestamp": "2026-01-01T00:00:00Z"}


@pytest.fixture
def extended(repository: Path, tmp_path: Path) -> Path:
    """A copy of the repository to which the page's blocks have been added."""
    for name in COPIED:
        source = repository / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tmp_path / name)
    blocks = list(BLOCK.finditer((repository / PAGE).read_text()))
    assert len({block["file"] for block in blocks}) == 7
    for block in blocks:
        file = tmp_path / block["file"]
        if block["how"] == "new":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block["code"])
            continue
        anchor, text = block["anchor"].replace("¶", "\n"), file.read_text()
        assert text.count(anchor) == 1, f"{block['file']} holds {anchor!r} {text.count(anchor)} times"
        kept = anchor if block["how"].startswith("before") else ""
        code = block["code"] if kept else block["code"].removesuffix("\n")
        file.write_text(text.replace(anchor, code + kept))
    return tmp_path


def environment(root: Path) -> dict[str, str]:
    path = os.pathsep.join([str(root / "layers/campaign_jobs/python"), str(root)])
    return {**os.environ, "PYTHONPATH": path}


def test_the_stack_has_all_of_it(extended: Path) -> None:
    context = {**json.loads((extended / "cdk.json").read_text())["context"], "env": "dev"}
    subprocess.run(
        [sys.executable, "app.py"],
        cwd=extended,
        env={
            **environment(extended),
            "CDK_OUTDIR": str(extended / "out"),
            "CDK_CONTEXT_JSON": json.dumps(context),
        },
        check=True,
    )
    resources = json.loads((extended / "out/campaign-jobs-dev.template.json").read_text())[
        "Resources"
    ].values()

    def names(type_: str, name: str) -> set[Any]:
        return {each["Properties"].get(name) for each in resources if each["Type"] == type_}

    assert "campaign-jobs-dev-digest" in names("AWS::Lambda::Function", "FunctionName")
    assert {"campaign-jobs-dev-digest-retry", "campaign-jobs-dev-digest-dead-letters"} <= names(
        "AWS::SQS::Queue", "QueueName"
    )
    (mapping,) = (
        each["Properties"]
        for each in resources
        if each["Type"] == "AWS::Lambda::EventSourceMapping"
        and "job-workers-digest" in str(each["Properties"].get("AmazonManagedKafkaEventSourceConfig"))
    )
    assert "job.digest.compile" in str(mapping["FilterCriteria"])


def test_its_function_does_an_event_and_dead_letters_what_is_wrong(
    extended: Path, database_url: str, tmp_path: Path
) -> None:
    campaign = uuid.uuid4()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO campaign_jobs.campaigns (id, name) VALUES (%s, 'Launch')", [campaign])
    events = [
        {**EVENT, "data": {"campaign_id": str(campaign)}},
        {**EVENT, "id": "second", "data": {"campaign_id": str(uuid.uuid4())}},
        {**EVENT, "id": "third", "data": {"campaign_id": "none"}},
        {**EVENT, "id": "fourth", "type": "job.email.welcome"},
    ]
    program = """
import json, sys
import handler
class Context:
    aws_request_id = "request"
    invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:digest:digest"
    def get_remaining_time_in_millis(self): return 120_000
print("counts", json.dumps(handler.handler(json.loads(sys.stdin.read()), Context())))
"""
    records = [
        {
            "topic": "job-events", "partition": 0, "offset": offset, "timestamp": 1_767_225_600_000, "key": None,
            "value": base64.b64encode(json.dumps(event).encode()).decode(),
        }
        for offset, event in enumerate(events)
    ]  # fmt: skip
    with AwsStandIn(tmp_path / "mails") as aws:
        queues = {
            name: f"{aws.endpoint_url}/000000000000/{name.lower()}"
            for name in ("RETRY_QUEUE_URL_DIGEST", "DEAD_LETTER_QUEUE_URL_DIGEST")
        }
        import boto3

        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        sqs = boto3.client("sqs", endpoint_url=aws.endpoint_url, **keys)
        urls = {
            name: sqs.create_queue(QueueName=url.rpartition("/")[2])["QueueUrl"]
            for name, url in queues.items()
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=extended / "functions" / "digest",
            env={
                **environment(extended),
                **urls,
                "DATABASE_URL": database_url,
                "AWS_ENDPOINT_URL": aws.endpoint_url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
                "POWERTOOLS_TRACE_DISABLED": "true",
            },
            input=json.dumps({"eventSource": "aws:kafka", "records": {"job-events-0": records}}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (counts,) = (
            line.removeprefix("counts ") for line in done.stdout.splitlines() if line.startswith("counts ")
        )
        assert json.loads(counts) == {"processed": 1, "dead_lettered": 2, "ignored": 1}
        dead = sqs.receive_message(QueueUrl=urls["DEAD_LETTER_QUEUE_URL_DIGEST"], MaxNumberOfMessages=10)[
            "Messages"
        ]
        reasons = sorted(json.loads(message["Body"])["dead_letter"]["reason"] for message in dead)
        assert reasons[1] == "the campaign is not there"
        assert "campaign_id" in reasons[0]
