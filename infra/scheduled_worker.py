"""A scheduled job type: function, the EventBridge rule that starts it, and a queue for runs that failed."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda_destinations as destinations
from constructs import Construct

from campaign_jobs.catalog import ScheduledJobType
from infra.acknowledged import acknowledge
from infra.environment_settings import Environment
from infra.functions import JobFunction
from infra.layers import Layers
from infra.network import Network
from infra.queues import create_queue

# Lambda's most for asynchronous invocations. A run that failed is also made up for by the next one.
_RETRY_ATTEMPTS: Final = 2


class ScheduledWorker(Construct):
    """Its rule can be tuned in the EventBridge console: deploying leaves it alone until it changes here."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        job_type: ScheduledJobType,
        environment: Environment,
        network: Network,
        layers: Layers,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(scope, id)
        self._job_type = job_type
        self._rule_name = environment.resource_name(job_type.name)
        interval = environment.schedule(job_type)
        own_interval = (
            {job_type.interval_setting: environment.interval(job_type)} if job_type.interval_setting else {}
        )
        self.function = JobFunction(
            self,
            "Function",
            name=job_type.name,
            description=f"Does the {job_type.name} job of {environment.name}",
            environment=environment,
            network=network,
            layers=layers,
            timeout_seconds=job_type.timeout_seconds,
            memory_mb=job_type.memory_mb,
            variables={**own_interval, **(variables or {})},
        )
        self.failed_runs = create_queue(
            self, "FailedRuns", name=environment.resource_name(f"{job_type.name}-failed-runs")
        )
        acknowledge(
            self.function,
            "Its on-failure destination keeps the event of a run that failed, with the reason",
            "Serverless-LambdaDLQ",
        )
        acknowledge(self.failed_runs, "It is where failed runs end", "AwsSolutions-SQS3")
        # Not by the interval, which the console may have changed since.
        max_event_age = Duration.seconds(job_type.max_tick_age_seconds)
        # EventBridge's part ends when Lambda has taken the event; what comes then is the function's own.
        self.function.configure_async_invoke(
            retry_attempts=_RETRY_ATTEMPTS,
            max_event_age=max_event_age,
            on_failure=destinations.SqsDestination(self.failed_runs),
        )
        self.rule = events.Rule(
            self,
            "Rule",
            rule_name=self._rule_name,
            description=f"Starts the {job_type.name} job of {environment.name}",
            schedule=events.Schedule.rate(Duration.minutes(interval // timedelta(minutes=1))),
            targets=[
                targets.LambdaFunction(
                    self.function,
                    dead_letter_queue=self.failed_runs,
                    retry_attempts=_RETRY_ATTEMPTS,
                    max_event_age=max_event_age,
                )
            ],
        )

    def show_schedule_to(self, function: JobFunction) -> None:
        """Let a function read the rule, as it was tuned last."""
        function.add_environment(self._job_type.rule_name_setting, self._rule_name)
        iam.Grant.add_to_principal(
            grantee=function, actions=["events:DescribeRule"], resource_arns=[self.rule.rule_arn]
        )
