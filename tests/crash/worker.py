"""One of several that run scenarios side by side: a runner's process, with stand-ins that nobody else uses."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from confluent_kafka import Consumer, TopicPartition

from campaign_jobs.catalog import EVENT_JOB_TYPES
from campaign_jobs.settings import BY_FUNCTION
from local.certificates import Certificates
from local.functions import PYTHON_PATH, REPOSITORY, FunctionConfiguration
from local.postgres import PostgresServer
from local.processes import die_with_parent, in_lasting_thread
from local.runtime import receive_frame, send_frame
from tests.crash.aws import Aws, serving_aws
from tests.crash.databases import WorkersDatabase
from tests.integration.email_campaign import UNSUBSCRIBE_SETTINGS
from tests.integration.webhook_receiver import Receiver, receiving

POOL_SIZE = 2
SENDER = "hello@mail.example.com"
PLENTY_MS = 200_000

Invoke = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Takes a request of the runner's and returns its report."""


class Topic:
    """A topic of one partition, read from where the reader left off."""

    def __init__(self, bootstrap_servers: str, name: str) -> None:
        self.bootstrap_servers, self.name = bootstrap_servers, name
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": name,
                "enable.auto.commit": False,
                # The question where the topic ends waits behind the fetch before it, half a second where nothing comes.
                "fetch.wait.max.ms": 1,
            }
        )
        self._partition = TopicPartition(name, 0, 0)

    def read(self) -> list[bytes]:
        """The values of the records that came since the last call."""
        _, end = self._consumer.get_watermark_offsets(self._partition, timeout=30)
        values: list[bytes] = []
        if self._partition.offset == end:
            return values
        # Only for as long as there is something, because it fetches without a pause.
        self._consumer.assign([self._partition])
        while self._partition.offset < end:
            message = self._consumer.poll(30)
            assert message is not None and message.error() is None
            self._partition.offset = (message.offset() or 0) + 1
            values.append(message.value() or b"")
        self._consumer.unassign()
        return values

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()


@dataclass
class Worker:
    channel: socket.socket
    aws: Aws
    receiver: Receiver
    certificates: Certificates
    log: Path
    topic: Topic
    database: WorkersDatabase
    _environment: dict[str, Any] | None = None

    @contextmanager
    def serving(self, function: str, constants: Mapping[str, Any]) -> Iterator[Invoke]:
        """Invoke a real handler; a new process whenever the one before was stopped."""
        handler = REPOSITORY / "functions" / function / "handler.py"
        configuration = FunctionConfiguration(
            name=f"campaign-jobs-test-{function}",
            handler=handler,
            environment=self._settings(function),
            timeout_seconds=PLENTY_MS / 1000,
            memory_mb=512,
            log_dir=self.log.parent,
            aws_endpoint_url=self.aws.endpoint_url,
        )
        self._stand_by(
            {
                "function": function,
                "handler": str(handler),
                "variables": configuration.process_environment(),
                "constants": dict(constants),
                "log": str(self.log),
            }
        )
        alive = False

        def invoke(request: Mapping[str, Any]) -> dict[str, Any]:
            nonlocal alive
            self.log.write_bytes(b"")
            if not alive:
                send_frame(self.channel, {"start": True})
            alive = True
            send_frame(self.channel, dict(request))
            report = receive_frame(self.channel)
            assert report is not None, "the runner ended"
            if "exit" in report:
                alive = False
                raise AssertionError(
                    f"the process ended by itself: {report}; {self.log.read_text()[-3_000:]}"
                )
            if request["stop_at"] is not None:
                assert not {"result", "error"} & report.keys(), f"it was not stopped: {self.explain(report)}"
                alive = False
                ending = receive_frame(self.channel)
                assert ending == {"exit": -signal.SIGKILL}, ending
            assert not report["unnumbered"], f"input or output that is not numbered: {report['unnumbered']}"
            return report

        try:
            yield invoke
        finally:
            if alive:
                send_frame(self.channel, {"end": True})
                receive_frame(self.channel)

    def _stand_by(self, environment: dict[str, Any]) -> None:
        """Have the runner load what environments of this kind are forked from."""
        if environment == self._environment:
            return
        if self._environment is not None:
            send_frame(self.channel, {"end": True})
        self._environment = None
        self.log.write_bytes(b"")
        send_frame(self.channel, environment)
        answer = receive_frame(self.channel)
        assert answer == {"ready": True}, f"{answer}; {self.log.read_text()[-3_000:]}"
        self._environment = environment

    def explain(self, report: Mapping[str, Any]) -> str:
        reached = [item["label"] for item in report["boundaries"][-3:]]
        ending = f"{report.get('error', 'no error')} after {reached}"
        return f"{ending}; its log ends with:\n{self.log.read_text()[-3_000:]}"

    def _settings(self, function: str) -> dict[str, str]:
        receiver = f"127.0.0.1:{self.receiver.port}"
        known = {
            "DATABASE_URL": self.database.url,
            "KAFKA_WORKER_POOL_SIZE": str(POOL_SIZE),
            "DEFAULT_SENDER": SENDER,
            "DEFAULT_PUBLIC_BASE_URL": "https://launch.example.com",
            "WEBHOOK_TEST_TARGETS": receiver,
            "WEBHOOK_TEST_CA_FILE": str(self.certificates.ca_file),
            "KAFKA_BROKERS": self.topic.bootstrap_servers,
            "KAFKA_JOB_TOPIC": self.topic.name,
            "ANALYTICS_RULE_NAME": "rule-of-analytics",
            "FRAUD_RULE_NAME": "rule-of-fraud",
            **UNSUBSCRIBE_SETTINGS,
        }
        for job_type in EVENT_JOB_TYPES:
            known[job_type.dead_letter_queue_setting] = self.aws.queue_url(f"{job_type.name}-dead-letters")
            for lane in job_type.lanes:
                known[lane.retry_queue_setting] = self.aws.queue_url(f"{lane.name}-retry")
        names = BY_FUNCTION[function].environment_names()
        assert {name for name, needed in names.items() if needed} <= known.keys()
        return {name: value for name, value in known.items() if name in names}


@contextmanager
def working(
    directory: Path, server: PostgresServer, certificates: Certificates, topic: Topic
) -> Iterator[Worker]:
    """A worker with everything it needs."""
    with ExitStack() as stack:
        aws = stack.enter_context(serving_aws())
        receiver = stack.enter_context(receiving(certificates))
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        with theirs, (directory / "runner.log").open("wb") as log:
            runner = in_lasting_thread(
                lambda: subprocess.Popen(
                    [sys.executable, "-m", "tests.crash.runner", str(theirs.fileno())],
                    env={"PATH": os.environ["PATH"], "PYTHONPATH": PYTHON_PATH},
                    pass_fds=[theirs.fileno()],
                    stdout=log,
                    stderr=log,
                    preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - it only calls prctl
                )
            )
        stack.callback(runner.wait)
        stack.callback(ours.close)
        assert receive_frame(ours) == {"ready": True}, (directory / "runner.log").read_text()
        database = WorkersDatabase(server)
        stack.callback(database.close)
        yield Worker(ours, aws, receiver, certificates, directory / "function.log", topic, database)
