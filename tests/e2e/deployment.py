"""The stack in an emulated account: what the CDK command line does with it, and what is there to be seen."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg
from confluent_kafka.admin import AdminClient

from campaign_jobs.database.connection import Connection
from local.emulator.account import ACCOUNT, REGION, EmulatedAccount

ENVIRONMENT = "dev"
STACK = f"campaign-jobs-{ENVIRONMENT}"
# What the app is made of; in a copy of it the test may change the code.
APP = ("app.py", "cdk.json", "functions", "infra", "layers")
ARCHITECTURE = "arm64" if os.uname().machine in ("aarch64", "arm64") else "x86_64"

Found = TypeVar("Found")


def eventually(look: Callable[[], Found], *, seconds: float = 120) -> Found:
    """What `look` returns, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {look.__name__}"
        time.sleep(0.2)
    return found


class Deployment:
    """A copy of the app below `directory`, deployed to `account` by the pinned CDK command line."""

    def __init__(self, repository: Path, directory: Path, account: EmulatedAccount) -> None:
        self.account = account
        self.repository = repository
        self.app = directory / "app"
        self.app.mkdir()
        self._cdk = repository / "node_modules" / ".bin" / "cdk"
        self._home = directory / "cdk"
        for name in APP:
            source, target = repository / name, self.app / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)

    # The CDK command line

    def bootstrap(self) -> None:
        # Named, so that the app need not be asked.
        self._run("bootstrap", f"aws://{ACCOUNT}/{REGION}")

    def deploy(self) -> None:
        self._run("deploy", STACK, "--require-approval", "never", "--method", "direct")

    def destroy(self) -> None:
        # What has just been deployed, so that the app need not be asked again.
        self._run("destroy", STACK, "--force", "--app", "cdk.out")

    def _run(self, *arguments: str) -> None:
        context = ["-c", f"env={ENVIRONMENT}", "-c", f"architecture={ARCHITECTURE}"]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON"))},
            **self.account.environment(),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "CDK_HOME": str(self._home),
            # The built layer stays behind.
            "TMPDIR": str(self.app.parent),
        }
        done = subprocess.run(
            [self._cdk, *arguments, "--no-notices", *context],
            cwd=self.app,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        progress = re.compile(r"\| \w+_(IN_PROGRESS|COMPLETE) +\|")
        told = "\n".join(line for line in done.stdout.splitlines() if not progress.search(line))
        assert done.returncode == 0, told

    # What the account holds

    def resource_types(self) -> set[str]:
        """Those of the deployed template."""
        template = self.account.client("cloudformation").get_template(StackName=STACK)["TemplateBody"]
        return {resource["Type"] for resource in template["Resources"].values()}

    def holdings(self) -> dict[str, set[str]]:
        """The names of all that a stack may leave behind, by kind."""
        holdings = {
            f"{service}: {operation}": {
                json.dumps(found, default=str) for found in self._listed(service, operation, *keys)
            }
            for service, operation, *keys in _LISTS
        }
        kafka = AdminClient({"bootstrap.servers": self.account.kafka.bootstrap_servers, "log_level": 0})
        holdings["topics"] = {
            name for name in kafka.list_topics(timeout=30).topics if not name.startswith("__")
        }
        holdings["databases"] = self.account.postgres.databases()
        return holdings

    def _listed(self, service: str, operation: str, key: str, name: str | None = None) -> list[Any]:
        client = self.account.client(service)
        if client.can_paginate(operation):
            found = client.get_paginator(operation).paginate().build_full_result().get(key, [])
        else:
            found = getattr(client, operation)().get(key, [])
        return [each if name is None else each[name] for each in found]

    @contextmanager
    def database(self) -> Iterator[Connection]:
        """A connection with what the stack's own secret says."""
        with psycopg.connect(self.database_url(), autocommit=True) as connection:
            yield connection

    def database_url(self) -> str:
        answer = self.account.client("secretsmanager").get_secret_value(SecretId=f"{STACK}-database")
        secret = json.loads(answer["SecretString"])
        place = (
            f"{secret['username']}:{secret['password']}@{secret['host']}:{secret['port']}/{secret['dbname']}"
        )
        return f"postgresql://{place}?sslmode=verify-full&sslrootcert={self.account.certificates.ca_file}"

    def brokers(self) -> str:
        kafka = self.account.client("kafka")
        (cluster,) = kafka.list_clusters()["ClusterInfoList"]
        return str(
            kafka.get_bootstrap_brokers(ClusterArn=cluster["ClusterArn"])["BootstrapBrokerStringSaslIam"]
        )

    def invoke(self, function: str, event: dict[str, Any]) -> Any:
        """The result of a function that succeeds."""
        answer = self.account.client("lambda", read_timeout=120).invoke(
            FunctionName=f"{STACK}-{function}", Payload=json.dumps(event)
        )
        result = json.load(answer["Payload"])
        assert "FunctionError" not in answer, result
        return result

    def operate(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run the operators' command line on the deployed environment, as somebody who may do everything."""
        return subprocess.run(
            [sys.executable, "-m", "campaign_jobs_cli", "--env", ENVIRONMENT, *words],
            cwd=self.app.parent,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
                **self.account.environment(),
                "PYTHONPATH": os.pathsep.join(
                    str(self.repository / path) for path in ("layers/campaign_jobs/python", "cli")
                ),
                # The embedded broker knows no IAM, and PostgreSQL's authority is a throwaway.
                "KAFKA_AUTH": "none",
                "DATABASE_CA_FILE": str(self.account.certificates.ca_file),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def mails(self) -> list[dict[str, Any]]:
        """All mails that SES accepted, in their order."""
        url = f"{self.account.endpoint_url}/_ministack/ses/messages?account={ACCOUNT}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return list(json.load(answer)["messages"].get(ACCOUNT, []))

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """The bodies of what a queue holds now; they are taken out."""
        sqs = self.account.client("sqs")
        url = sqs.get_queue_url(QueueName=f"{STACK}-{queue}")["QueueUrl"]
        received = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
        for message in received:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return [json.loads(message["Body"]) for message in received]

    def request(self, url: str, body: bytes | None = None) -> tuple[int, str]:
        """Ask a function's URL, which leads to the account by its host name alone."""
        parts = urlsplit(url)
        request = urllib.request.Request(
            f"{self.account.endpoint_url}{parts.path}?{parts.query}",
            data=body,
            headers={"Host": parts.netloc},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()


# Service, operation, the list in its answer, and the name in an entry.
_LISTS = (
    ("cloudformation", "describe_stacks", "Stacks", "StackName"),
    ("ec2", "describe_security_groups", "SecurityGroups", "GroupId"),
    ("ec2", "describe_vpcs", "Vpcs", "VpcId"),
    ("events", "list_rules", "Rules", "Name"),
    ("iam", "list_roles", "Roles", "RoleName"),
    ("kafka", "list_clusters", "ClusterInfoList", "ClusterName"),
    ("kafka", "list_configurations", "Configurations", "Name"),
    ("lambda", "list_event_source_mappings", "EventSourceMappings", "UUID"),
    ("lambda", "list_functions", "Functions", "FunctionName"),
    ("lambda", "list_layers", "Layers", "LayerName"),
    ("logs", "describe_log_groups", "logGroups", "logGroupName"),
    ("rds", "describe_db_clusters", "DBClusters", "DBClusterIdentifier"),
    ("rds", "describe_db_instances", "DBInstances", "DBInstanceIdentifier"),
    ("secretsmanager", "list_secrets", "SecretList", "Name"),
    ("sesv2", "list_configuration_sets", "ConfigurationSets"),
    ("sqs", "list_queues", "QueueUrls"),
)
