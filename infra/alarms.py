"""Every alarm of an environment, and the topic that they notify. What to do about each is in docs/runbook.md."""

from typing import Final

from aws_cdk import ArnFormat, Aws, RemovalPolicy, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct, IConstruct

from campaign_jobs import catalog
from infra.environment_settings import Environment
from infra.metrics import Metrics

RUNBOOK: Final = "docs/runbook.md"

_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE

# How long everybody may be behind. People wait for the mail that verifies their address.
_BEHIND: Final = 5 * _MINUTE
# Bulk mail waits for the account's send rate by design: 100,000 mails at SES's usual first rate, 14 a second, take two
# hours. Meanwhile its batches fail again and again, which is how Kafka keeps them.
_BULK_BEHIND: Final = 2 * _HOUR
# All attempts, and the patience with rows that are not there yet, come to an end within half an hour.
_RETRIES_END: Final = _HOUR
# Mail is tried for almost five hours, so that an SES that fails for a morning loses none.
_MAIL_RETRIES_END: Final = 5 * _HOUR
# Webhooks are tried for three days, and with the jitter for almost four.
_WEBHOOK_RETRIES_END: Final = 4 * 24 * _HOUR
# A message is delayed for fifteen minutes at most, and then taken within seconds.
_QUEUE_STANDS_STILL: Final = 30 * _MINUTE
# By then the longest run, ten minutes of the fraud job, has had its time, and so has Lambda's second try.
_RUN_OVERDUE: Final = 30 * _MINUTE
# From 5 % and 0.1 % on, SES puts an account under review; from 10 % and 0.5 % on, it may stop the account's sending.
# https://docs.aws.amazon.com/ses/latest/dg/reputationdashboardmessages.html
_BOUNCE_RATE: Final = 0.04
_COMPLAINT_RATE: Final = 0.0008

# How many of the last so many periods must be above the threshold. What is there once wants a person.
_AT_ONCE: Final = (1, 1)
# Minutes, as relay reports them.
_IN_A_ROW: Final = (5, 5)
# Five minutes each. A single error may be a database that was gone for a moment, or a record that kills its process and
# is dealt with.
_AGAIN_AND_AGAIN: Final = (3, 5)
# As long as bulk mail may be behind.
_FOR_TWO_HOURS: Final = (20, 24)
# A long wait for an attempt is a hop every fifteen minutes, and in between nothing is published.
_WITHIN_TWENTY_MINUTES: Final = (1, 4)

# What missing data mean. Relay reports each minute, so that its silence is an alarm.
_SILENCE_IS_BAD: Final = cloudwatch.TreatMissingData.BREACHING
# Functions, and Lambda of them, count only what happens. Whether anything does, heartbeats and watermarks tell.
_SILENCE_IS_GOOD: Final = cloudwatch.TreatMissingData.NOT_BREACHING
# SQS reports nothing of a queue that nobody has touched for hours, empty or not, and SES nothing when nobody mails.
_SILENCE_SAYS_NOTHING: Final = cloudwatch.TreatMissingData.IGNORE


class Alarms(Construct):
    """All of an environment's alarms. Those that breach on silence wait for `reporting`, which ends the silence."""

    def __init__(self, scope: Construct, id: str, *, environment: Environment, reporting: IConstruct) -> None:
        super().__init__(scope, id)
        self._environment = environment
        self._metrics = Metrics(environment)
        self._reporting = reporting
        self.topic = self._create_topic()
        self._action = actions.SnsAction(self.topic)
        self.all: list[cloudwatch.IAlarm] = []

        for job_type in catalog.EVENT_JOB_TYPES:
            self._watch_event_job(job_type)
        for scheduled in catalog.SCHEDULED_JOB_TYPES:
            self._watch_scheduled_job(scheduled)
        for fed in catalog.QUEUE_JOB_TYPES:
            self._watch_queue_job(fed)
        for function in catalog.WEB_FUNCTIONS:
            # A person has seen each error.
            self._watch_function(function.name, failing=_AT_ONCE, throttled=_AT_ONCE)
        self._watch_outbox()
        self._watch_reputation()

    def _watch_event_job(self, job_type: catalog.EventJobType) -> None:
        name = job_type.name
        for lane in job_type.lanes:
            behind = _BULK_BEHIND if lane.bulk else _BEHIND
            self._alarm(
                "heartbeat-age",
                lane.name,
                f"{lane.name} is more than {behind // _MINUTE} minutes behind the topic, or nobody knows.",
                self._metrics.heartbeat_age(lane),
                above=behind,
                silence=_SILENCE_IS_BAD,
                when=_IN_A_ROW,
            )
            retries_end = _retries_end(job_type, lane)
            self._alarm(
                "retry-age",
                lane.name,
                f"An event of {lane.name} has been retried for more than {retries_end // _HOUR} hours.",
                self._metrics.retry_age(job_type, lane),
                above=retries_end,
                silence=_SILENCE_IS_GOOD,
                when=_WITHIN_TWENTY_MINUTES,
            )
            self._watch_queue(f"{lane.name}-retry")
        self._watch_dead_letters("dead-letters", name, f"There are dead letters of {name}.")
        failing = _FOR_TWO_HOURS if any(lane.bulk for lane in job_type.lanes) else _AGAIN_AND_AGAIN
        self._watch_function(name, failing=failing)
        self._watch_batches(name, failing=failing)

    def _watch_scheduled_job(self, job_type: catalog.ScheduledJobType) -> None:
        name = job_type.name
        self._watch_dead_letters("failed-runs", name, f"Runs of {name} have failed for good.")
        if job_type not in catalog.JOB_TYPES_WITH_WATERMARK:
            # The next minute does what this one has not done.
            self._watch_function(name)
            return
        # Runs may be an hour or a day apart, so there is no second error to wait for.
        self._watch_function(name, failing=_AT_ONCE)
        self._alarm(
            "watermark-age",
            name,
            f"A run of {name} is overdue by more than {_RUN_OVERDUE // _MINUTE} minutes, or nobody knows.",
            self._metrics.watermark_age(job_type),
            above=_RUN_OVERDUE,
            silence=_SILENCE_IS_BAD,
            when=_IN_A_ROW,
        )

    def _watch_queue_job(self, job_type: catalog.QueueJobType) -> None:
        name = job_type.name
        self._watch_queue(name)
        self._watch_dead_letters("dead-letters", name, f"There are dead letters of {name}.")
        self._watch_function(name)
        self._watch_batches(name)

    def _watch_queue(self, queue: str) -> None:
        """A queue that nobody empties. SQS leaves messages that were received three times out of this age."""
        self._alarm(
            "queue-age",
            queue,
            f"Messages wait in the queue {queue} for more than {_QUEUE_STANDS_STILL // _MINUTE} minutes.",
            self._metrics.of_queue(queue, "ApproximateAgeOfOldestMessage"),
            above=_QUEUE_STANDS_STILL,
            # Of an empty queue SQS reports no age.
            silence=_SILENCE_IS_GOOD,
            when=_AT_ONCE,
        )

    def _watch_dead_letters(self, kind: str, job_type: str, text: str) -> None:
        self._alarm(
            kind,
            job_type,
            text,
            self._metrics.messages_in(f"{job_type}-{kind}"),
            above=0,
            silence=_SILENCE_SAYS_NOTHING,
            when=_AT_ONCE,
        )

    def _watch_function(
        self,
        name: str,
        *,
        failing: tuple[int, int] = _AGAIN_AND_AGAIN,
        throttled: tuple[int, int] = _AGAIN_AND_AGAIN,
    ) -> None:
        for kind, metric, text, when in (
            ("errors", "Errors", f"The function {name} fails.", failing),
            ("throttles", "Throttles", f"Lambda keeps the function {name} from running.", throttled),
        ):
            self._alarm(
                kind,
                name,
                text,
                self._metrics.of_function(name, metric),
                above=0,
                silence=_SILENCE_IS_GOOD,
                when=when,
            )

    def _watch_batches(self, name: str, *, failing: tuple[int, int] = _AGAIN_AND_AGAIN) -> None:
        self._alarm(
            "batch-stopped",
            name,
            f"{name} fails its batches, because something that it needs does not answer.",
            self._metrics.of_job(name, catalog.BATCH_STOPPED.name),
            above=0,
            silence=_SILENCE_IS_GOOD,
            when=failing,
        )

    def _watch_outbox(self) -> None:
        self._alarm(
            "outbox-age",
            None,
            f"An event waits in the outbox for more than {_BEHIND // _MINUTE} minutes, or nobody knows.",
            self._metrics.outbox_age(),
            above=_BEHIND,
            silence=_SILENCE_IS_BAD,
            when=_IN_A_ROW,
        )

    def _watch_reputation(self) -> None:
        """The whole account's, in each environment: all of them stop sending when SES stops the account."""
        for kind, metric, what, above in (
            ("bounce-rate", "Reputation.BounceRate", "bounce", _BOUNCE_RATE),
            ("complaint-rate", "Reputation.ComplaintRate", "are complained about", _COMPLAINT_RATE),
        ):
            self._alarm(
                kind,
                None,
                f"More than {above:.2%} of the account's mails {what}.",
                self._metrics.of_sending(metric),
                above=above,
                silence=_SILENCE_SAYS_NOTHING,
                when=_AT_ONCE,
            )

    def _alarm(
        self,
        kind: str,
        which: str | None,
        text: str,
        metric: cloudwatch.Metric,
        *,
        above: float,
        silence: cloudwatch.TreatMissingData,
        when: tuple[int, int],
    ) -> None:
        """`kind` is the alarm's entry in the runbook, `which` tells it from others of its kind."""
        name = kind if which is None else f"{kind}-{which}"
        alarm = cloudwatch.Alarm(
            self,
            name,
            alarm_name=self._environment.resource_name(name),
            alarm_description=f"{text} {RUNBOOK}#{kind}",
            metric=metric,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
            threshold=above,
            datapoints_to_alarm=when[0],
            evaluation_periods=when[1],
            treat_missing_data=silence,
        )
        alarm.add_alarm_action(self._action)
        alarm.add_ok_action(self._action)
        if silence is _SILENCE_IS_BAD:
            # A cluster takes half an hour to make, in which nobody reports.
            alarm.node.add_dependency(self._reporting)
        self.all.append(alarm)

    def _create_topic(self) -> sns.Topic:
        name = self._environment.resource_name("alarms")
        # AWS's own key for SNS would not let CloudWatch in, and its policy cannot be changed.
        key = kms.Key(
            self,
            "Key",
            description=f"Alarms of campaign-jobs {self._environment.name}",
            enable_key_rotation=True,
            # It keeps nothing for longer than a notification is on its way.
            removal_policy=RemovalPolicy.DESTROY,
        )
        topic = sns.Topic(
            self,
            "Topic",
            topic_name=name,
            display_name=f"campaign-jobs {self._environment.name}",
            master_key=key,
            enforce_ssl=True,
        )
        # With a policy of its own, a topic no longer has the one that lets the whole account publish.
        cloudwatch_alone = iam.ServicePrincipal(
            "cloudwatch.amazonaws.com",
            conditions={
                "StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID},
                "ArnLike": {"aws:SourceArn": self._arn_of_alarms()},
            },
        )
        topic.grant_publish(cloudwatch_alone)
        for address in self._environment.alarm_recipients:
            topic.add_subscription(subscriptions.EmailSubscription(address))
        return topic

    def _arn_of_alarms(self) -> str:
        return Stack.of(self).format_arn(
            service="cloudwatch",
            resource="alarm",
            resource_name=self._environment.resource_name("*"),
            arn_format=ArnFormat.COLON_RESOURCE_NAME,
        )


def _retries_end(job_type: catalog.EventJobType, lane: catalog.Lane) -> int:
    """Seconds after which an event is neither finished nor a dead letter, although it should be."""
    if job_type is catalog.REWARD:
        return _WEBHOOK_RETRIES_END
    if job_type is catalog.EMAIL:
        return _MAIL_RETRIES_END + (_BULK_BEHIND if lane.bulk else 0)
    return _RETRIES_END
