"""What a stack costs at rest, worked out from its template: `python -m infra.costs` prints the table of the guide.

On-demand prices of us-east-1 in US dollars, November 2026, from each pricing page; a month has 730 hours.
What depends on use (mails, traffic, log lines, invocations beyond the relay's) is not in it.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from campaign_jobs import catalog

HOURS: Final = 730

BROKER_HOUR: Final = {"kafka.t3.small": 0.0456, "kafka.m7g.large": 0.204}
BROKER_GIB_MONTH: Final = 0.10
ACU_HOUR: Final = 0.12
NAT_GATEWAY_HOUR: Final = 0.045
INSTANCE_HOUR: Final = {"t4g.nano": 0.0042}
INSTANCE_DISK_MONTH: Final = 8 * 0.08
PUBLIC_ADDRESS_HOUR: Final = 0.005
SECRET_MONTH: Final = 0.40
KEY_MONTH: Final = 1.00
ALARM_MONTH: Final = 0.10
FREE_ALARMS: Final = 10
METRIC_MONTH: Final = 0.30
FREE_METRICS: Final = 10
LAMBDA_GIB_SECOND: Final = 0.0000133334
FREE_GIB_SECONDS: Final = 400_000
QUEUE_MILLION_REQUESTS: Final = 0.40
FREE_QUEUE_REQUESTS: Final = 1_000_000
POLLS_A_SECOND: Final = 5 / 20
"""Of an idle queue by its mapping: five pollers, each asking for twenty seconds at a time."""


@dataclass(frozen=True)
class Item:
    what: str
    month: float


def items(template: Mapping[str, Any]) -> Iterator[Item]:
    """What costs something each month while nothing happens. Raises KeyError for a size whose price is not above."""
    resources = list(template["Resources"].values())

    def of(type_: str) -> list[Mapping[str, Any]]:
        return [each["Properties"] for each in resources if each["Type"] == type_]

    for cluster in of("AWS::MSK::Cluster"):
        brokers = cluster["NumberOfBrokerNodes"]
        group = cluster["BrokerNodeGroupInfo"]
        kind, gib = group["InstanceType"], group["StorageInfo"]["EBSStorageInfo"]["VolumeSize"]
        yield Item(f"Kafka: {brokers} × {kind}", brokers * BROKER_HOUR[kind] * HOURS)
        yield Item(f"Kafka: {brokers} × {gib} GiB", brokers * gib * BROKER_GIB_MONTH)
    for cluster in of("AWS::RDS::DBCluster"):
        least = cluster["ServerlessV2ScalingConfiguration"]["MinCapacity"]
        instances = len(of("AWS::RDS::DBInstance"))
        yield Item(f"PostgreSQL: {instances} × {least:g} ACU", instances * least * ACU_HOUR * HOURS)
    if gateways := len(of("AWS::EC2::NatGateway")):
        yield Item(f"NAT: gateways, {gateways}", gateways * (NAT_GATEWAY_HOUR + PUBLIC_ADDRESS_HOUR) * HOURS)
    for instance in of("AWS::EC2::Instance"):
        kind = instance["InstanceType"]
        hourly = INSTANCE_HOUR[kind] + PUBLIC_ADDRESS_HOUR
        yield Item(f"NAT: a {kind} with its address and disk", hourly * HOURS + INSTANCE_DISK_MONTH)
    if secrets := len(of("AWS::SecretsManager::Secret")):
        yield Item(f"Secrets: {secrets}", secrets * SECRET_MONTH)
    if keys := len(of("AWS::KMS::Key")):
        yield Item(f"Keys: {keys}", keys * KEY_MONTH)
    if alarms := len(of("AWS::CloudWatch::Alarm")):
        yield Item(f"Alarms: {alarms}", max(0, alarms - FREE_ALARMS) * ALARM_MONTH)
    lanes = sum(len(job_type.lanes) for job_type in catalog.EVENT_JOB_TYPES)
    # The ages of heartbeats, of analytics' and fraud's watermarks and of the outbox, and three of the run itself.
    metrics = lanes + 2 + 1 + 3
    yield Item(f"Metrics: {metrics} that relay reports", max(0, metrics - FREE_METRICS) * METRIC_MONTH)
    # It looks all the time; one run follows the other.
    gib_seconds = catalog.RELAY.memory_mb / 1024 * HOURS * 3600
    yield Item(
        f"Relay: always at work, {catalog.RELAY.memory_mb} MiB",
        max(0, gib_seconds - FREE_GIB_SECONDS) * LAMBDA_GIB_SECOND,
    )
    mappings = of("AWS::Lambda::EventSourceMapping")
    polled = sum("AmazonManagedKafkaEventSourceConfig" not in mapping for mapping in mappings)
    requests = polled * POLLS_A_SECOND * HOURS * 3600
    yield Item(
        f"Queues: {polled} that mappings poll",
        max(0, requests - FREE_QUEUE_REQUESTS) / 1_000_000 * QUEUE_MILLION_REQUESTS,
    )


def table(templates: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a section for each environment."""
    lines: list[str] = []
    for name, template in templates.items():
        entries = list(items(template))
        lines += [f"| {name} | $ a month |", "| --- | ---: |"]
        lines += [f"| {item.what} | {item.month:.2f} |" for item in entries]
        lines += [f"| **together** | **{sum(item.month for item in entries):.0f}** |", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    # Only whoever prints the table needs CDK.
    import aws_cdk as cdk

    from infra import environments
    from infra.stack import CampaignJobsStack

    templates = {}
    for environment in environments.ENVIRONMENTS:
        with tempfile.TemporaryDirectory() as directory:
            app = cdk.App(outdir=directory, context=json.loads(Path("cdk.json").read_text())["context"])
            stack = CampaignJobsStack(app, environment.stack_name, environment=environment)
            templates[environment.name] = app.synth().get_stack_by_name(stack.stack_name).template
    sys.stdout.write(table(templates))


if __name__ == "__main__":
    main()
