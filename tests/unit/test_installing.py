"""What a service that only publishes must install, and what it must not."""

import subprocess
import sys
import tomllib
from pathlib import Path

USE_WITHOUT = """
import sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed for this test")

sys.meta_path.insert(0, Refusal())
from uuid import uuid4
from campaign_jobs import errors, outbox
from campaign_jobs.events import RewardDeliveryJobPayload
from campaign_jobs.producer import AsyncJobProducer, JobProducer
from campaign_jobs.testing import RecordingProducer

producer = RecordingProducer()
producer.enqueue_reward_delivery_job(RewardDeliveryJobPayload(user_reward_id=uuid4()))
producer.only()
try:
    JobProducer(brokers="127.0.0.1:1", connect_timeout_seconds=0.1).enqueue_reward_delivery_job(
        RewardDeliveryJobPayload(user_reward_id=uuid4())
    )
except errors.BrokersUnreachable:
    print("tried to publish")
"""
NOT_FOR_PUBLISHING = (
    "aws_cdk",
    "aws_lambda_powertools",
    "aws_msk_iam_sasl_signer",
    "boto3",
    "botocore",
    "jinja2",
    "psycopg",
)


def names(requirements: list[str]) -> set[str]:
    return {requirement.split(">=")[0].split("==")[0] for requirement in requirements}


def test_publishing_needs_neither_aws_nor_a_database_driver(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE_WITHOUT.format(refused=NOT_FOR_PUBLISHING)],
        env={"PYTHONPATH": str(repository / "layers/campaign_jobs/python")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("tried to publish\n", "")


def test_building_a_producer_does_not_load_kafka_s_client(repository: Path) -> None:
    script = "from campaign_jobs.producer import JobProducer; import sys; JobProducer(brokers='a:1')"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; print([name for name in sys.modules if 'confluent' in name])"],
        env={"PYTHONPATH": str(repository / "layers/campaign_jobs/python")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_package_s_functions_need_what_the_repository_locks_for_them(repository: Path) -> None:
    package = tomllib.loads((repository / "layers/campaign_jobs/pyproject.toml").read_text())
    root = tomllib.loads((repository / "pyproject.toml").read_text())
    extras = package["project"]["optional-dependencies"]
    assert sorted(extras["functions"]) == sorted(root["dependency-groups"]["functions"])
    assert names(extras["producer"] + extras["iam"]) <= names(extras["functions"])
