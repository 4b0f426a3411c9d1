"""What an operator looks at first: what rings, how far everybody is behind, what becomes of events, and the servers."""

from collections.abc import Mapping, Sequence
from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from constructs import Construct

from campaign_jobs import catalog
from infra.environment_settings import Environment
from infra.metrics import MAXIMUM, Metrics

_FULL_WIDTH: Final = 24
_OUTCOMES: Final = ("processed", "skipped", "retried", "dead_lettered")
_WITH_OUTCOMES: Final = (catalog.EMAIL, catalog.POSITION, catalog.REWARD)


class Dashboard(Construct):
    """One page. Three pages of 50 metrics each are free; with three brokers, this one shows 50."""

    def __init__(
        self, scope: Construct, id: str, *, environment: Environment, alarms: Sequence[cloudwatch.IAlarm]
    ) -> None:
        super().__init__(scope, id)
        cloudwatch.Dashboard(
            self,
            "Dashboard",
            dashboard_name=environment.stack_name,
            default_interval=Duration.hours(3),
            widgets=_compose(Metrics(environment), alarms),
        )


def _compose(metrics: Metrics, alarms: Sequence[cloudwatch.IAlarm]) -> list[list[cloudwatch.IWidget]]:
    """The page: bands of graphs, four beside each other."""
    lanes = {lane.name: (job_type, lane) for lane, job_type in catalog.JOB_TYPE_BY_LANE.items()}
    runs = {job_type.name: job_type for job_type in catalog.JOB_TYPES_WITH_WATERMARK}
    ringing = cloudwatch.AlarmStatusWidget(
        title="Alarms that ring: docs/runbook.md",
        alarms=alarms,
        states=[cloudwatch.AlarmState.ALARM],
        width=_FULL_WIDTH,
        height=4,
    )
    progress = [
        _graph(
            "Behind the topic (s)",
            {name: metrics.heartbeat_age(lane) for name, (_, lane) in lanes.items()},
        ),
        _graph(
            "Outbox, overdue runs (s)",
            {
                "outbox": metrics.outbox_age(),
                **{name: metrics.watermark_age(job_type) for name, job_type in runs.items()},
            },
        ),
        _graph(
            "Oldest retry (s)",
            {name: metrics.retry_age(job_type, lane) for name, (job_type, lane) in lanes.items()},
        ),
        _graph(
            "Dead letters",
            {
                job_type.name: metrics.messages_in(f"{job_type.name}-dead-letters")
                for job_type in (*catalog.EVENT_JOB_TYPES, *catalog.QUEUE_JOB_TYPES)
            },
        ),
    ]
    work = [
        *(
            _graph(
                f"Events of {job_type.name}",
                {outcome: metrics.of_job(job_type.name, outcome) for outcome in _OUTCOMES},
            )
            for job_type in _WITH_OUTCOMES
        ),
        _graph("Records of runs", {name: metrics.of_job(name, "records") for name in runs}),
    ]
    mail = [
        _graph(
            "Mails, as SES tells",
            {
                status: metrics.of_job(catalog.FEEDBACK.name, f"mails_{status}")
                for status in ("sent", "delivered")
            },
        ),
        _graph(
            "Share of the account's mails",
            {
                "bounced": metrics.of_sending("Reputation.BounceRate"),
                "complained about": metrics.of_sending("Reputation.ComplaintRate"),
            },
        ),
    ]
    servers = [
        _graph(
            "Longest batches and runs (s)",
            {
                name: metrics.of_job(name, "duration", MAXIMUM)
                for name in (*(job_type.name for job_type in _WITH_OUTCOMES), *runs)
            },
        ),
        *(
            _graph("Database", {label: metric})
            for label, name in (
                ("CPU (%)", "CPUUtilization"),
                ("capacity (ACU)", "ServerlessDatabaseCapacity"),
                ("disk (bytes)", "VolumeBytesUsed"),
            )
            if (metric := metrics.of_database(name)) is not None
        ),
        _lines("Kafka: CPU (%)", [metrics.of_brokers("CpuUser")]),
        _lines("Kafka: disk (%)", [metrics.of_brokers("KafkaDataLogsDiskUsed")]),
    ]
    return [[ringing], [*progress], [*work], [*mail, *servers]]


def _graph(title: str, metrics: Mapping[str, cloudwatch.Metric]) -> cloudwatch.GraphWidget:
    return _lines(title, [metric.with_(label=label) for label, metric in metrics.items()])


def _lines(title: str, metrics: Sequence[cloudwatch.IMetric]) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(
        title=title,
        left=metrics,
        left_y_axis=cloudwatch.YAxisProps(min=0, show_units=False),
        width=_FULL_WIDTH // 4,
    )
