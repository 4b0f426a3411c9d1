"""How many messages each queue holds, and how old the oldest is that SQS tells of."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from campaign_jobs_cli.targets import Target

# SQS reports each minute, of a queue that was quiet for long up to a quarter of an hour after its first message.
_LOOK_BACK: Final = timedelta(minutes=15)


@dataclass(frozen=True)
class QueueDepth:
    waiting: int
    """To be received now."""
    later: int
    """Delayed: not due yet."""
    under_way: int
    """Received by somebody, and neither deleted nor back."""
    oldest_seconds: float | None
    """As CloudWatch has it: of messages received less than three times. None where the queue is empty, or unknown."""

    @property
    def messages(self) -> int:
        return self.waiting + self.later + self.under_way


def look(target: Target, queues: Sequence[str]) -> dict[str, QueueDepth]:
    """The queues by their part of the name, such as `email-retry`. Raises NotFound."""
    sqs = target.client("sqs")
    oldest = _oldest(target, queues)
    found = {}
    for queue in queues:
        attributes = sqs.get_queue_attributes(
            QueueUrl=target.queue_url(queue),
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesDelayed",
                "ApproximateNumberOfMessagesNotVisible",
            ],
        )["Attributes"]
        depth = QueueDepth(
            int(attributes["ApproximateNumberOfMessages"]),
            int(attributes["ApproximateNumberOfMessagesDelayed"]),
            int(attributes["ApproximateNumberOfMessagesNotVisible"]),
            oldest.get(queue),
        )
        # A figure of a minute ago says nothing of a queue that is empty by now.
        found[queue] = depth if depth.messages else QueueDepth(0, 0, 0, None)
    return found


def _oldest(target: Target, queues: Sequence[str]) -> dict[str, float]:
    now = datetime.now(UTC)
    queries = [
        {
            "Id": f"q{number}",
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/SQS",
                    "MetricName": "ApproximateAgeOfOldestMessage",
                    "Dimensions": [{"Name": "QueueName", "Value": target.resource_name(queue)}],
                },
                "Period": 60,
                "Stat": "Maximum",
            },
        }
        for number, queue in enumerate(queues)
    ]
    answer = target.client("cloudwatch").get_metric_data(
        MetricDataQueries=queries,
        StartTime=now - _LOOK_BACK,
        EndTime=now + timedelta(minutes=1),
        ScanBy="TimestampDescending",
    )
    return {
        queues[int(result["Id"][1:])]: float(result["Values"][0])
        for result in answer["MetricDataResults"]
        if result["Values"]
    }
