"""Stand-ins for Lambda's event-source mappings: they feed the real handlers the events that Lambda would."""

import threading
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from campaign_jobs.errors import CampaignJobsError

LOCAL_ACCOUNT: Final = "000000000000"
LOCAL_REGION: Final = "us-east-1"

MAX_PAYLOAD_BYTES: Final = 6 * 1024 * 1024
"""Lambda's limit for the event of a synchronous invocation, with the values in base64 (Lambda quotas)."""


class MappingBroken(CampaignJobsError):
    """A mapping's thread ended on an error of its own, so nothing is delivered any more."""


class Invocable(Protocol):
    """What a mapping or a schedule feeds: a function that takes an event, and raises when the invocation fails."""

    def invoke(self, event: dict[str, Any]) -> Any:
        """Return the handler's result. Raises FunctionFailed."""
        ...


@dataclass
class MappingCounters:
    """What a mapping has done so far. Written by the mapping's threads, read by whoever shows progress."""

    delivered: int = 0
    """Records or messages that left in a successful invocation and were not reported as failed."""
    failed: int = 0
    """Records or messages of failed deliveries; one that is delivered again may count again."""
    filtered_out: int = 0
    batches: int = 0
    """Invocations, failed ones included."""
    failed_batches: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **amounts: int) -> None:
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)
