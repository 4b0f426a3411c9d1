"""How old the oldest message of each queue is, as SQS reports it to CloudWatch; moto's CloudWatch asks for it here.

Source: Amazon SQS Developer Guide, "Available CloudWatch metrics", ApproximateAgeOfOldestMessage: a message that was
received three times or more no longer counts. Real figures come each minute; these are those of the moment.
"""

import time
from typing import Any, Final

from moto.cloudwatch.models import MetricDatum
from moto.core.common_models import CloudWatchMetricProvider
from moto.core.utils import utcnow
from moto.sqs.models import Queue, sqs_backends

NAMESPACE: Final = "AWS/SQS"
METRIC: Final = "ApproximateAgeOfOldestMessage"
_RECEIVES_THAT_COUNT: Final = 3


class QueueAges(CloudWatchMetricProvider):
    """moto finds it as a subclass of what all its providers derive from."""

    @staticmethod
    def get_cloudwatch_metrics(account_id: str, region: str) -> Any:
        # A figure belongs to the minute that it was taken in.
        minute = utcnow().replace(second=0, microsecond=0)
        queues: dict[str, Queue] = dict(sqs_backends[account_id][region].queues)
        return [
            MetricDatum(
                NAMESPACE,
                METRIC,
                _age(queue),
                [{"Name": "QueueName", "Value": queue.name}],
                minute,
                unit="Seconds",
            )
            for queue in queues.values()
        ]


def _age(queue: Queue) -> float:
    # What is in flight or delayed counts too.
    sent: list[Any] = [
        message.sent_timestamp
        for message in list(queue._messages)
        if message.approximate_receive_count < _RECEIVES_THAT_COUNT
    ]
    return max(0.0, time.time() - min(sent) / 1000) if sent else 0.0
