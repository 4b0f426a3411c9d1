"""What alarms and dashboard look at: the functions' own metrics, and what AWS keeps of functions, queues, servers."""

from collections.abc import Mapping
from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch

from campaign_jobs import catalog
from infra.environment_settings import Environment, ExistingKafka, NewDatabase

MAXIMUM: Final = "Maximum"
SUM: Final = "Sum"
AVERAGE: Final = "Average"
_MINUTE: Final = Duration.minutes(1)
_FIVE_MINUTES: Final = Duration.minutes(5)
_HOUR: Final = Duration.hours(1)


class Metrics:
    """The metrics of one environment, by the names that its resources have."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def heartbeat_age(self, lane: catalog.Lane) -> cloudwatch.Metric:
        group = lane.consumer_group(self._environment.kafka_job_consumer_group)
        return self._of_relay(catalog.HEARTBEAT_AGE, group)

    def outbox_age(self) -> cloudwatch.Metric:
        return self._of_relay(catalog.OUTBOX_AGE)

    def watermark_age(self, job_type: catalog.ScheduledJobType) -> cloudwatch.Metric:
        return self._of_relay(catalog.WATERMARK_AGE, job_type.name)

    def retry_age(self, job_type: catalog.EventJobType, lane: catalog.Lane) -> cloudwatch.Metric:
        metric = catalog.RETRY_AGE
        return self.of_job(job_type.name, metric.name, MAXIMUM, metric.dimensions(lane.name))

    def of_job(
        self,
        service: str,
        name: str,
        statistic: str = SUM,
        dimensions: Mapping[str, str] | None = None,
        period: Duration = _FIVE_MINUTES,
    ) -> cloudwatch.Metric:
        """A metric that a function publishes itself; `service` is the name of both function and job type."""
        told_apart = {catalog.FUNCTION_DIMENSION: self._environment.resource_name(service)}
        told_apart |= dimensions or {}
        return _metric(catalog.METRICS_NAMESPACE, name, statistic, period, service=service, **told_apart)

    def of_function(self, function: str, name: str) -> cloudwatch.Metric:
        """What Lambda counts of a function, by whatever alias it is invoked."""
        return _metric("AWS/Lambda", name, SUM, FunctionName=self._environment.resource_name(function))

    def of_queue(self, queue: str, name: str) -> cloudwatch.Metric:
        return _metric("AWS/SQS", name, MAXIMUM, QueueName=self._environment.resource_name(queue))

    def messages_in(self, queue: str) -> cloudwatch.Metric:
        """How many of its messages could be received now."""
        return self.of_queue(queue, "ApproximateNumberOfMessagesVisible")

    @staticmethod
    def of_sending(name: str) -> cloudwatch.Metric:
        """What SES keeps of the account, all environments together."""
        return _metric("AWS/SES", name, AVERAGE, _HOUR)

    def of_database(self, name: str) -> cloudwatch.Metric | None:
        """What RDS keeps of the stack's own cluster; None where the database is somebody else's."""
        if not isinstance(self._environment.database, NewDatabase):
            return None
        cluster = self._environment.resource_name("database")
        return _metric("AWS/RDS", name, AVERAGE, DBClusterIdentifier=cluster)

    def of_brokers(self, name: str) -> cloudwatch.SearchExpression:
        """What MSK keeps of each broker, however many there are."""
        kafka = self._environment.kafka
        cluster = (
            kafka.cluster_arn.split("/")[1]
            if isinstance(kafka, ExistingKafka)
            else self._environment.resource_name("kafka")
        )
        wanted = f'{{AWS/Kafka,"Broker ID","Cluster Name"}} MetricName="{name}" "Cluster Name"="{cluster}"'
        return cloudwatch.SearchExpression(expression=f"SEARCH('{wanted}', '{AVERAGE}', 300)", label="")

    def _of_relay(self, metric: catalog.Metric, which: str = "") -> cloudwatch.Metric:
        """What relay reports each minute of everybody, because a function that is dead reports nothing."""
        return self.of_job(catalog.RELAY.name, metric.name, MAXIMUM, metric.dimensions(which), _MINUTE)


def _metric(
    namespace: str, name: str, statistic: str, period: Duration = _FIVE_MINUTES, **dimensions: str
) -> cloudwatch.Metric:
    return cloudwatch.Metric(
        namespace=namespace,
        metric_name=name,
        statistic=statistic,
        period=period,
        dimensions_map=dimensions,
    )
