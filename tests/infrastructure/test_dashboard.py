"""One page that is free and shows what is looked at first."""

from dataclasses import replace
from typing import Any

import pytest

from infra import environments
from infra.environment_settings import Environment, ExistingDatabase, ExistingKafka
from tests.infrastructure.watching import (
    LANES,
    Alarm,
    expressions,
    resources,
    shown_metrics,
    synthesise_watching,
    widgets,
)


@pytest.mark.parametrize("environment", environments.ENVIRONMENTS, ids=lambda environment: environment.name)
def test_the_dashboard_is_one_of_those_that_are_free(environment: Environment) -> None:
    template = synthesise_watching(environment)
    (dashboard,) = resources(template, "AWS::CloudWatch::Dashboard")
    assert dashboard["Properties"]["DashboardName"] == f"campaign-jobs-{environment.name}"
    brokers = environment.kafka.brokers  # type: ignore[union-attr]
    assert len(list(shown_metrics(template))) + len(expressions(template)) * brokers <= 50


def test_the_dashboard_shows_what_rings_and_how_far_everybody_is(
    watching: dict[str, Any], alarms: dict[str, Alarm]
) -> None:
    ringing, *_ = widgets(watching)
    assert len(ringing["alarms"]) == len(alarms)
    shown = list(shown_metrics(watching))

    def of(name: str) -> set[str]:
        return {metric[-1] for metric in shown if metric[1] == name}

    assert of("heartbeat_age") == {"relay"} and len([m for m in shown if m[1] == "heartbeat_age"]) == len(
        LANES
    )
    for job_type in ("email", "position", "reward"):
        for outcome in ("processed", "skipped", "retried", "dead_lettered"):
            assert job_type in of(outcome)
    assert of("ApproximateNumberOfMessagesVisible") == {
        f"campaign-jobs-dev-{name}-dead-letters"
        for name in ("email", "position", "reward", "unroutable", "feedback")
    }
    for name in ("CPUUtilization", "ServerlessDatabaseCapacity", "VolumeBytesUsed"):
        assert of(name) == {"campaign-jobs-dev-database"}
    assert {m[1] for m in shown if m[0] == "AWS/SES"} == {"Reputation.BounceRate", "Reputation.ComplaintRate"}
    for name, expression in zip(("CpuUser", "KafkaDataLogsDiskUsed"), expressions(watching), strict=True):
        assert f'MetricName="{name}" "Cluster Name"="campaign-jobs-dev-kafka"' in expression


def test_of_servers_that_are_somebody_elses_the_dashboard_shows_what_it_can_know() -> None:
    arn = (
        "arn:aws:kafka:eu-central-1:111122223333:cluster/shared-kafka/6f1c2a34-9f0b-4c57-8d1e-2b7a5c3d4e01-5"
    )
    template = synthesise_watching(
        replace(
            environments.DEV,
            kafka=ExistingKafka(
                cluster_arn=arn, security_group_id="sg-0123456789abcdef0", creates_topic=True
            ),
            database=ExistingDatabase(
                secret_arn="arn:aws:secretsmanager:eu-central-1:111122223333:secret:database-AbCdEf",
                security_group_id="sg-0123456789abcdef0",
            ),
        )
    )
    assert all('"Cluster Name"="shared-kafka"' in expression for expression in expressions(template))
    assert "AWS/RDS" not in {metric[0] for metric in shown_metrics(template)}
